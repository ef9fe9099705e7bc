"""What the vendor's own client must be able to do with the stand-in: python vendor_client.py URL API_KEY

Runs unmodified with PyPI `pinecone` 7.x and 10.x. Every line is a check; the last line of output is "ok" and the version.
"""
import math
import sys
import warnings

warnings.simplefilter("ignore")

import pinecone
from pinecone import Pinecone, ServerlessSpec

url, api_key = sys.argv[1:]
major = int(pinecone.__version__.split(".")[0])
pc = Pinecone(api_key=api_key, host=url)


def refused(status, call, *args, **kwargs):
    """The call must fail with this HTTP status; client 10 sees some mistakes before it sends them."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        got = getattr(error, "status", None) or getattr(error, "status_code", None)
        if got is None and major >= 10 and isinstance(error, (TypeError, ValueError)):
            return
        assert got == status, f"wanted {status}, got {got}: {error!r}"
        return
    raise AssertionError(f"{call} with {args} {kwargs} was not refused")


def ids(reply):
    return [match.id for match in reply.matches]


def close(a, b):
    assert math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6), (a, b)


# management
name = f"vendor-{major}"
pc.create_index(name=name, dimension=3, metric="cosine", spec=ServerlessSpec(cloud="aws", region="us-east-1"))
model = pc.describe_index(name)
assert model.name == name and model.status.ready, model
assert model.host.startswith(url), model.host
assert model.dimension == 3 and model.metric == "cosine", model
assert name in [index.name for index in pc.list_indexes()]
assert pc.has_index(name) and not pc.has_index("nothing-here")
refused(409, pc.create_index, name=name, dimension=3, metric="cosine", spec=ServerlessSpec(cloud="aws", region="us-east-1"))
refused(404, pc.describe_index, "nothing-here")
refused(401, Pinecone(api_key="wrong", host=url).describe_index, name)

index = pc.Index(host=model.host)

# upsert
films = [
    ("a", [1.0, 0.0, 0.0], {"genre": "drama", "year": 2019.0, "tags": ["old", "long"], "seen": True}),
    ("b", [0.9, 0.1, 0.0], {"genre": "comedy", "year": 2020.0, "tags": ["new"]}),
    ("c", [0.0, 1.0, 0.0], {"genre": "drama", "year": 2021.0}),
    ("d", [0.0, 0.0, 1.0], {"genre": "action", "year": 2022.0, "seen": False}),
]
reply = index.upsert(vectors=[{"id": i, "values": v, "metadata": m} for i, v, m in films])
assert reply.upserted_count == 4, reply
assert index.upsert(vectors=[("e", [0.5, 0.5, 0.0])]).upserted_count == 1
assert index.upsert(vectors=[("a", [0.0, 0.0, 7.0])], namespace="other").upserted_count == 1
refused(400, index.upsert, vectors=[("x", [1.0, 2.0])])
refused(400, index.upsert, vectors=[("x", [0.0, 0.0, 0.0])])
refused(400, index.upsert, vectors=[("ü", [1.0, 0.0, 0.0])])
refused(400, index.upsert, vectors=[{"id": "x", "values": [1.0, 0.0, 0.0], "metadata": {"nested": {"no": 1.0}}}])

# query
reply = index.query(vector=[2.0, 0.0, 0.0], top_k=3, include_values=True, include_metadata=True)
assert ids(reply) == ["a", "b", "e"], reply
close(reply.matches[0].score, 1.0)
close(reply.matches[1].score, 0.9 / math.sqrt(0.82))
close(reply.matches[2].score, math.sqrt(0.5))
assert list(reply.matches[0].values) == [1.0, 0.0, 0.0]
assert reply.matches[0].metadata == films[0][2], reply.matches[0]
bare = index.query(vector=[2.0, 0.0, 0.0], top_k=1).matches[0]
assert not bare.values and not bare.metadata, bare
assert ids(index.query(id="c", top_k=1)) == ["c"]
assert ids(index.query(id="missing", top_k=1)) == []
assert ids(index.query(vector=[1.0, 0.0, 0.0], top_k=9, namespace="other")) == ["a"]
assert ids(index.query(vector=[1.0, 0.0, 0.0], top_k=9, namespace="unknown")) == []
assert len(ids(index.query(vector=[1.0, 0.0, 0.0], top_k=9, namespace="__default__"))) == 5
refused(400, index.query, vector=[1.0, 0.0], top_k=1)

# filters, each against what it must find
for wanted, found in [
    ({"genre": "drama"}, "ac"),
    ({"genre": {"$eq": "drama"}}, "ac"),
    ({"genre": {"$ne": "drama"}}, "bd"),
    ({"seen": True}, "a"),
    ({"seen": {"$ne": True}}, "d"),
    ({"year": {"$gt": 2020.0}}, "cd"),
    ({"year": {"$gte": 2020.0, "$lt": 2022.0}}, "bc"),
    ({"year": {"$lte": 2019.0}}, "a"),
    ({"genre": {"$in": ["comedy", "action"]}}, "bd"),
    ({"genre": {"$nin": ["comedy", "action"]}}, "ac"),
    ({"year": {"$in": [2019.0, 2022.0]}}, "ad"),
    ({"tags": "old"}, "a"),
    ({"tags": {"$in": ["new", "long"]}}, "ab"),
    ({"tags": {"$ne": "old"}}, "b"),
    ({"tags": {"$exists": True}}, "ab"),
    ({"genre": {"$exists": False}}, "e"),
    ({"genre": "drama", "year": 2021.0}, "c"),
    ({"$or": [{"genre": "comedy"}, {"year": {"$gt": 2021.0}}]}, "bd"),
    ({"$and": [{"genre": "drama"}, {"$or": [{"seen": True}, {"year": 2000.0}]}]}, "a"),
]:
    got = "".join(sorted(ids(index.query(vector=[1.0, 1.0, 1.0], top_k=10, filter=wanted))))
    assert got == found, f"{wanted} found {got}, wanted {found}"
for malformed in [
    {"genre": {"$near": "drama"}},
    {"$not": [{"genre": "drama"}]},
    {"year": {"$gt": "2020"}},
    {"genre": {"$in": "drama"}},
    {"genre": {"$in": []}},
    {"$and": []},
    {"genre": {}},
    {"genre": {"$exists": "yes"}},
]:
    refused(400, index.query, vector=[1.0, 1.0, 1.0], top_k=1, filter=malformed)

# fetch
reply = index.fetch(ids=["a", "d", "missing"])
assert sorted(reply.vectors) == ["a", "d"], reply
assert list(reply.vectors["d"].values) == [0.0, 0.0, 1.0]
assert reply.vectors["a"].metadata == films[0][2]
awkward = "u/?&=+ %2F'\""
index.upsert(vectors=[(awkward, [1.0, 1.0, 1.0])], namespace="awkward")
assert list(index.fetch(ids=[awkward], namespace="awkward").vectors) == [awkward]

# update
index.update(id="b", set_metadata={"year": 1999.0, "extra": "x"})
index.update(id="c", values=[0.0, 3.0, 4.0])
index.update(id="missing", values=[1.0, 1.0, 1.0])
updated = index.fetch(ids=["b", "c", "missing"]).vectors
assert updated["b"].metadata == {"genre": "comedy", "year": 1999.0, "tags": ["new"], "extra": "x"}
for value, wanted in zip(updated["b"].values, [0.9, 0.1, 0.0]):
    close(value, wanted)
assert list(updated["c"].values) == [0.0, 3.0, 4.0] and "missing" not in updated

# listing, three pages and a last one that is full
many = [(f"doc-{number:03}", [1.0, float(number), 0.0]) for number in range(30)]
index.upsert(vectors=many + [("other", [1.0, 0.0, 0.0])], namespace="pages")
pages, token = [], None
while True:
    page = index.list_paginated(prefix="doc-", limit=10, namespace="pages", pagination_token=token)
    pages.append([entry.id for entry in page.vectors])
    if page.pagination is None:
        break
    token = page.pagination.next
assert [len(page) for page in pages] == [10, 10, 10], pages
assert sum(pages, []) == [i for i, _ in many]
listed = []
for page in index.list(prefix="doc-", namespace="pages", limit=20):
    listed += [entry if isinstance(entry, str) else entry.id for entry in (page if isinstance(page, list) else page.vectors)]
assert listed == [i for i, _ in many], listed

# stats
stats = index.describe_index_stats()
assert stats.dimension == 3 and stats.total_vector_count == 5 + 1 + 1 + 31, stats
counts = {name: summary.vector_count for name, summary in stats.namespaces.items()}
assert counts == {"__default__": 5, "other": 1, "awkward": 1, "pages": 31}, counts

# delete
index.delete(ids=["a", "missing"])
index.delete(filter={"year": {"$gt": 2021.0}})
assert ids(index.query(vector=[1.0, 1.0, 1.0], top_k=10)) and set(ids(index.query(vector=[1.0, 1.0, 1.0], top_k=10))) == {"b", "c", "e"}
index.delete(delete_all=True, namespace="pages")
assert ids(index.query(vector=[1.0, 0.0, 0.0], top_k=1, namespace="pages")) == []
refused(404, index.delete, delete_all=True, namespace="never-was")
refused(400, index.delete, filter={})
assert index.describe_index_stats().total_vector_count == 3 + 1 + 1

# the other metrics, and sparse values
for metric, expected in [("euclidean", ["n", "f"]), ("dotproduct", ["f", "n"])]:
    pc.create_index(name=f"{name}-{metric}", dimension=2, metric=metric, spec=ServerlessSpec(cloud="aws", region="us-east-1"))
    other = pc.Index(host=pc.describe_index(f"{name}-{metric}").host)
    other.upsert(vectors=[("n", [1.0, 1.0]), ("f", [4.0, 5.0])])
    reply = other.query(vector=[1.0, 1.0], top_k=2)
    assert ids(reply) == expected, (metric, reply)
    if metric == "euclidean":
        close(reply.matches[1].score, 25.0)
    else:
        close(reply.matches[0].score, 9.0)
        other.upsert(vectors=[{"id": "s", "values": [1.0, 0.0], "sparse_values": {"indices": [7, 1], "values": [2.0, 3.0]}}])
        reply = other.query(vector=[1.0, 0.0], sparse_vector={"indices": [7, 9], "values": [5.0, 1.0]}, top_k=1, include_values=True)
        assert ids(reply) == ["s"]
        close(reply.matches[0].score, 11.0)
        assert list(reply.matches[0].sparse_values.indices) == [7, 1]
    pc.delete_index(f"{name}-{metric}")

pc.delete_index(name)
assert not pc.has_index(name)
print("ok", pinecone.__version__)
