//! A host whose files are damaged, gone, or another's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use stepwell_tests::{Config, Host, guest, stepwell};

use crate::support::{digest, tagged, variant};

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
