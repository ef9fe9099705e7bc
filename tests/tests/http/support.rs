use reqwest::{Method, RequestBuilder};
use stepwell_tests::{Config, Host, Reply, send};

/// A pipeline of one step that does what the event's type says.
pub(crate) const PROBE: &str = "\
stepwell: 1
name: probe
triggers:
  - http: {method: POST, path: '/probe/{set}', max_body: 1KiB, timeout: 5s}
  - http: {method: PUT, path: '/probe/{set}', max_body: 1KiB}
steps:
  - {id: first, plugin: probe@1, limits: {cpu: 100ms, wall: 3s, memory: 16MiB, output: 64KiB}}
";

pub(crate) async fn probe(config: &Config) -> Host {
    let host = Host::start(config).await.unwrap();
    host.upload("probe", "1.0.0", "hostile").await.unwrap();
    host.apply("probe", PROBE).await.unwrap();
    host
}

/// A CloudEvent in binary mode that asks for this behaviour.
pub(crate) fn event(host: &Host, what: &str) -> RequestBuilder {
    host.request(Method::POST, "/probe/a")
        .header("ce-specversion", "1.0")
        .header("ce-id", "1")
        .header("ce-source", "/test")
        .header("ce-type", what)
}

pub(crate) async fn ask(host: &Host, what: &str) -> Reply {
    send(event(host, what)).await.unwrap()
}

/// Every refusal and failure has the same form and says nothing that is not the caller's business.
pub(crate) fn assert_problem(reply: &Reply, status: u16, code: &str) {
    let problem = reply.json();
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (status, code),
        "{problem}"
    );
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(problem["status"], status);
    let run = reply.header("stepwell-run-id");
    assert_eq!(run.len(), 36, "a UUID: {run}");
    assert_eq!(problem["run_id"], run);
    for internal in ["wasm", "backtrace", "/src/", ".rs", "wasmtime", "secret"] {
        assert!(!problem.to_string().contains(internal), "{problem}");
    }
}
