"""Trains and exports the models that the tests and the demo use, and writes the digit scans they are made from.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python train.py

Everything is written beside this script and is committed, so that nobody needs Python to run the tests:

    digits/{train,heldout}.csv    the scans, split
    saved/NAME/1/                 good models, in TensorFlow Serving's layout
    refused/NAME/1/               models that the host must not load
    measured.json                 what was measured, with seed and versions
"""

import csv
import hashlib
import json
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import sklearn
import tensorflow as tf
from scipy import ndimage
from sklearn import datasets

SEED = 20260214
EPOCHS = 80
HERE = pathlib.Path(__file__).resolve().parent


def main():
    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    for directory in ("saved", "refused"):
        shutil.rmtree(HERE / directory, ignore_errors=True)

    measured = {
        "seed": SEED,
        "tensorflow": tf.__version__,
        "scikit_learn": sklearn.__version__,
        "digits": digits(),
        "iris": iris(),
    }
    half_plus_two()
    numerals()
    echo()
    refused()
    write_json(HERE / "measured.json", measured)
    print(json.dumps(measured, indent=2))


# --- digits ---------------------------------------------------------------------------------------


class Digits(tf.Module):
    """A small convolutional net: two convolutions, one hidden layer (the embedding), ten classes."""

    def __init__(self):
        super().__init__()
        he = tf.keras.initializers.HeNormal(seed=SEED)
        self.filters1 = tf.Variable(he([3, 3, 1, 24]))
        self.bias1 = tf.Variable(tf.zeros([24]))
        self.filters2 = tf.Variable(he([3, 3, 24, 48]))
        self.bias2 = tf.Variable(tf.zeros([48]))
        self.hidden = tf.Variable(he([4 * 4 * 48, 64]))
        self.hidden_bias = tf.Variable(tf.zeros([64]))
        self.classes = tf.Variable(he([64, 10]))
        self.classes_bias = tf.Variable(tf.zeros([10]))

    def layers(self, image):
        x = image[:, :, :, tf.newaxis]
        x = tf.nn.relu(tf.nn.conv2d(x, self.filters1, 1, "SAME") + self.bias1)
        x = tf.nn.relu(tf.nn.conv2d(x, self.filters2, 1, "SAME") + self.bias2)
        x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        x = tf.reshape(x, [-1, 4 * 4 * 48])
        embedding = tf.nn.relu(x @ self.hidden + self.hidden_bias)
        return embedding, lambda e: e @ self.classes + self.classes_bias

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="image")])
    def serving(self, image):
        embedding, logits = self.layers(image)
        return {"probabilities": tf.nn.softmax(logits(embedding)), "embedding": embedding}

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="image")])
    def embed(self, image):
        return {"embedding": self.layers(image)[0]}


