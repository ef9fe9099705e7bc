//! The digit reader from the outside: pictures go in over HTTP, answers come out, on scans that neither model nor index has seen.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{ConnectOptions as _, Row as _};
use stepwell_tests::{Config, Host, Reply, Scan, pgm, repository, scans, send};

/// A picture file and its media type.
struct Picture {
    content_type: &'static str,
    bytes: Vec<u8>,
}

const PGM: &str = "image/x-portable-graymap";

/// The scan in one of many forms that all show the same: two file formats, several sizes, dark on light and light on dark.
fn picture(scan: &Scan, form: usize) -> Picture {
    let as_pgm = |bytes| Picture {
        content_type: PGM,
        bytes,
    };
    let as_png = |side, inverted| Picture {
        content_type: "image/png",
        bytes: png(side, &enlarged(scan, side, inverted)),
    };
    match form % 8 {
        0 => as_pgm(pgm(&scan.pixels)),
        1 => {
            let pixels: Vec<String> = scan.pixels.iter().map(u8::to_string).collect();
            as_pgm(format!("P2\n# a scan\n8 8\n16\n{}\n", pixels.join(" ")).into_bytes())
        }
        2 => as_pgm([b"P5\n64 64\n255\n".as_slice(), &enlarged(scan, 64, false)].concat()),
        3 => as_pgm([b"P5\n96 96\n255\n".as_slice(), &enlarged(scan, 96, true)].concat()),
        4 => as_png(8, false),
        5 => as_png(32, true),
        6 => as_png(200, false),
        // Not a multiple of eight: pixels do not fall onto the scan's own.
        _ => as_png(100, true),
    }
}

/// The scan at this many pixels a side, 255 shades; inverted is dark ink on a light ground.
fn enlarged(scan: &Scan, side: usize, inverted: bool) -> Vec<u8> {
    (0..side * side)
        .map(|at| {
            let (x, y) = (at % side * 8 / side, at / side * 8 / side);
            let shade = (u32::from(scan.pixels[y * 8 + x]) * 255 / 16) as u8;
            if inverted { 255 - shade } else { shade }
        })
        .collect()
}

/// A gray PNG without compression.
fn png(side: usize, pixels: &[u8]) -> Vec<u8> {
    let lines: Vec<u8> = pixels
        .chunks(side)
        .flat_map(|line| [&[0], line].concat())
        .collect();
    let mut deflated = vec![0x78, 0x01];
    let blocks: Vec<_> = lines.chunks(0xffff).collect();
    for (index, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        deflated.push(u8::from(index + 1 == blocks.len()));
        deflated.extend(length.to_le_bytes());
        deflated.extend((!length).to_le_bytes());
        deflated.extend(*block);
    }
    let (a, b) = lines.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    deflated.extend((b << 16 | a).to_be_bytes());
    let side = (side as u32).to_be_bytes();
    let header = [&side, &side, &[8, 0, 0, 0, 0][..]].concat();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, data) in [
        (b"IHDR", header),
        (b"IDAT", deflated),
        (b"IEND", Vec::new()),
    ] {
        file.extend((data.len() as u32).to_be_bytes());
        let chunk = [name.as_slice(), &data].concat();
        file.extend(&chunk);
        file.extend(crc(&chunk).to_be_bytes());
    }
    file
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 * (crc & 1))
        })
    })
}

async fn ask(host: &Host, picture: Picture) -> Reply {
    host.post("/digits/heldout", picture.content_type, picture.bytes)
        .await
        .unwrap()
}

async fn digits() -> Host {
    let host = Host::start(&Config::digits()).await.unwrap();
    host.set_up_digits().await.unwrap();
    host
}

