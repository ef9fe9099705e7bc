//! What the host counts, as Prometheus reads it. What belongs to a pipeline goes with it: in the usual recorder it would stay,
//! and be rendered, for as long as the process lives.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder, SharedString,
    Unit,
};
use stepwell_core::Name;
use stepwell_pipeline::{Deployed, Deployment, Dispatcher, TriggerSpec};

/// Latencies from a function's few microseconds to a run's many seconds. Each bound is a line for every pipeline, step and route.
const SECONDS: [f64; 12] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0,
];

/// So that few wait for each other.
const SHARDS: usize = 16;

/// Every series of this process.
#[derive(Default)]
pub(crate) struct Series {
    counters: Family<AtomicU64>,
    /// The bits of numbers.
    gauges: Family<AtomicU64>,
    histograms: Family<Times>,
    descriptions: Mutex<HashMap<String, SharedString>>,
}

impl Series {
    /// All of it in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        let descriptions = self.descriptions.lock();
        let descriptions = descriptions.unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        self.counters
            .render(&descriptions, "counter", &mut text, |line, counter| {
                line("", "", &counter.load(Ordering::Relaxed));
            });
        self.gauges
            .render(&descriptions, "gauge", &mut text, |line, gauge| {
                line("", "", &f64::from_bits(gauge.load(Ordering::Relaxed)));
            });
        self.histograms
            .render(&descriptions, "histogram", &mut text, |line, times| {
                let mut count = 0;
                for (index, found) in times.found.iter().enumerate() {
                    count += found.load(Ordering::Relaxed);
                    match SECONDS.get(index) {
                        Some(bound) => line("_bucket", &format!("le=\"{bound}\""), &count),
                        None => line("_bucket", "le=\"+Inf\"", &count),
                    }
                }
                let nanos = times.nanos.load(Ordering::Relaxed);
                line("_sum", "", &(nanos as f64 / 1e9));
                line("_count", "", &count);
            });
        text
    }

    /// Drops the series of what is gone. One that somebody still holds would be counted in vain: it goes the next time.
    pub(crate) fn retain(&self, living: &Living<'_>) {
        self.counters.retain(living);
        self.gauges.retain(living);
        self.histograms.retain(living);
    }

    fn describe(&self, name: &KeyName, description: SharedString) {
        let descriptions = self.descriptions.lock();
        let mut descriptions = descriptions.unwrap_or_else(PoisonError::into_inner);
        descriptions.insert(name.as_str().to_owned(), description);
    }
}

impl Recorder for Series {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, description);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, description);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.counters.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.gauges.of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.histograms.of(key))
    }
}

/// What a histogram has seen, in seconds.
#[derive(Default)]
struct Times {
    /// How many up to each bound and above the one before, and how many above the last.
    found: [AtomicU64; SECONDS.len() + 1],
    nanos: AtomicU64,
}