def digits():
    scans, train, heldout = split_digits()
    images = tf.constant(scans.images[train] / 16.0, tf.float32)
    labels = tf.constant(scans.target[train])
    model = Digits()
    optimizer = tf.keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(batch, wanted, keep):
        with tf.GradientTape() as tape:
            embedding, logits = model.layers(batch)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(wanted, logits(embedding * keep))
            )
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )

    random = np.random.default_rng(SEED)
    for epoch in range(EPOCHS):
        optimizer.learning_rate.assign(1e-3 * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS)))
        for batch in np.array_split(random.permutation(len(train)), len(train) // 32):
            # 900 scans are few: each is turned, stretched and moved a little, and half of the embedding is dropped.
            varied = np.stack([vary(images[i].numpy(), random) for i in batch])
            keep = (random.random([len(batch), 64]) > 0.5).astype(np.float32) * 2
            step(tf.constant(varied), tf.gather(labels, batch), tf.constant(keep))

    held = tf.constant(scans.images[heldout] / 16.0, tf.float32)
    answers = model.serving(held)
    accuracy = np.mean(np.argmax(answers["probabilities"], 1) == scans.target[heldout])

    def unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    known = unit(model.serving(images)["embedding"].numpy())
    similar = np.argsort(-unit(answers["embedding"].numpy()) @ known.T, axis=1)[:, :5]
    votes = scans.target[train][similar]
    neighbours = np.mean(
        [np.bincount(v, minlength=10).argmax() for v in votes] == scans.target[heldout]
    )
    assert accuracy >= 0.975, f"accuracy on the held-out scans is only {accuracy:.4f}"

    path = save(model, "digits", {"serving_default": model.serving, "embed": model.embed})
    # What the model has seen, beside the model, so that a test can hold it against the held-out scans.
    write_json(
        path / "assets.extra" / "training.json",
        {"scans": [{"id": int(i), "sha256": digest(scans, i)} for i in train]},
        indent=None,
    )
    return {
        "training_scans": len(train),
        "heldout_scans": len(heldout),
        "accuracy": round(float(accuracy), 4),
        "five_neighbours_accuracy": round(float(neighbours), 4),
    }


def vary(image, random):
    """The scan turned by up to 12 degrees, stretched by up to 10 % and moved by up to 0.7 pixels."""
    angle = np.deg2rad(random.uniform(-12, 12))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag(1 / random.uniform(0.9, 1.1, size=2))
    offset = 3.5 - matrix @ [3.5, 3.5] + random.uniform(-0.7, 0.7, size=2)
    return ndimage.affine_transform(image, matrix, offset, order=1)


def split_digits():
    """Rows with an even number train, odd ones are held out, unless the same scan is in the training half."""
    scans = datasets.load_digits()
    train = np.arange(0, len(scans.target), 2)
    seen = {digest(scans, i) for i in train}
    heldout = np.array([i for i in range(1, len(scans.target), 2) if digest(scans, i) not in seen])
    (HERE / "digits").mkdir(exist_ok=True)
    for name, rows in (("train", train), ("heldout", heldout)):
        with open(HERE / "digits" / f"{name}.csv", "w", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["id", "label"] + [f"p{n}" for n in range(64)])
            for i in rows:
                out.writerow([i, scans.target[i], *scans.data[i].astype(int)])
    return scans, train, heldout


def digest(scans, row):
    """SHA-256 of the scan's 64 pixels, one byte each."""
    return hashlib.sha256(bytes(scans.data[row].astype(np.uint8))).hexdigest()


# --- iris: several inputs, several outputs --------------------------------------------------------


class Iris(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(tf.zeros([4, 3]))
        self.bias = tf.Variable(tf.zeros([3]))

    def logits(self, sepal, petal):
        return tf.concat([sepal, petal], 1) @ self.weights + self.bias

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="sepal"),
            tf.TensorSpec([None, 2], tf.float32, name="petal"),
        ]
    )
    def serving(self, sepal, petal):
        probabilities = tf.nn.softmax(self.logits(sepal, petal))
        species = tf.argmax(probabilities, 1)
        names = tf.gather(tf.constant(["setosa", "versicolor", "virginica"]), species)
        return {"probabilities": probabilities, "species": species, "name": names}


def iris():
    flowers = datasets.load_iris()
    data = tf.constant(flowers.data, tf.float32)
    model = Iris()
    optimizer = tf.keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    for _ in range(300):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    flowers.target, model.logits(data[:, :2], data[:, 2:])
                )
            )
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
    species = model.serving(data[:, :2], data[:, 2:])["species"].numpy()
    save(model, "iris", {"serving_default": model.serving})
    return {"training_accuracy": round(float(np.mean(species == flowers.target)), 4)}


# --- known answers --------------------------------------------------------------------------------


def half_plus_two():
    """y = x / 2 + 2, and under another signature y = x / 2 + 3."""
    model = tf.Module()
    model.half = tf.Variable(0.5)
    model.two = tf.Variable(2.0)
    model.three = tf.Variable(3.0)
    spec = [tf.TensorSpec([None], tf.float32, name="x")]
    model.plus_two = tf.function(lambda x: {"y": model.half * x + model.two}, input_signature=spec)
    model.plus_three = tf.function(lambda x: {"y": model.half * x + model.three}, input_signature=spec)
    save(
        model,
        "half_plus_two",
        {"serving_default": model.plus_two, "half_plus_three": model.plus_three},
    )