/// Rows of the results database, read from its file while the host runs.
async fn rows(host: &Host, query: &'static str) -> Vec<sqlx::sqlite::SqliteRow> {
    let file = host.directory().join("data/sql/results.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(&file)
        .read_only(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::query(query).fetch_all(&mut connection).await.unwrap()
}

#[test]
fn nothing_held_out_was_trained_on() {
    let (train, held_out) = (scans("train").unwrap(), scans("heldout").unwrap());
    assert_eq!(train.len() + held_out.len(), 1797);
    let ids: BTreeSet<&str> = train.iter().map(|scan| scan.id.as_str()).collect();
    let pixels: BTreeSet<&[u8]> = train.iter().map(|scan| scan.pixels.as_slice()).collect();
    for scan in &held_out {
        assert!(
            !ids.contains(scan.id.as_str()),
            "scan {} is in both halves",
            scan.id
        );
        assert!(
            !pixels.contains(scan.pixels.as_slice()),
            "the pixels of scan {} are in both halves",
            scan.id
        );
    }
    // What the model has seen, as training has written it down.
    let path = repository().join("tests/models/saved/digits/1/assets.extra/training.json");
    let training: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let seen: BTreeMap<String, &str> = training["scans"]
        .as_array()
        .unwrap()
        .iter()
        .map(|scan| (scan["id"].to_string(), scan["sha256"].as_str().unwrap()))
        .collect();
    let hash = |scan: &Scan| hex::encode(Sha256::digest(&scan.pixels));
    for scan in &train {
        assert_eq!(
            seen.get(&scan.id).copied(),
            Some(hash(scan).as_str()),
            "scan {} was trained on",
            scan.id
        );
    }
    assert_eq!(seen.len(), train.len());
    let hashes: BTreeSet<&str> = seen.values().copied().collect();
    for scan in &held_out {
        assert!(
            !hashes.contains(hash(scan).as_str()),
            "the model has seen scan {}",
            scan.id
        );
    }
}

#[tokio::test]
async fn held_out_pictures_are_read() {
    let host = digits().await;
    let train = scans("train").unwrap();
    let known: BTreeMap<&str, &Scan> = train.iter().map(|scan| (scan.id.as_str(), scan)).collect();
    let held_out = scans("heldout").unwrap();
    let answers: Vec<(usize, Reply)> = futures::stream::iter(0..held_out.len())
        .map(|index| {
            let picture = picture(&held_out[index], index);
            let host = &host;
            async move { (index, ask(host, picture).await) }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    assert!(answers.len() >= 300);
    let (mut right, mut agreeing) = (0, 0);
    // Right and all answers of each form of picture.
    let mut forms = [(0usize, 0usize); 8];
    for (index, reply) in &answers {
        let scan = &held_out[*index];
        let answer = reply.json();
        assert_eq!(reply.status, StatusCode::OK, "{answer}");
        assert!(reply.header("content-type").starts_with("application/json"));
        assert_eq!(answer["probabilities"].as_array().unwrap().len(), 10);
        let is_right = answer["digit"] == scan.label;
        right += usize::from(is_right);
        forms[index % 8].0 += usize::from(is_right);
        forms[index % 8].1 += 1;
        let neighbours = answer["neighbours"].as_array().unwrap();
        assert_eq!(neighbours.len(), 5);
        for neighbour in neighbours {
            let id = neighbour["id"].as_str().unwrap();
            let scan = known
                .get(id)
                .unwrap_or_else(|| panic!("the neighbour {id} was never indexed"));
            assert_eq!(neighbour["label"], scan.label, "{id}");
        }
        agreeing += usize::from(answer["agreement"].as_f64().unwrap() > 0.5);
    }
    let accuracy = |right: usize, all: usize| right as f64 / all as f64;
    assert!(
        accuracy(right, answers.len()) >= 0.96,
        "{right} of {} are right",
        answers.len()
    );
    assert!(
        accuracy(agreeing, answers.len()) >= 0.9,
        "neighbours agree with {agreeing} of {}",
        answers.len()
    );
    for (form, (right, all)) in forms.iter().enumerate() {
        assert!(
            accuracy(*right, *all) >= 0.9,
            "form {form}: {right} of {all} are right"
        );
    }
    // One row for each picture, with the path's parameter.
    let rows = rows(&host, "SELECT digit, digit_set FROM results").await;
    assert_eq!(rows.len(), answers.len());
    assert!(
        rows.iter()
            .all(|row| row.get::<String, _>("digit_set") == "heldout")
    );
}

#[tokio::test]
async fn what_was_seen_is_remembered() {
    let mut host = digits().await;
    let held_out = scans("heldout").unwrap();
    // The same scan in four forms of exact pixels is one picture to the cache.
    for (times, form) in [0, 1, 0, 1].into_iter().enumerate() {
        let answer = ask(&host, picture(&held_out[0], form)).await.json();
        assert_eq!(answer["seen"], times + 1);
        if times == 0 {
            assert!(answer["previous"].is_null());
        } else {
            assert_eq!(answer["previous"]["digit"], answer["digit"]);
        }
    }
    assert_eq!(
        ask(&host, picture(&held_out[1], 0)).await.json()["seen"],
        1,
        "another picture"
    );

    // One event that comes twice counts once; whatever its sender says of the path is not believed.
    let event = |set: &str| {
        host.request(Method::POST, &format!("/digits/{set}"))
            .header("ce-specversion", "1.0")
            .header("ce-id", "once")
            .header("ce-source", "/test")
            .header("ce-type", "scan")
            .header("ce-httpparamset", "forged")
            .header("content-type", PGM)
            .body(pgm(&held_out[2].pixels))
    };
    let (first, second) = (
        send(event("mine")).await.unwrap(),
        send(event("mine")).await.unwrap(),
    );
    assert_eq!(
        (first.status, first.header("ce-id")),
        (StatusCode::OK, "once".to_owned())
    );
    assert_eq!(
        (
            first.json()["seen"].as_u64(),
            second.json()["seen"].as_u64()
        ),
        (Some(1), Some(1))
    );
    let stored = rows(
        &host,
        "SELECT digit, digit_set, confidence FROM results WHERE id = 'once'",
    )
    .await;
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].get::<String, _>("digit_set"), "mine");
    assert_eq!(first.json()["digit"], stored[0].get::<i64, _>("digit"));

    // Counts, rows and the index outlive the process.
    host.kill();
    host.restart().await.unwrap();
    host.wait_for("models/digits", "ok").await.unwrap();
    let answer = ask(&host, picture(&held_out[0], 0)).await.json();
    assert_eq!(
        (
            answer["seen"].as_u64(),
            answer["neighbours"].as_array().unwrap().len()
        ),
        (Some(5), 5)
    );
}

#[tokio::test]
async fn the_command_line_gets_the_same_answer() {
    let host = digits().await;
    let scan = &scans("heldout").unwrap()[3];
    let over_http = ask(&host, picture(scan, 4)).await.json();
    let file = host.directory().join("digit.png");
    std::fs::write(&file, picture(scan, 4).bytes).unwrap();
    let argument = format!("@{}", file.display());
    let output = host
        .cli(&["invoke", "digit-reader", "--data", &argument])
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["digit"], over_http["digit"]);
    assert_eq!(answer["neighbours"], over_http["neighbours"]);
    assert_eq!(answer["seen"], 2);
    assert!(
        rows(&host, "SELECT 1 FROM results WHERE digit_set IS NULL")
            .await
            .len()
            == 1,
        "there was no path"
    );
}

#[tokio::test]
async fn what_is_no_picture_is_the_callers_fault() {
    let host = digits().await;
    let scan = &scans("heldout").unwrap()[0];
    let whole = picture(scan, 5).bytes;
    let mut bad_sum = whole.clone();
    let near_end = bad_sum.len() - 20;
    bad_sum[near_end] ^= 0xff;
    let cases: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("rubbish", b"rubbish".to_vec()),
        ("half a PNG", whole[..whole.len() / 2].to_vec()),
        ("a PNG with a wrong sum", bad_sum),
        ("no pixels", b"P5\n8 8\n16\n".to_vec()),
        ("too large a size", b"P5\n99999 99999\n16\n".to_vec()),
        ("no size", b"P5\n0 0\n16\n".to_vec()),
        ("too light a pixel", b"P5\n1 1\n16\n\xff".to_vec()),
    ];
    for (what, bytes) in cases {
        let reply = host.post("/digits/bad", "image/png", bytes).await.unwrap();
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid".into()),
            "{what}"
        );
        assert!(!reply.header("stepwell-run-id").is_empty());
    }
    let too_large = host
        .post("/digits/bad", PGM, vec![b'P'; (1 << 20) + 1])
        .await
        .unwrap();
    assert_eq!(too_large.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(!host.directory().join("data/sql/results.sqlite").exists() || no_results(&host).await);
    let good = ask(&host, picture(scan, 0)).await;
    assert_eq!(good.status, StatusCode::OK);
}

