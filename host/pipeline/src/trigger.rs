use std::time::Duration;

use stepwell_core::Name;

/// What starts a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub enum TriggerSpec {
    /// An HTTP route.
    Http(HttpTriggerSpec),
    /// A Kafka subscription.
    Kafka(KafkaTriggerSpec),
}

impl TriggerSpec {
    /// Whether it is a subscription.
    pub fn is_kafka(&self) -> bool {
        matches!(self, Self::Kafka(_))
    }

    /// What a trigger of this namespace takes for itself: no two clash that take different things.
    pub fn place(&self, namespace: &Name) -> String {
        match self {
            Self::Http(http) => {
                let shape: Vec<&str> = shape(&http.path).collect();
                format!("http {namespace}{}", shape.join("/"))
            }
            Self::Kafka(kafka) => format!("kafka {}", kafka.group),
        }
    }
}

/// An HTTP route on the data listener.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpTriggerSpec {
    /// Upper-case method; none: every method (HTTP functions only).
    pub method: Option<String>,
    /// Path pattern: literal segments, `{param}` segments and, for functions, a last `{*rest}`.
    pub path: String,
    /// Bytes of the largest request body that is accepted.
    pub max_body: u64,
    /// Time for the whole run.
    pub timeout: Duration,
    /// Who may call.
    pub auth: HttpAuth,
}

/// Who may call an HTTP route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HttpAuth {
    /// Everybody.
    #[default]
    None,
    /// Bearers of a token of this host that may invoke pipelines of the namespace.
    Token,
    /// Bearers of a JSON Web Token of the operator's issuer.
    Jwt,
    /// Bearers of a JSON Web Token of the deployer's own issuer.
    OwnJwt(JwtIssuer),
}

/// Whose JSON Web Tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtIssuer {
    /// What a token's `iss` must be.
    pub issuer: String,
    /// What must be among a token's `aud`.
    pub audience: String,
    /// Where the issuer's public keys are: the URL of a JSON Web Key Set (the operator's may be a file).
    pub jwks: String,
}

impl TriggerSpec {
    /// What both want, and only one pipeline of a namespace can have: in words, `the route GET /a`.
    pub fn contends_with(&self, other: &Self) -> Option<String> {
        match (self, other) {
            (Self::Http(one), Self::Http(other)) if one.clashes_with(other) => {
                Some(format!("the route {}", one.shown()))
            }
            (Self::Kafka(one), Self::Kafka(other)) if one.group == other.group => {
                let topic = one.shared_topic(other)?;
                let group = &one.group;
                Some(format!(
                    "a subscription of the topic '{topic}' in the group '{group}'"
                ))
            }
            _ => None,
        }
    }
}

impl HttpTriggerSpec {
    /// Whether some request would match both routes, and neither more exactly: the same shape of path and a common method.
    pub fn clashes_with(&self, other: &Self) -> bool {
        let methods = match (&self.method, &other.method) {
            (Some(one), Some(another)) => one == another,
            _ => true,
        };
        methods && shape(&self.path).eq(shape(&other.path))
    }

    /// `POST /digits/{set}`, for messages.
    pub(crate) fn shown(&self) -> String {
        let method = self.method.as_deref().unwrap_or("*");
        format!("{method} {}", self.path)
    }
}

/// The segments of a path, without the names of its parameters. Each apply compares a route with all others, so nothing is
/// allocated here.
fn shape(path: &str) -> impl Iterator<Item = &str> {
    path.split('/')
        .map(|segment| match segment.strip_prefix('{') {
            Some(rest) if rest.starts_with('*') => "{*}",
            Some(_) => "{}",
            None => segment,
        })
}

/// A Kafka subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaTriggerSpec {
    /// Topics that are read.
    pub topics: Vec<String>,
    /// Consumer group.
    pub group: String,
    /// Topic for the resulting events, if they are wanted.
    pub output: Option<String>,
    /// Topic for records that cannot be processed.
    pub dead_letter: String,
    /// What may run side by side.
    pub order: Order,
    /// Time for one run.
    pub timeout: Duration,
    /// How often and how long a record is tried.
    pub retry: RunRetry,
}

/// What the name of a group's own dead-letter topic ends with.
pub(crate) const DEAD_LETTER_SUFFIX: &str = ".dlq";

impl KafkaTriggerSpec {
    /// Whether its dead-letter topic is the one that a group has if none is named.
    pub(crate) fn has_default_dead_letter(&self) -> bool {
        self.dead_letter.strip_prefix(&self.group) == Some(DEAD_LETTER_SUFFIX)
    }

    /// Whether both read a topic as members of one group, so that each would get only some of its records.
    pub fn shares_with(&self, other: &Self) -> bool {
        self.group == other.group && self.shared_topic(other).is_some()
    }

    fn shared_topic(&self, other: &Self) -> Option<&String> {
        self.topics
            .iter()
            .find(|topic| other.topics.contains(topic))
    }
}

/// Which records of a partition must be handled one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Those with the same key.
    #[default]
    Key,
    /// All.
    Partition,
    /// None.
    None,
}

/// A Kafka run that errs is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunRetry {
    /// Runs in all, the first included; runs that end `unavailable` do not count.
    pub attempts: u32,
    /// The first pause; it doubles, with full jitter.
    pub backoff: Duration,
    /// Time after the first failure when the record is given up (a record whose runs end `unavailable` never is).
    pub max_age: Duration,
}

impl Default for RunRetry {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_millis(200),
            max_age: Duration::from_secs(3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parameters_do_not_tell_paths_apart() {
        let same = |one: &'static str, other: &'static str| shape(one).eq(shape(other));
        assert!(same("/digits/{set}", "/digits/{other}"));
        assert!(same("/files/{*rest}", "/files/{*all}"));
        for other in [
            "/digits",
            "/digits/set",
            "/digits/{*rest}",
            "/digits/{set}/x",
        ] {
            assert!(!same("/digits/{set}", other), "{other}");
        }
    }
}
