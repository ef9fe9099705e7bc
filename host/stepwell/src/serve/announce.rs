use std::io::{IsTerminal as _, Write as _};

use tracing::{info, warn};

/// The one line of stdout: where the host is. Written by a thread of its own, which may wait for whoever reads it.
pub(super) fn announce(data: String, admin: String, kafka: Option<String>, is_development: bool) {
    let say = move || announcement(&data, &admin, kafka.as_deref(), is_development);
    if let Err(error) = std::thread::Builder::new().name("ready".into()).spawn(say) {
        warn!(%error, "ready, but nobody can be told");
    }
}

fn announcement(data: &str, admin: &str, kafka: Option<&str>, is_development: bool) {
    let mut stdout = std::io::stdout().lock();
    let written = if stdout.is_terminal() {
        let broker = kafka.map_or_else(String::new, |kafka| format!("  kafka {kafka} (embedded)"));
        writeln!(
            stdout,
            "stepwell is ready: data {data}  admin {admin}{broker}{}",
            if is_development {
                "  (development mode: no token is needed)"
            } else {
                ""
            }
        )
    } else {
        let mut line = serde_json::Map::new();
        let mut put = |key: &str, value: String| line.insert(key.to_owned(), value.into());
        put("event", "ready".to_owned());
        put("data", data.to_owned());
        put("admin", admin.to_owned());
        put("version", stepwell_core::VERSION.to_owned());
        if let Some(kafka) = kafka {
            put("kafka", kafka.to_owned());
        }
        if is_development {
            put("warning", "development mode: no token is needed".to_owned());
        }
        let line = serde_json::Value::Object(line);
        writeln!(stdout, "{line}")
    };
    if written.and_then(|()| stdout.flush()).is_err() {
        info!(data, admin, "ready; nobody reads stdout");
    }
}
