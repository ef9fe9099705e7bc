//! What a host has acknowledged when it is killed.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use stepwell_tests::{Config, Host, guest, pgm, scans};

use crate::support::{digest, tagged, variant};

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
            let at_work = writers.iter().all(|writer| !writer.is_finished());
            assert!(at_work, "a writer ended before the host did");
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