class Numerals(tf.Module):
    """Number words to numbers and back, through lookup tables that are filled from a bundled vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = tf.saved_model.Asset(str(vocabulary))
        kind = tf.lookup.TextFileIndex
        self.numbers = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                self.vocabulary, tf.string, kind.WHOLE_LINE, tf.int64, kind.LINE_NUMBER
            ),
            default_value=-1,
        )
        self.words = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                self.vocabulary, tf.int64, kind.LINE_NUMBER, tf.string, kind.WHOLE_LINE
            ),
            default_value="?",
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def read(self, word):
        number = self.numbers.lookup(tf.strings.lower(word))
        return {"number": number, "known": number >= 0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="number")])
    def spell(self, number):
        return {"word": self.words.lookup(number)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def twice(self, word):
        return {"word": tf.strings.join([word, word]), "length": tf.strings.length(word)}


def numerals():
    vocabulary = HERE / "numerals.txt"
    vocabulary.write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")
    model = Numerals(vocabulary)
    save(
        model,
        "numerals",
        {"serving_default": model.read, "spell": model.spell, "twice": model.twice},
    )
    vocabulary.unlink()


def echo():
    """One signature for each datatype; each gives back what it is given. `any_rank` takes any shape."""
    types = {
        "boolean": tf.bool, "bytes": tf.string, "f16": tf.float16, "bf16": tf.bfloat16,
        "f32": tf.float32, "f64": tf.float64,
        "u8": tf.uint8, "u16": tf.uint16, "u32": tf.uint32, "u64": tf.uint64,
        "s8": tf.int8, "s16": tf.int16, "s32": tf.int32, "s64": tf.int64,
    }
    model = tf.Module()
    signatures = {}
    for name, datatype in types.items():
        spec = [tf.TensorSpec([None, None], datatype, name="x")]
        signatures[name] = tf.function(lambda x: {"x": tf.identity(x)}, input_signature=spec)
    spec = [tf.TensorSpec(None, tf.float32, name="x")]
    signatures["any_rank"] = tf.function(lambda x: {"x": tf.identity(x)}, input_signature=spec)
    spec = [tf.TensorSpec([], tf.int32, name="count")]
    signatures["zeros"] = tf.function(lambda count: {"zeros": tf.zeros([count])}, input_signature=spec)
    # Two inputs that must be equally long, which no signature can say.
    spec = [tf.TensorSpec([None], tf.float32, name=name) for name in ("a", "b")]
    signatures["sum"] = tf.function(lambda a, b: {"sum": tf.raw_ops.AddV2(x=a, y=b)}, input_signature=spec)
    save(model, "echo", signatures)


# --- models that must not be loaded ---------------------------------------------------------------


def refused():
    spec = [tf.TensorSpec([], tf.string, name="x")]

    def write(x):
        tf.io.write_file("/tmp/stepwell-was-here", x)
        return {"x": tf.identity(x)}

    def read(x):
        return {"x": tf.io.read_file(x)}

    def python(x):
        return {"x": tf.py_function(lambda v: v, [x], tf.string)}

    def nested(x):
        # The op hides in a function that is called from a branch.
        return {"x": tf.cond(tf.strings.length(x) > 3, lambda: tf.io.read_file(x), lambda: x)}

    for name, function in (("write_file", write), ("read_file", read), ("py_func", python), ("nested", nested)):
        model = tf.Module()
        model.run = tf.function(function, input_signature=spec)
        save(model, name, {"serving_default": model.run}, "refused")


# --- writing --------------------------------------------------------------------------------------


def save(model, name, signatures, directory="saved"):
    path = HERE / directory / name / "1"
    options = tf.saved_model.SaveOptions(save_debug_info=False)
    tf.saved_model.save(model, str(path), signatures=signatures, options=options)
    return path


def write_json(path, value, indent=2):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=indent) + "\n")


if __name__ == "__main__":
    main()
