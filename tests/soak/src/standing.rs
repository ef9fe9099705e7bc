use anyhow::{Result, ensure};
use reqwest::Method;
use stepwell_tests::{Config, Host, guest, send};

/// Calls that one instance of `keepsake` answers.
pub(crate) const MAX_CALLS: u64 = 40;

/// Namespaces with a pipeline of `keepsake` each, which must never see what the other's remembers.
pub(crate) const KEEPERS: [&str; 2] = ["east", "west"];

/// An HTTP function, a fresh instance for each request.
const FUNCTION: &str = "\
stepwell: 1
name: function
triggers:
  - http: {path: /echo, timeout: 15s}
  - http: {path: /spin, timeout: 15s}
  - http: {path: \"/big/{*rest}\", timeout: 15s}
steps:
  - {id: only, plugin: hostile-http@1, limits: {wall: 10s}}
";

/// An HTTP function of WASI 0.3 whose instances answer several requests at once.
const SERVICE: &str = "\
stepwell: 1
name: service
defaults: {isolation: {reuse: {max_calls: 200, idle: 2s, concurrency: 8}}}
triggers:
  - http: {path: /about, timeout: 15s}
  - http: {path: /trap, timeout: 15s}
  - http: {path: /trap-midway, timeout: 15s}
  - http: {path: /unfinished, timeout: 15s}
  - http: {path: \"/sleep/{ms}\", timeout: 15s}
  - http: {path: \"/linger/{ms}\", timeout: 15s}
  - http: {path: \"/fields/{count}\", timeout: 15s}
  - http: {path: \"/streams/{count}\", timeout: 15s}
  - http: {path: \"/flood/{count}\", timeout: 15s}
steps:
  - {id: only, plugin: service@1, limits: {wall: 10s}}
";

/// Appends a tag to each record of `marks`, in `marked`.
const MARKS: &str = "\
stepwell: 1
name: marks
triggers:
  - kafka: {topics: [marks], group: marks, output: marked}
steps:
  - {id: only, plugin: tagger@1, config: {tag: \" done\"}}
";

/// A step in instances that are reused, which knows whose it is.
fn keeper(namespace: &str) -> String {
    format!(
        "stepwell: 1\nname: keeper\ntriggers:\n  - http: {{method: POST, path: /keeper, timeout: 10s}}\n\
         defaults: {{isolation: {{reuse: {{max_calls: {MAX_CALLS}, idle: 2s}}}}}}\nsteps:\n\
         \x20 - {{id: only, plugin: keepsake@1, config: {{tag: {namespace}}}, limits: {{cpu: 1s, wall: 5s}}}}\n"
    )
}

/// A host with everything that is deployed once and stays as it is.
pub(crate) async fn host() -> Result<Host> {
    let host = Host::start(&Config::digits()).await?;
    for (name, plugin, document) in [
        ("function", "hostile-http", FUNCTION),
        ("service", "service", SERVICE),
        ("marks", "tagger", MARKS),
    ] {
        host.upload(plugin, "1.0.0", plugin).await?;
        host.apply(name, document).await?;
    }
    host.upload("probe", "1.0.0", "hostile").await?;
    for namespace in KEEPERS {
        let at = format!("/namespaces/{namespace}");
        put(&host, &at, Vec::new()).await?;
        let version = format!("{at}/plugins/keepsake/versions/1.0.0");
        put(&host, &version, guest("keepsake")?).await?;
        put(
            &host,
            &format!("{at}/pipelines/keeper"),
            keeper(namespace).into(),
        )
        .await?;
    }
    host.set_up_digits().await?;
    Ok(host)
}

async fn put(host: &Host, path: &str, body: Vec<u8>) -> Result<()> {
    let path = format!("/api/v1{path}");
    let reply = send(host.admin_request(Method::PUT, &path).body(body)).await?;
    ensure!(
        reply.status.is_success(),
        "{path}: {}",
        String::from_utf8_lossy(&reply.body)
    );
    Ok(())
}
