//! A host whose cache takes nothing, whose log nobody reads and whose files may not grow; and whoever asked for a change and left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell_tests::{Config, Host, Reply, guest, send, stepwell};
use tokio::time::{sleep, timeout};

/// Longest that anything here may take where nothing is wrong.
const SOON: Duration = Duration::from_secs(60);

/// The same component under another digest: a custom section of this many bytes, which begins with the tag.
fn tagged(name: &str, tag: &str, bytes: usize) -> Vec<u8> {
    let mut component = guest(name).unwrap();
    let leb = |mut number: usize| {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let mut section = leb(tag.len());
    section.extend_from_slice(tag.as_bytes());
    section.resize(section.len() + bytes, b'.');
    component.push(0);
    component.extend(leb(section.len()));
    component.extend(section);
    component
}

async fn upload(host: &Host, name: &str, component: Vec<u8>) {
    let reply = host.put_plugin(name, "1.0.0", component).await.unwrap();
    assert_eq!(reply.status, StatusCode::CREATED, "{}", text(&reply));
}

fn text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

fn document(name: &str, path: &str, plugins: &[&str]) -> String {
    let steps: Vec<Value> = plugins
        .iter()
        .map(|plugin| json!({"id": plugin, "plugin": format!("{plugin}@1")}))
        .collect();
    let triggers = json!([{"http": {"method": "POST", "path": path, "timeout": "60s"}}]);
    json!({"stepwell": 1, "name": name, "triggers": triggers, "steps": steps}).to_string()
}

async fn apply(host: &Host, name: &str, document: &str) -> Reply {
    let applied = timeout(SOON, host.put_pipeline(name, document)).await;
    applied.expect("an answer").unwrap()
}

fn cache(host: &Host) -> PathBuf {
    host.directory().join("data/cache")
}

/// The compiled code in the cache.
fn compiled(host: &Host) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in std::fs::read_dir(cache(host)).unwrap() {
        for file in std::fs::read_dir(directory.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|found| found == "cwasm") {
                found.push(path);
            }
        }
    }
    found
}