/// Whether nothing was ever recorded: there is no table, or no row.
async fn no_results(host: &Host) -> bool {
    rows(host, "SELECT 1 FROM sqlite_schema WHERE name = 'results'")
        .await
        .is_empty()
}

#[tokio::test]
async fn a_model_is_a_step_of_its_own() {
    let host = Host::start(&Config::digits()).await.unwrap();
    host.wait_for("models/digits", "ok").await.unwrap();
    let document = "\
stepwell: 1
name: bare-model
triggers:
  - http: {method: POST, path: /bare}
steps:
  - id: infer
    model: digits
    inputs: {image: /scan/pixels}
    outputs: {chances: probabilities}
";
    host.apply("bare-model", document).await.unwrap();
    let ask = |body: Value| host.post("/bare", "application/json", body.to_string());
    let (mut right, mut all) = (0, 0);
    for batch in scans("heldout").unwrap()[..300].chunks(20) {
        let images: Vec<Vec<Vec<f64>>> = batch
            .iter()
            .map(|scan| {
                scan.pixels
                    .chunks(8)
                    .map(|row| row.iter().map(|pixel| f64::from(*pixel) / 16.0).collect())
                    .collect()
            })
            .collect();
        let reply = ask(json!({"scan": {"pixels": images}})).await.unwrap();
        let answer = reply.json();
        assert_eq!(reply.status, StatusCode::OK, "{answer}");
        assert_eq!(
            answer.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["chances"]
        );
        for (scan, chances) in batch.iter().zip(answer["chances"].as_array().unwrap()) {
            let chances: Vec<f64> = chances
                .as_array()
                .unwrap()
                .iter()
                .map(|chance| chance.as_f64().unwrap())
                .collect();
            let best = (0..10)
                .max_by(|a, b| chances[*a].total_cmp(&chances[*b]))
                .unwrap();
            right += usize::from(best == usize::from(scan.label));
            all += 1;
        }
    }
    assert!(
        f64::from(right as u32) / f64::from(all) >= 0.96,
        "{right} of {all} are right"
    );
    for wrong in [
        json!({"scan": {"pixels": [[0.0, 1.0]]}}),
        json!({"scan": {}}),
        json!({"scan": {"pixels": "text"}}),
        json!(3),
    ] {
        let reply = ask(wrong.clone()).await.unwrap();
        assert_eq!(
            (reply.status, reply.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid".into()),
            "{wrong}"
        );
    }
    let no_json = host.post("/bare", "application/json", "{").await.unwrap();
    assert_eq!(no_json.status, StatusCode::UNPROCESSABLE_ENTITY);

    // Names that the model or the operator does not know are found when the document is applied, or are the input's fault.
    let unknown = host
        .put_pipeline(
            "unknown",
            &document
                .replace("bare", "unknown")
                .replace("model: digits", "model: nobody"),
        )
        .await
        .unwrap();
    assert_eq!(
        (unknown.status, unknown.code()),
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid-pipeline".into())
    );
}
