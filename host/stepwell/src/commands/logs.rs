use futures::StreamExt as _;
use reqwest::Method;
use serde_json::Value;

use crate::cli::LogsArgs;
use crate::client::{Client, Failure};
use crate::output;

/// Runs `stepwell logs …`.
pub(crate) async fn run(client: &Client, args: LogsArgs, json: bool) -> Result<(), Failure> {
    let mut query: Vec<(&str, String)> = Vec::new();
    for (key, value) in [
        ("pipeline", args.pipeline),
        ("step", args.step),
        ("level", args.level),
    ] {
        query.extend(value.map(|value| (key, value)));
    }
    if !args.follow {
        let reply = client
            .json(client.scoped(Method::GET, "logs").query(&query))
            .await?;
        if json {
            output::json(&reply);
            return Ok(());
        }
        for entry in reply
            .get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            output::line(show(entry));
        }
        return Ok(());
    }
    query.push(("follow", "true".into()));
    let response = client
        .send(client.scoped(Method::GET, "logs").query(&query))
        .await?;
    let mut chunks = response.bytes_stream();
    let mut pending = Vec::new();
    // Nobody may read any more.
    while !output::is_lost()
        && let Some(chunk) = chunks.next().await
    {
        let chunk = chunk.map_err(|error| client.transport(&error))?;
        pending.extend_from_slice(&chunk);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let rest = pending.split_off(end + 1);
            let text = String::from_utf8_lossy(&pending).trim_end().to_owned();
            pending = rest;
            match serde_json::from_str::<Value>(&text) {
                Ok(entry) if !json => output::line(show(&entry)),
                _ if text.is_empty() => {}
                _ => output::line(text),
            }
        }
    }
    Ok(())
}

/// One entry on one line, and what its guest was doing on lines of their own; a guest's control characters must not reach the
/// terminal.
fn show(entry: &Value) -> String {
    let cell = |key: &str| output::cell(entry, key);
    let run = cell("run_id");
    let short = run.get(run.len().saturating_sub(12)..).unwrap_or(&run);
    let mut shown = format!(
        "{}  {:<5}  {}/{}  {short}  {}",
        cell("time"),
        cell("level"),
        cell("pipeline"),
        cell("step"),
        output::clean(&cell("message"))
    );
    let backtrace = entry.pointer("/fields/backtrace").and_then(Value::as_array);
    for name in backtrace.into_iter().flatten().filter_map(Value::as_str) {
        shown.push_str("\n    in ");
        shown.push_str(&output::clean(name));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_follows_its_line_and_nothing_else_breaks_it() {
        let entry = serde_json::json!({
            "time": "t", "level": "error", "pipeline": "p", "step": "s", "run_id": "r",
            "message": "the guest\r\ntrapped",
            "fields": {"trap": "stack-overflow", "backtrace": ["inner\u{1b}[31m", "outer"]},
        });
        assert_eq!(
            show(&entry),
            "t  error  p/s  r  the guest··trapped\n    in inner·[31m\n    in outer"
        );
    }
}