/// Nothing is compiled any more, which it was for ever.
async fn rests(host: &Host) {
    let end = Instant::now() + SOON;
    let mut before = host
        .metric("stepwell_compile_cache_misses_total")
        .await
        .unwrap();
    loop {
        sleep(Duration::from_secs(2)).await;
        let now = host
            .metric("stepwell_compile_cache_misses_total")
            .await
            .unwrap();
        if now == before {
            return;
        }
        assert!(Instant::now() < end, "{now} compilations");
        before = now;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_keeps_nothing_costs_time_and_no_answer() {
    let host = Host::start(&Config::default()).await.unwrap();
    upload(&host, "echo", tagged("echo", "first", 0)).await;
    // Nothing can be written where files are made before they are complete.
    for directory in std::fs::read_dir(cache(&host)).unwrap() {
        let unfinished = directory.unwrap().path().join("unfinished");
        if std::fs::remove_dir_all(&unfinished).is_ok() {
            std::fs::write(&unfinished, "").unwrap();
        }
    }
    upload(&host, "other", tagged("echo", "second", 0)).await;
    for (revision, plugins) in [["echo", "other"], ["other", "echo"]].iter().enumerate() {
        let reply = apply(&host, "p", &document("p", "/p", plugins)).await;
        assert!(reply.status.is_success(), "{revision} {}", text(&reply));
    }
    assert_eq!(host.post("/p", "text/plain", "x").await.unwrap().body, "x");
    let back = "/api/v1/namespaces/default/pipelines/p/rollback";
    let back = timeout(SOON, send(host.admin_request(Method::POST, back))).await;
    let back = back.expect("an answer").unwrap();
    assert_eq!(back.json()["revision"], 3, "{}", text(&back));
    assert!(
        host.metric("stepwell_compile_cache_failures_total")
            .await
            .unwrap()
            > 0.0
    );
    rests(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_larger_than_the_cache_is_deployed_and_answers() {
    let host = Host::start(&Config::with("[limits]\ncache = \"1MiB\"\n"))
        .await
        .unwrap();
    let plugins = ["a", "b", "c", "d"];
    for plugin in plugins {
        upload(&host, plugin, tagged("hostile", plugin, 0)).await;
    }
    assert!(compiled(&host).len() < plugins.len(), "they do not fit");
    let reply = apply(&host, "p", &document("p", "/p", &plugins)).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", text(&reply));
    let reply = host.event("/p", "1", "echo", "x").await.unwrap();
    assert_eq!(reply.body, "x", "{}", text(&reply));
    rests(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_was_removed_is_made_again() {
    let host = Host::start(&Config::default()).await.unwrap();
    upload(&host, "echo", tagged("echo", "first", 0)).await;
    std::fs::remove_dir_all(cache(&host)).unwrap();
    upload(&host, "other", tagged("echo", "second", 0)).await;
    let reply = apply(&host, "p", &document("p", "/p", &["other", "echo"])).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", text(&reply));
    assert_eq!(host.post("/p", "text/plain", "x").await.unwrap().body, "x");
    assert_eq!(compiled(&host).len(), 2);
    assert_eq!(
        host.metric("stepwell_compile_cache_failures_total")
            .await
            .unwrap(),
        0.0
    );
}

/// A compiler that the host has started; it is stopped half-way, so that whoever needs it waits.
struct Held(u32);

impl Held {
    async fn of(host: &Host) -> Self {
        let own = host.pid().unwrap();
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            for process in std::fs::read_dir("/proc").unwrap().flatten() {
                let path = process.path();
                let read = |name: &str| std::fs::read(path.join(name)).unwrap_or_default();
                let stat = String::from_utf8_lossy(&read("stat")).into_owned();
                let parent = stat.rsplit(')').next().and_then(|rest| {
                    let mut fields = rest.split_whitespace();
                    fields.nth(1)?.parse::<u32>().ok()
                });
                let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
                if parent == Some(own) && command.contains("compile-worker") {
                    let pid = process.file_name().to_str().unwrap().parse().unwrap();
                    kill(pid, "STOP");
                    return Self(pid);
                }
            }
            sleep(Duration::from_millis(1)).await;
        }
        panic!("nothing is compiled");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        kill(self.0, "CONT");
    }
}

fn kill(pid: u32, signal: &str) {
    let arguments = [format!("-{signal}"), pid.to_string()];
    let _ = Command::new("kill").args(arguments).status();
}

/// Waits until every compiler has ended, and whoever waited for it has done what it meant to.
async fn compiled_all(host: &Host) {
    let end = Instant::now() + SOON;
    while host.metric("stepwell_compiling").await.unwrap() > 0.0 {
        assert!(Instant::now() < end, "it compiles for too long");
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_secs(2)).await;
}

/// A host whose pipeline `x` is at revision 1, and which has to compile `slow` before it can deploy it.
async fn about_to_compile() -> Arc<Host> {
    let mut host = Host::start(&Config::default()).await.unwrap();
    upload(&host, "echo", guest("echo").unwrap()).await;
    upload(&host, "slow", guest("hostile").unwrap()).await;
    host.kill();
    std::fs::remove_dir_all(cache(&host)).unwrap();
    host.restart().await.unwrap();
    let reply = apply(&host, "x", &document("x", "/x", &["echo"])).await;
    assert_eq!(reply.status, StatusCode::CREATED, "{}", text(&reply));
    Arc::new(host)
}

fn begin_apply(host: &Arc<Host>) -> tokio::task::JoinHandle<Reply> {
    let host = host.clone();
    tokio::spawn(async move { apply(&host, "x", &document("x", "/x-slow", &["slow"])).await })
}

const X: &str = "/api/v1/namespaces/default/pipelines/x";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_waited_does_not_undo_what_others_did_meanwhile() {
    let host = about_to_compile().await;
    let first = begin_apply(&host);
    let held = Held::of(&host).await;
    let reply = apply(&host, "x", &document("x", "/x-new", &["echo"])).await;
    assert_eq!(reply.json()["revision"], 2, "{}", text(&reply));
    drop(held);
    let first = first.await.unwrap();
    assert_eq!(
        (first.status, first.code()),
        (StatusCode::CONFLICT, "conflict".to_owned())
    );
    assert!(
        text(&first).contains("it is at revision 2"),
        "{}",
        text(&first)
    );
    assert_eq!(host.get(X).await.unwrap().json()["revision"], 2);
    // Now that it knows, and nothing is left to wait for.
    let again = begin_apply(&host).await.unwrap();
    assert_eq!(again.json()["revision"], 3, "{}", text(&again));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_does_not_bring_back_what_was_deleted_while_it_waited() {
    let host = about_to_compile().await;
    let first = begin_apply(&host);
    let held = Held::of(&host).await;
    let gone = send(host.admin_request(Method::DELETE, X)).await.unwrap();
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    drop(held);
    let first = first.await.unwrap();
    assert_eq!(first.status, StatusCode::CONFLICT, "{}", text(&first));
    let found = host.get(X).await.unwrap();
    assert_eq!(found.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_caller_left_is_not_made_later() {
    let host = about_to_compile().await;
    let first = begin_apply(&host);
    let held = Held::of(&host).await;
    first.abort();
    assert!(first.await.is_err());
    // The host learns of it.
    sleep(Duration::from_millis(500)).await;
    drop(held);
    compiled_all(&host).await;
    let found = host.get(X).await.unwrap().json();
    assert_eq!(found["revision"], 1, "{found}");
    let reply = host.post("/x-slow", "text/plain", "x").await.unwrap();
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compiled_code_goes_with_the_last_who_has_the_component() {
    let host = Host::start(&Config::default()).await.unwrap();
    let version = |name: &str| format!("/api/v1/namespaces/default/plugins/{name}/versions/1.0.0");
    let delete = async |path: String| {
        let request = host.admin_request(Method::DELETE, &path);
        send(request).await.unwrap().status
    };
    upload(&host, "one", guest("echo").unwrap()).await;
    upload(&host, "two", guest("echo").unwrap()).await;
    assert_eq!(compiled(&host).len(), 1);
    assert_eq!(delete(version("one")).await, StatusCode::NO_CONTENT);
    assert_eq!(compiled(&host).len(), 1, "another plugin has it");
    let reply = apply(&host, "p", &document("p", "/p", &["two"])).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    assert_eq!(delete(version("two")).await, StatusCode::CONFLICT);
    assert_eq!(compiled(&host).len(), 1, "a pipeline has it");
    let pipeline = "/api/v1/namespaces/default/pipelines/p".to_owned();
    assert_eq!(delete(pipeline).await, StatusCode::NO_CONTENT);
    assert_eq!(delete(version("two")).await, StatusCode::NO_CONTENT);
    assert_eq!(compiled(&host), [] as [PathBuf; 0]);
    // It may come again.
    upload(&host, "one", guest("echo").unwrap()).await;
    assert_eq!(compiled(&host).len(), 1);

    // What a namespace has no room for is not even compiled.
    let body = json!({"quotas": {"plugins": 0}}).to_string();
    let put = host.admin_request(Method::PUT, "/api/v1/namespaces/full");
    let put = put.header("content-type", "application/json").body(body);
    assert!(send(put).await.unwrap().status.is_success());
    let before = host
        .metric("stepwell_compile_cache_misses_total")
        .await
        .unwrap();
    let path = "/api/v1/namespaces/full/plugins/three/versions/1.0.0";
    let component = tagged("echo", "three", 0);
    let put = host.admin_request(Method::PUT, path).body(component);
    let refused = send(put).await.unwrap();
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::FORBIDDEN, "quota-exceeded".to_owned())
    );
    let after = host
        .metric("stepwell_compile_cache_misses_total")
        .await
        .unwrap();
    assert_eq!(after, before);
    assert_eq!(compiled(&host).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_caller_left_leaves_nothing() {
    let host = Arc::new(Host::start(&Config::default()).await.unwrap());
    let uploading = tokio::spawn({
        let host = host.clone();
        async move {
            host.put_plugin("x", "1.0.0", guest("hostile").unwrap())
                .await
        }
    });
    let held = Held::of(&host).await;
    uploading.abort();
    assert!(uploading.await.is_err());
    sleep(Duration::from_millis(500)).await;
    drop(held);
    compiled_all(&host).await;
    assert_eq!(compiled(&host), [] as [PathBuf; 0]);
    let path = "/api/v1/namespaces/default/plugins/x/versions/1.0.0";
    assert_eq!(host.get(path).await.unwrap().status, StatusCode::NOT_FOUND);
}

/// A host that a test starts itself; it is killed when this is dropped.
struct Own {
    process: Child,
    data: String,
    admin: String,
}

impl Own {
    fn start(directory: &Path, mut command: Command) -> Self {
        let mut process = command
            .args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        let address = |key: &str| ready[key].as_str().unwrap().to_owned();
        Self {
            process,
            data: address("data"),
            admin: address("admin"),
        }
    }

    /// The exit code, once it has ended.
    async fn ended(&mut self) -> Option<i32> {
        let end = Instant::now() + SOON;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not end");
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn put(url: String, body: Vec<u8>) -> StatusCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client
        .put(url)
        .header("content-type", "application/json")
        .body(body);
    let answer = timeout(SOON, send(request)).await;
    answer.expect("an answer").unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(stepwell().unwrap());
    command.arg("serve").stderr(Stdio::piped());
    let mut host = Own::start(directory.path(), command);
    let mut stderr = host.process.stderr.take().unwrap();
    // Each change is a line of the log, of some 300 bytes; a pipe holds 64 KiB.
    let namespace = |number: usize| format!("{}/api/v1/namespaces/n{number}", host.admin);
    for number in 0..600 {
        let status = put(namespace(number), b"{\"quotas\":{}}".to_vec()).await;
        assert_eq!(status, StatusCode::CREATED, "{number}");
    }
    let reply = put(format!("{}/nowhere", host.data), Vec::new()).await;
    assert_eq!(reply, StatusCode::NOT_FOUND);
    kill(host.process.id(), "TERM");
    assert_eq!(host.ended().await, Some(0), "it stopped in order");
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    assert!(
        log.len() > 30_000,
        "that much was in the pipe: {}",
        log.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_words_of_a_host_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(stepwell().unwrap());
    command.arg("serve").stderr(Stdio::piped());
    let mut host = Own::start(directory.path(), command);
    kill(host.process.id(), "TERM");
    assert_eq!(host.ended().await, Some(0));
    let mut log = String::new();
    let mut stderr = host.process.stderr.take().unwrap();
    stderr.read_to_string(&mut log).unwrap();
    let last = log.lines().last().unwrap();
    assert!(last.contains("stopped: every run has finished"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_goes_away_stops_a_host_in_order_unless_it_was_to_outlive_it() {
    for outlives in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let program = stepwell().unwrap();
        let program = program.to_str().unwrap();
        let trap = if outlives { "trap '' HUP;" } else { "" };
        let mut command = Command::new("sh");
        let script = format!("{trap} exec '{program}' serve \"$@\"");
        command
            .args(["-c", &script, "sh"])
            .stderr(std::fs::File::create(&log).unwrap());
        let mut host = Own::start(directory.path(), command);
        kill(host.process.id(), "HUP");
        if outlives {
            sleep(Duration::from_secs(1)).await;
            assert!(host.process.try_wait().unwrap().is_none(), "it goes on");
        } else {
            assert_eq!(host.ended().await, Some(0));
            let log = std::fs::read_to_string(log).unwrap();
            assert!(log.contains("stopped: every run has finished"), "{log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_grow_fail_an_upload_and_not_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let program = stepwell().unwrap();
    let program = program.to_str().unwrap();
    // Blocks of 512 bytes: 2 MiB.
    let script = format!("ulimit -S -f 4096; exec '{program}' serve \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, "sh"])
        .stderr(std::fs::File::create(directory.path().join("log")).unwrap());
    let mut host = Own::start(directory.path(), command);
    let plugin = |name: &str| {
        let path = "/api/v1/namespaces/default/plugins";
        format!("{}{path}/{name}/versions/1.0.0", host.admin)
    };
    let large = put(plugin("large"), tagged("echo", "large", 4 << 20)).await;
    assert_eq!(large, StatusCode::SERVICE_UNAVAILABLE);
    let small = put(plugin("small"), guest("echo").unwrap()).await;
    assert_eq!(small, StatusCode::CREATED);
    kill(host.process.id(), "TERM");
    assert_eq!(host.ended().await, Some(0), "it lives, and stops in order");
}
