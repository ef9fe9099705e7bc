//! What client commands print: tables for people, JSON for programs.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::client::Failure;

/// Prints one JSON value.
pub(crate) fn json(value: &Value) {
    line(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Why something that was printed is lost.
static LOST: OnceLock<String> = OnceLock::new();

/// Prints a line of text.
pub(crate) fn line(text: impl AsRef<str>) {
    bytes(format!("{}\n", text.as_ref()).as_bytes());
}

/// Prints bytes as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        let _ = LOST.set(reason(&error));
    }
}

/// Whether there is no use in printing more.
pub(crate) fn is_lost() -> bool {
    LOST.get().is_some()
}

/// Whether everything was printed: a script must not take half of it for all.
pub(crate) fn finish() -> Result<(), Failure> {
    match LOST.get().map(String::as_str) {
        None | Some("") => Ok(()),
        Some(why) => Err(Failure::Local(format!(
            "the output could not be written: {why}"
        ))),
    }
}

/// Whoever closes the pipe has read enough: nothing is wrong then.
fn reason(error: &std::io::Error) -> String {
    if error.kind() == ErrorKind::BrokenPipe {
        return String::new();
    }
    error.to_string()
}

/// Prints rows under headings, or a sentence when there are none.
pub(crate) fn table(headings: &[&str], rows: Vec<Vec<String>>, none: &str) {
    if rows.is_empty() {
        return line(none);
    }
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    table.add_rows(rows);
    for row in table.lines() {
        line(row.trim_end());
    }
}

/// Without control characters, which must not reach a terminal: what guests and callers wrote is among what is shown.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\t' { '·' } else { c };
    text.chars().map(shown).collect()
}

/// A member of a JSON object as a person reads it.
pub(crate) fn cell(value: &Value, key: &str) -> String {
    match value.get(key) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .map_or_else(|| item.to_string(), str::to_owned)
            })
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    }
}

/// A spinner on stderr for work that takes a while; it is silent where nobody watches.
pub(crate) fn spinner(text: String, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(text);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
