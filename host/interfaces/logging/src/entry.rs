use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use stepwell_core::{Fault, Name, RunId};
use time::OffsetDateTime;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Values of variables and the flow of control.
    Trace,
    /// For someone who looks for a mistake.
    Debug,
    /// For someone who watches.
    Info,
    /// May become a problem.
    Warn,
    /// Did not work.
    Error,
    /// Nothing works after this.
    Critical,
}

impl Level {
    /// Every level, from the least to the most important.
    pub const ALL: [Self; 6] = [
        Self::Trace,
        Self::Debug,
        Self::Info,
        Self::Warn,
        Self::Error,
        Self::Critical,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }

    /// The level with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == word)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The guest called `log`.
    Log,
    /// The guest wrote it to stdout.
    Stdout,
    /// The guest wrote it to stderr.
    Stderr,
    /// The host: how a run failed.
    Run,
}

impl Source {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Run => "run",
        }
    }
}

/// One message, as it was logged. `message` and `context` are a guest's words: [`sanitize`] them before a terminal shows them.
#[derive(Clone, Debug, Serialize)]
pub struct LogEntry {
    /// When the host received it.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// How much it matters.
    pub level: Level,
    /// The tenant.
    pub namespace: Name,
    /// The pipeline.
    pub pipeline: Name,
    /// The pipeline's revision.
    pub revision: u64,
    /// The step; none: the run as a whole.
    pub step: Option<String>,
    /// `name@version` of the plugin, where one spoke.
    pub plugin: Option<String>,
    /// The run.
    pub run_id: RunId,
    /// What the guest gave to group messages by, if anything.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub context: String,
    /// The text.
    pub message: String,
    /// Where the guest was when it was stopped, if this is about that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<Box<Fault>>,
    /// Where it comes from.
    pub source: Source,
}

impl LogEntry {
    /// Bytes that this entry occupies, roughly.
    pub(crate) fn size(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        size_of::<Self>()
            + optional(&self.step)
            + optional(&self.plugin)
            + self.context.len()
            + self.message.len()
            + self.fault.as_ref().map_or(0, |fault| {
                fault.kind.len()
                    + fault
                        .backtrace
                        .iter()
                        .map(|name| size_of::<String>() + name.len())
                        .sum::<usize>()
            })
    }
}

/// One line for a terminal, with nothing in it that a terminal would obey.
impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time) = (self.time.date(), self.time.time());
        let (hour, minute, second, milli) = time.as_hms_milli();
        write!(
            f,
            "{date}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z {:<8} {}",
            self.level, self.pipeline
        )?;
        if let Some(step) = &self.step {
            write!(f, "/{}", sanitize(step))?;
        }
        write!(f, " {}: ", self.run_id)?;
        if !self.context.is_empty() {
            write!(f, "[{}] ", sanitize(&self.context))?;
        }
        f.write_str(&sanitize(&self.message))
    }
}

/// Which entries are wanted; nothing said means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Those of this tenant.
    pub namespace: Option<String>,
    /// Those of this pipeline.
    pub pipeline: Option<String>,
    /// Those of this step.
    pub step: Option<String>,
    /// Those of this level or above.
    pub level: Option<Level>,
    /// Those of this run.
    pub run: Option<String>,
    /// The newest so many.
    pub limit: Option<usize>,
}

impl LogFilter {
    /// Whether an entry is wanted; `limit` says nothing about one entry.
    pub fn matches(&self, entry: &LogEntry) -> bool {
        let wanted =
            |filter: &Option<String>, is: &str| filter.as_ref().is_none_or(|filter| filter == is);
        wanted(&self.namespace, entry.namespace.as_str())
            && wanted(&self.pipeline, entry.pipeline.as_str())
            && self
                .step
                .as_ref()
                .is_none_or(|step| entry.step.as_ref() == Some(step))
            && self.level.is_none_or(|level| entry.level >= level)
            && self
                .run
                .as_ref()
                .is_none_or(|run| entry.run_id.to_string() == *run)
    }
}

/// The text with every control character written out (`\u{1b}`), so that a guest cannot recolour, overwrite or forge the lines
/// of whoever reads its log; likewise the characters that change the direction of writing.
pub fn sanitize(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hostile(c) {
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

fn is_hostile(c: char) -> bool {
    (c.is_control() && c != '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_told_nothing() {
        assert!(matches!(sanitize("plain é 🔑\tx"), Cow::Borrowed(_)));
        assert_eq!(
            sanitize("\x1b[2Jgone\r\nERROR forged\x07\u{202e}\u{9b}"),
            "\\u{1b}[2Jgone\\r\\nERROR forged\\u{7}\\u{202e}\\u{9b}"
        );
    }

    #[test]
    fn levels_are_ordered_and_read_back() {
        for level in Level::ALL {
            assert_eq!(Level::parse(level.as_str()), Some(level));
        }
        assert!(Level::Critical > Level::Error && Level::Trace < Level::Debug);
        assert_eq!(Level::parse("INFO"), None);
    }
}