impl HistogramFn for Times {
    fn record(&self, seconds: f64) {
        let place = SECONDS.partition_point(|bound| *bound < seconds);
        if let Some(found) = self.found.get(place) {
            found.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = (seconds * 1e9).round() as u64;
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// The series of one kind.
#[derive(Default)]
struct Family<T>([RwLock<HashMap<Key, One<T>>>; SHARDS]);

/// One series, with its labels as they are rendered.
struct One<T> {
    labels: Arc<str>,
    value: Arc<T>,
}

impl<T: Default> Family<T> {
    fn of(&self, key: &Key) -> Arc<T> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let Some(shard) = self.0.get(hash as usize % SHARDS) else {
            return Arc::default();
        };
        let known = shard.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = known.get(key) {
            return one.value.clone();
        }
        drop(known);
        let mut known = shard.write().unwrap_or_else(PoisonError::into_inner);
        let new = || One {
            labels: labels(key).into(),
            value: Arc::default(),
        };
        let one = known.entry(key.clone()).or_insert_with(new);
        one.value.clone()
    }

    /// `lines` is given what writes one line: of a suffix of the name, a further label and a number.
    fn render(
        &self,
        descriptions: &HashMap<String, SharedString>,
        kind: &str,
        text: &mut String,
        lines: impl Fn(&mut dyn FnMut(&str, &str, &dyn std::fmt::Display), &T),
    ) {
        let mut by_name = BTreeMap::<KeyName, Vec<_>>::new();
        for shard in &self.0 {
            // Nothing is written under the lock: others would wait for it.
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            for (key, one) in shard.iter() {
                let all = by_name.entry(key.name_shared()).or_default();
                all.push((one.labels.clone(), one.value.clone()));
            }
        }
        for (name, all) in by_name {
            let name = name.as_str();
            if let Some(description) = descriptions.get(name) {
                let description = description.replace('\\', "\\\\").replace('\n', "\\n");
                let _ = writeln!(text, "# HELP {name} {description}");
            }
            let _ = writeln!(text, "# TYPE {name} {kind}");
            for (labels, value) in all {
                lines(
                    &mut |suffix, further, number| {
                        let comma = if labels.is_empty() || further.is_empty() {
                            ""
                        } else {
                            ","
                        };
                        let _ = match (&*labels, further) {
                            ("", "") => writeln!(text, "{name}{suffix} {number}"),
                            (labels, further) => {
                                writeln!(
                                    text,
                                    "{name}{suffix}{{{labels}{comma}{further}}} {number}"
                                )
                            }
                        };
                    },
                    &value,
                );
            }
            text.push('\n');
        }
    }

    fn retain(&self, living: &Living<'_>) {
        for shard in &self.0 {
            let known = shard.read().unwrap_or_else(PoisonError::into_inner);
            let gone: Vec<Key> = known
                .keys()
                .filter(|key| !living.has(key))
                .cloned()
                .collect();
            drop(known);
            if gone.is_empty() {
                continue;
            }
            let mut known = shard.write().unwrap_or_else(PoisonError::into_inner);
            for key in gone {
                if known
                    .get(&key)
                    .is_some_and(|one| Arc::strong_count(&one.value) == 1)
                {
                    known.remove(&key);
                }
            }
            if known.capacity() > known.len().saturating_mul(4) {
                known.shrink_to_fit();
            }
        }
    }
}

fn labels(key: &Key) -> String {
    let mut text = String::new();
    for label in key.labels() {
        let value = label.value().replace('\\', "\\\\");
        let value = value.replace('"', "\\\"").replace('\n', "\\n");
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{}=\"{value}\"", label.key());
    }
    text
}

/// Whose series stay.
pub(crate) struct Living<'a> {
    pipelines: HashMap<(&'a str, &'a str), &'a Deployment>,
    dispatcher: &'a Dispatcher,
    groups: &'a HashSet<String>,
}

impl<'a> Living<'a> {
    pub(crate) fn new(
        deployments: &'a [Arc<Deployment>],
        dispatcher: &'a Dispatcher,
        groups: &'a HashSet<String>,
    ) -> Self {
        let key = |one: &'a Arc<Deployment>| ((one.namespace.as_str(), one.name.as_str()), &**one);
        Self {
            pipelines: deployments.iter().map(key).collect(),
            dispatcher,
            groups,
        }
    }

    fn has(&self, key: &Key) -> bool {
        let label = |name: &str| {
            let label = key.labels().find(|label| label.key() == name);
            label.map(Label::value)
        };
        match (label("namespace"), label("pipeline")) {
            // Requests that no pipeline answers.
            (Some(""), _) => true,
            (Some(namespace), Some(pipeline)) => self
                .pipelines
                .get(&(namespace, pipeline))
                .is_some_and(|deployment| {
                    label("step").is_none_or(|step| has_step(deployment, step))
                        && label("route").is_none_or(|route| has_route(deployment, route))
                }),
            (Some(namespace), None) => namespace
                .parse()
                .is_ok_and(|namespace: Name| self.dispatcher.knows(&namespace)),
            (None, _) => label("group").is_none_or(|group| self.groups.contains(group)),
        }
    }
}

fn has_step(deployment: &Deployment, step: &str) -> bool {
    match &deployment.body {
        Deployed::Steps(steps) => steps.iter().any(|one| one.scope.step.as_str() == step),
        Deployed::Function(function) => function.scope.step.as_str() == step,
    }
}

