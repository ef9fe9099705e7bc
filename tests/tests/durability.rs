//! A host that is killed at any moment, or whose files are damaged, comes back with everything that it has acknowledged.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use stepwell_tests::{Config, Host, guest, pgm, scans, stepwell};

/// Numbers that are the same in every test run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// The same component with other bytes: a custom section more.
fn variant(component: &[u8], name: &str) -> Vec<u8> {
    let mut bytes = component.to_vec();
    let length = u8::try_from(name.len()).unwrap();
    assert!(length < 120, "a length of one byte");
    bytes.extend([0, length + 1, length]);
    bytes.extend(name.as_bytes());
    bytes
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn tagged(name: &str, tag: &str) -> String {
    format!(
        "stepwell: 1\nname: {name}\ntriggers:\n  - http: {{method: POST, path: /{name}}}\nsteps:\n\
         \x20 - {{id: only, plugin: tagger@1, config: {{tag: \"{tag}\"}}}}\n"
    )
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
    found
}

/// What the host has said that it did.
#[derive(Default)]
struct Acknowledged {
    /// Version of the plugin `many`, and its digest.
    uploads: BTreeMap<String, String>,
    /// Pipeline and revision, and its tag.
    revisions: BTreeMap<(String, u64), String>,
}

impl Acknowledged {
    /// Whether this round has uploaded something and applied something.
    fn is_of_both(&self, round: u64) -> bool {
        let uploaded = format!("{round}.");
        let applied = format!("{round}-");
        self.uploads.keys().any(|of| of.starts_with(&uploaded))
            && self.revisions.values().any(|of| of.starts_with(&applied))
    }
}

/// Uploads and applies until the host is gone.
async fn upload_until_killed(
    host: &Host,
    round: u64,
    lane: u64,
    component: &[u8],
    acknowledged: &Mutex<Acknowledged>,
) {
    for n in 0.. {
        let version = format!("{round}.{lane}.{n}");
        let bytes = variant(component, &version);
        let Ok(reply) = host.put_plugin("many", &version, bytes.clone()).await else {
            return;
        };
        assert_eq!(
            reply.status,
            StatusCode::CREATED,
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        assert_eq!(reply.json()["digest"], digest(&bytes));
        acknowledged
            .lock()
            .unwrap()
            .uploads
            .insert(version, digest(&bytes));
    }
}

async fn apply_until_killed(
    host: &Host,
    round: u64,
    lane: u64,
    acknowledged: &Mutex<Acknowledged>,
) {
    let name = format!("pipe-{lane}");
    for n in 0.. {
        let tag = format!("{round}-{n}");
        let Ok(reply) = host.put_pipeline(&name, &tagged(&name, &tag)).await else {
            return;
        };
        assert!(
            reply.status.is_success(),
            "{}",
            String::from_utf8_lossy(&reply.body)
        );
        let revision = reply.json()["revision"].as_u64().unwrap();
        acknowledged
            .lock()
            .unwrap()
            .revisions
            .insert((name.clone(), revision), tag);
    }
}

fn tag_of(revision: &Value) -> &str {
    revision["document"]["steps"][0]["config"]["tag"]
        .as_str()
        .unwrap_or_default()
}

async fn check(host: &Host, acknowledged: &Acknowledged, new_since: u64) {
    for (version, digest_then) in &acknowledged.uploads {
        let path = format!("/api/v1/namespaces/default/plugins/many/versions/{version}");
        let found = host.get(&path).await.unwrap();
        assert_eq!(
            found.json()["digest"],
            *digest_then,
            "{version}: {}",
            found.status
        );
        // The bytes of older rounds were compared when these were new.
        if version.starts_with(&format!("{new_since}.")) {
            let bytes = host.get(&format!("{path}/component")).await.unwrap().body;
            assert_eq!(digest(&bytes), *digest_then);
        }
    }
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for ((name, revision), tag) in &acknowledged.revisions {
        let path = format!("/api/v1/namespaces/default/pipelines/{name}/revisions/{revision}");
        let found = host.get(&path).await.unwrap();
        assert_eq!(
            tag_of(&found.json()),
            tag,
            "{name} revision {revision}: {}",
            found.status
        );
        last.insert(name, *revision);
    }
    for (name, revision) in last {
        let current = host
            .get(&format!("/api/v1/namespaces/default/pipelines/{name}"))
            .await
            .unwrap()
            .json();
        let now = current["revision"].as_u64().unwrap();
        // One more may have been stored whose acknowledgement was cut off.
        assert!(
            (revision..=revision + 1).contains(&now),
            "{name} is at {now}, acknowledged was {revision}"
        );
        let reply = host
            .post(&format!("/{name}"), "text/plain", "")
            .await
            .unwrap();
        assert_eq!(
            reply.status,
            StatusCode::OK,
            "{name}: {}",
            String::from_utf8_lossy(&reply.body)
        );
        assert_eq!(
            reply.body,
            format!("{} ", tag_of(&current)),
            "{name} answers with its current revision"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_uploads_and_revisions_survive_kills() {
    // Every revision that was acknowledged is asked for at the end.
    let keeps_all = Config::with("[limits]\nrevisions = 100000\n");
    let mut host = Arc::new(Host::start(&keeps_all).await.unwrap());
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    let component = Arc::new(guest("tagger").unwrap());
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let mut random = Random(0x5eed_0001);
    for round in 1..=8 {
        let mut writers = Vec::new();
        for lane in 0..2 {
            let (on, all, bytes) = (host.clone(), acknowledged.clone(), component.clone());
            writers.push(tokio::spawn(async move {
                upload_until_killed(&on, round, lane, &bytes, &all).await
            }));
            let (on, all) = (host.clone(), acknowledged.clone());
            writers.push(tokio::spawn(async move {
                apply_until_killed(&on, round, lane, &all).await
            }));
        }
        tokio::time::sleep(Duration::from_millis(100 + random.below(900))).await;
        // A round without either would show nothing, however busy the machine is.
        while !acknowledged.lock().unwrap().is_of_both(round) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let pid = host.pid().unwrap();
        assert!(
            Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status()
                .unwrap()
                .success()
        );
        for writer in writers {
            writer.await.unwrap();
        }
        let mut own = Arc::into_inner(host).unwrap();
        own.restart().await.unwrap();
        let ledger = std::mem::take(&mut *acknowledged.lock().unwrap());
        check(&own, &ledger, round).await;
        *acknowledged.lock().unwrap() = ledger;
        host = Arc::new(own);
    }
}

/// What one run of the digit reader acknowledged.
struct Answered {
    event: String,
    picture: Vec<u8>,
    digit: Value,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_have_written_survives_kills() {
    let mut host = Host::start(&Config::digits()).await.unwrap();
    for plugin in ["decode-image", "classify-digit", "record", "index-scans"] {
        host.upload(plugin, "1.0.0", plugin).await.unwrap();
    }
    for name in ["digit-reader", "index-scans"] {
        let path = stepwell_tests::repository().join(format!("plugins/pipelines/{name}.yaml"));
        host.apply(name, &std::fs::read_to_string(path).unwrap())
            .await
            .unwrap();
    }
    // Pictures that differ, so that each has its own counter.
    let mut all: Vec<_> = scans("train").unwrap();
    all.sort_by(|a, b| a.pixels.cmp(&b.pixels));
    all.dedup_by(|a, b| a.pixels == b.pixels);
    let mut left = all.into_iter();
    let mut random = Random(0x5eed_0002);
    for round in 0..4 {
        host.wait_for("models/digits", "ok").await.unwrap();
        let acknowledged = Mutex::new(Vec::new());
        let indexed = Mutex::new(Vec::new());
        let write = async {
            for n in 0.. {
                let scan = left.next().unwrap();
                let body =
                    json!({"scans": [{"id": scan.id, "label": scan.label, "pixels": scan.pixels}]});
                let Ok(reply) = host
                    .post("/scans", "application/json", body.to_string())
                    .await
                else {
                    return;
                };
                assert_eq!(
                    reply.status,
                    StatusCode::OK,
                    "{}",
                    String::from_utf8_lossy(&reply.body)
                );
                let picture = pgm(&scan.pixels);
                indexed.lock().unwrap().push((scan.id, picture.clone()));
                let event = format!("{round}-{n}");
                let Ok(reply) = host
                    .event("/digits/kill", &event, "picture", picture.clone())
                    .await
                else {
                    return;
                };
                assert_eq!(
                    reply.status,
                    StatusCode::OK,
                    "{}",
                    String::from_utf8_lossy(&reply.body)
                );
                let answer = reply.json();
                assert_eq!(answer["seen"], 1);
                let digit = answer["digit"].clone();
                acknowledged.lock().unwrap().push(Answered {
                    event,
                    picture,
                    digit,
                });
            }
        };
        let pid = host.pid().unwrap().to_string();
        let kill = async {
            tokio::time::sleep(Duration::from_millis(300 + random.below(700))).await;
            assert!(
                Command::new("kill")
                    .args(["-KILL", &pid])
                    .status()
                    .unwrap()
                    .success()
            );
        };
        tokio::join!(write, kill);
        host.restart().await.unwrap();
        host.wait_for("models/digits", "ok").await.unwrap();
        let (acknowledged, indexed) = (
            acknowledged.into_inner().unwrap(),
            indexed.into_inner().unwrap(),
        );
        assert!(!acknowledged.is_empty(), "the round was too short");
        for answered in acknowledged {
            // The row is there: an event that has one does not count again.
            let again = host
                .event(
                    "/digits/kill",
                    &answered.event,
                    "picture",
                    answered.picture.clone(),
                )
                .await
                .unwrap()
                .json();
            assert_eq!(
                again["seen"], 1,
                "the row and the counter of {}: {again}",
                answered.event
            );
            assert_eq!(
                again["previous"]["digit"], answered.digit,
                "what was remembered of {}",
                answered.event
            );
            let other = format!("{}-other", answered.event);
            let other = host
                .event("/digits/kill", &other, "picture", answered.picture)
                .await
                .unwrap()
                .json();
            assert_eq!(
                other["seen"], 2,
                "a new event counts on from what was acknowledged"
            );
        }
        for (id, picture) in indexed {
            let answer = host
                .event("/digits/check", &format!("check-{id}"), "picture", picture)
                .await
                .unwrap()
                .json();
            let neighbours = answer["neighbours"].as_array().unwrap();
            let found = neighbours.iter().any(|neighbour| {
                neighbour["id"] == id && neighbour["score"].as_f64().unwrap() > 0.999
            });
            assert!(found, "the vector of scan {id}: {neighbours:?}");
        }
    }
}

/// What happens to a file while the host is stopped.
type Damage = fn(&Path);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compiled_code_that_is_damaged_or_gone_is_compiled_again() {
    let mut host = Host::start(&Config::default()).await.unwrap();
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    host.apply("tagged", &tagged("tagged", "a")).await.unwrap();
    let cache = host.directory().join("data/cache");
    let damages: [(&str, Damage); 4] = [
        ("changed", |path| {
            let mut bytes = std::fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..middle + 64].fill(0xa5);
            std::fs::write(path, bytes).unwrap();
        }),
        ("cut off", |path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() / 3]).unwrap();
        }),
        ("emptied", |path| std::fs::write(path, "").unwrap()),
        ("removed", |path| std::fs::remove_file(path).unwrap()),
    ];
    for (damage, apply) in damages {
        assert_eq!(host.stop().unwrap(), 0);
        let compiled = files(&cache, "cwasm");
        assert_eq!(compiled.len(), 1, "{damage}: {compiled:?}");
        let before = std::fs::metadata(&compiled[0]).unwrap().len();
        apply(&compiled[0]);
        host.restart().await.unwrap();
        let reply = host.post("/tagged", "text/plain", "").await.unwrap();
        assert_eq!(
            (reply.status, &reply.body[..]),
            (StatusCode::OK, &b"a "[..]),
            "{damage}"
        );
        let after = std::fs::metadata(&files(&cache, "cwasm")[0]).unwrap().len();
        assert_eq!(after, before, "{damage}: it is written again");
    }
    assert!(host.logs("compiled again").await, "the host says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_component_is_refused_by_its_digest_and_mended_by_a_push() {
    let mut host = Host::start(&Config::default()).await.unwrap();
    let damaged = guest("tagger").unwrap();
    host.put_plugin("tagger", "1.0.0", damaged.clone())
        .await
        .unwrap();
    host.put_plugin("tagger", "2.0.0", variant(&damaged, "sound"))
        .await
        .unwrap();
    host.apply("damaged", &tagged("damaged", "a"))
        .await
        .unwrap();
    host.apply(
        "sound",
        &tagged("sound", "b").replace("tagger@1", "tagger@2"),
    )
    .await
    .unwrap();
    assert_eq!(host.stop().unwrap(), 0);

    let mut catalog = SqliteConnectOptions::new()
        .filename(host.directory().join("data/catalog.sqlite"))
        .connect()
        .await
        .unwrap();
    let digest = digest(&damaged);
    let mut bytes = damaged.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let hex = digest.strip_prefix("sha256:").unwrap();
    let changed = sqlx::query("UPDATE blobs SET bytes = $1 WHERE digest LIKE $2")
        .bind(bytes)
        .bind(format!("%{hex}"))
        .execute(&mut catalog)
        .await
        .unwrap();
    assert_eq!(changed.rows_affected(), 1);
    sqlx::Connection::close(catalog).await.unwrap();
    // Compiled code of the sound bytes would go on to serve.
    std::fs::remove_dir_all(host.directory().join("data/cache")).unwrap();

    host.restart().await.unwrap();
    assert_eq!(
        host.post("/sound", "text/plain", "").await.unwrap().body,
        "b "
    );
    let reply = host.post("/damaged", "text/plain", "").await.unwrap();
    assert!(!reply.status.is_success(), "{}", reply.status);
    assert!(
        !String::from_utf8_lossy(&reply.body).contains(hex),
        "callers learn nothing of it"
    );
    let ready = host.get("/readyz").await.unwrap();
    let part = ready.json()["parts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|part| part["name"] == "pipelines")
        .unwrap()
        .clone();
    assert_eq!(part["status"], "degraded", "{part}");
    let reason = part["reason"].as_str().unwrap();
    assert!(
        reason.contains("damaged") && reason.contains(hex),
        "{reason}"
    );
    let component = "/api/v1/namespaces/default/plugins/tagger/versions/1.0.0/component";
    let refused = host.get(component).await.unwrap();
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::INTERNAL_SERVER_ERROR, "corrupt".into())
    );
    assert!(refused.json()["detail"].as_str().unwrap().contains(hex));

    // What the message says helps.
    let pushed = host
        .put_plugin("tagger", "1.0.0", damaged.clone())
        .await
        .unwrap();
    assert_eq!(pushed.status, StatusCode::OK);
    assert_eq!(host.get(component).await.unwrap().body, damaged);
    host.wait_for("pipelines", "ok").await.unwrap();
    assert_eq!(
        host.post("/damaged", "text/plain", "").await.unwrap().body,
        "a "
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_has_one_host() {
    let mut host = Host::start(&Config::default()).await.unwrap();
    let second = || {
        let mut process = Command::new(stepwell().unwrap())
            .args(["serve", "--config"])
            .arg(host.directory().join("stepwell.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while process.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                process.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        process.wait_with_output().unwrap()
    };
    let refused = second();
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        message.contains("another host uses the data directory"),
        "{message}"
    );
    assert!(
        message.contains("--data-dir"),
        "it says what to do: {message}"
    );
    assert_eq!(
        host.get("/livez").await.unwrap().status,
        StatusCode::OK,
        "the first is none the worse"
    );
    // The lock ends with the process, however that ends.
    host.kill();
    host.restart().await.unwrap();
    assert_eq!(host.get("/livez").await.unwrap().status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_pipeline_is_named_and_the_others_serve() {
    let mut host = Host::start(&Config::default()).await.unwrap();
    host.upload("tagger", "1.0.0", "tagger").await.unwrap();
    for name in ["damaged", "sound"] {
        host.apply(name, &tagged(name, "a")).await.unwrap();
    }
    for column in ["document", "steps"] {
        assert_eq!(host.stop().unwrap(), 0);
        let mut catalog = SqliteConnectOptions::new()
            .filename(host.directory().join("data/catalog.sqlite"))
            .connect()
            .await
            .unwrap();
        let damage =
            format!("UPDATE pipeline_revisions SET {column} = '{{' WHERE name = 'damaged'");
        let changed = sqlx::query(sqlx::AssertSqlSafe(damage))
            .execute(&mut catalog)
            .await
            .unwrap();
        assert!(changed.rows_affected() > 0);
        sqlx::Connection::close(catalog).await.unwrap();
        host.restart().await.unwrap();

        let sound = host.post("/sound", "text/plain", "").await.unwrap();
        assert_eq!(sound.body, "a ");
        let damaged = host.post("/damaged", "text/plain", "").await.unwrap();
        assert_eq!(damaged.status, StatusCode::NOT_FOUND);
        let ready = host.get("/readyz").await.unwrap().json();
        assert_eq!(ready["status"], "degraded", "{ready}");
        let reason = ready.to_string();
        assert!(
            reason.contains("default/damaged revision ") && reason.contains("cannot be read"),
            "{reason}"
        );
        let list = "/api/v1/namespaces/default/pipelines";
        let list = host.get(list).await.unwrap();
        let names: Vec<Value> = list.json()["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["name"].clone())
            .collect();
        assert_eq!(names, ["sound"]);

        host.apply("damaged", &tagged("damaged", "b"))
            .await
            .unwrap();
        let mended = host.post("/damaged", "text/plain", "").await.unwrap();
        assert_eq!(mended.body, "b ");
        assert_eq!(host.part("pipelines").await.unwrap(), "ok");
    }
}