/// A route is its path, after that of its tenant.
fn has_route(deployment: &Deployment, route: &str) -> bool {
    deployment.triggers.iter().any(|trigger| match trigger {
        TriggerSpec::Http(http) => route.ends_with(&http.path),
        TriggerSpec::Kafka(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;
    use stepwell_pipeline::{HttpAuth, HttpTriggerSpec};

    use super::*;

    fn deployment(name: &str, path: &str) -> Arc<Deployment> {
        let http = HttpTriggerSpec {
            method: None,
            path: path.to_owned(),
            max_body: 0,
            timeout: std::time::Duration::ZERO,
            auth: HttpAuth::None,
        };
        Arc::new(Deployment {
            namespace: Name::default_namespace(),
            name: name.parse().unwrap(),
            revision: 1,
            triggers: vec![TriggerSpec::Http(http)],
            body: Deployed::Steps(Vec::new()),
        })
    }

    fn count(pipeline: &'static str, route: &'static str) -> Counter {
        metrics::counter!("requests_total", "namespace" => "default", "pipeline" => pipeline, "route" => route)
    }

    #[test]
    fn series_are_rendered_as_prometheus_reads_them() {
        let series = Series::default();
        with_local_recorder(&series, || {
            metrics::describe_counter!("a_total", "what\nit is");
            metrics::counter!("a_total").increment(2);
            metrics::counter!("a_total").increment(1);
            metrics::counter!("b_total", "x" => "a\"\\\n", "y" => "2").increment(1);
            metrics::gauge!("c").set(1.5);
            metrics::gauge!("c").decrement(2);
            let times = metrics::histogram!("d_seconds", "x" => "1");
            for seconds in [0.000_05, 0.000_06, 7.0, 31.0] {
                times.record(seconds);
            }
        });
        let text = series.render();
        let begin = "# HELP a_total what\\nit is\n# TYPE a_total counter\na_total 3\n\n\
                     # TYPE b_total counter\nb_total{x=\"a\\\"\\\\\\n\",y=\"2\"} 1\n\n\
                     # TYPE c gauge\nc -0.5\n\n\
                     # TYPE d_seconds histogram\nd_seconds_bucket{x=\"1\",le=\"0.00005\"} 1\n\
                     d_seconds_bucket{x=\"1\",le=\"0.0001\"} 2\n";
        assert!(text.starts_with(begin), "{text}");
        let end = "d_seconds_bucket{x=\"1\",le=\"5\"} 2\nd_seconds_bucket{x=\"1\",le=\"30\"} 3\n\
                   d_seconds_bucket{x=\"1\",le=\"+Inf\"} 4\nd_seconds_sum{x=\"1\"} 38.00011\n\
                   d_seconds_count{x=\"1\"} 4\n\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn series_go_with_what_they_are_of_and_those_of_others_count_on() {
        let series = Series::default();
        let dispatcher = Dispatcher::new(1);
        let _known = dispatcher.cpu_account(&Name::default_namespace(), &"stays".parse().unwrap());
        let held = with_local_recorder(&series, || {
            count("stays", "/new").increment(1);
            count("stays", "/old").increment(1);
            count("gone", "/gone").increment(1);
            metrics::gauge!("of_namespace", "namespace" => "default").set(1);
            metrics::gauge!("of_namespace", "namespace" => "gone").set(1);
            metrics::histogram!("of_group_seconds", "group" => "stays").record(1.0);
            metrics::histogram!("of_group_seconds", "group" => "gone").record(1.0);
            metrics::counter!("of_nobody_total").increment(1);
            metrics::counter!("requests_total", "namespace" => "", "pipeline" => "", "route" => "")
                .increment(1);
            count("held", "/held")
        });
        let deployments = [deployment("stays", "/new")];
        let groups = HashSet::from(["stays".to_owned()]);
        let living = Living::new(&deployments, &dispatcher, &groups);
        series.retain(&living);
        let text = series.render();
        for stays in [
            "/new",
            "\"default\"} 1",
            "group=\"stays\"",
            "of_nobody",
            "route=\"\"",
        ] {
            assert!(text.contains(stays), "{stays}: {text}");
        }
        for gone in ["/old", "\"gone\""] {
            assert!(!text.contains(gone), "{gone}: {text}");
        }
        // What somebody counts with is not taken from under him.
        held.increment(1);
        assert!(series.render().contains("route=\"/held\"} 1"));
        drop(held);
        series.retain(&living);
        assert!(!series.render().contains("/held"));
        with_local_recorder(&series, || count("stays", "/new").increment(1));
        assert!(series.render().contains("route=\"/new\"} 2"));
    }
}
