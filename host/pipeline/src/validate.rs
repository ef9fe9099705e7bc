//! A document against the host: does all that it names exist, and is it free to be taken?

use std::collections::BTreeSet;
use std::sync::Arc;

use semver::Version;
use serde::{Deserialize, Serialize};
use stepwell_core::{BindingKind, Digest, Name, PluginRef, Problem};
use stepwell_document::nearest;

use crate::spec::{Draft, NodeSpec, PathPattern, PipelineSpec, StepDraft};
use crate::{HttpAuth, HttpTriggerSpec, KafkaTriggerSpec, TriggerSpec};

/// What validation must know of the host, gathered by the caller; [`Draft::plugins`] says which plugins matter.
#[derive(Clone, Debug, Default)]
pub struct HostState {
    /// Plugin versions of the namespace: all of those that the document names; others serve as suggestions.
    pub plugins: Vec<KnownPlugin>,
    /// Every binding that the namespace may use.
    pub bindings: Vec<(BindingKind, String)>,
    /// Whose the names of Kafka are.
    pub kafka: KafkaOwners,
    /// Other pipelines, of every namespace: at least those that have a [`TriggerSpec::place`] of the document's triggers.
    pub pipelines: Vec<Arc<KnownPipeline>>,
    /// What it allows of JSON Web Tokens.
    pub jwt: JwtHost,
    /// How many Kafka triggers the document may have; none: as many as it likes.
    pub subscriptions: Option<Subscriptions>,
}

/// Whose Kafka topics and groups are, by what their names begin with; all others are everybody's.
#[derive(Clone, Debug, Default)]
pub struct KafkaOwners(Vec<(String, Name)>);

impl FromIterator<(String, Name)> for KafkaOwners {
    fn from_iter<I: IntoIterator<Item = (String, Name)>>(owners: I) -> Self {
        Self(owners.into_iter().collect())
    }
}

impl KafkaOwners {
    /// Whether pipelines of a namespace may use the topic or group of this name. Where several beginnings fit, the longest decides.
    pub fn allows(&self, namespace: &Name, name: &str) -> bool {
        let fit = self.0.iter().filter(|(start, _)| name.starts_with(start));
        let owner = fit.max_by_key(|(start, _)| start.len());
        owner.is_none_or(|(_, owner)| owner == namespace)
    }

    /// What of a trigger is other namespaces': the keys, from the trigger's on, and the names.
    pub fn refused<'a>(
        &'a self,
        namespace: &'a Name,
        trigger: &'a KafkaTriggerSpec,
    ) -> impl Iterator<Item = (String, &'a str)> {
        let topics = trigger.topics.iter().enumerate();
        // Where it is not said, the group says it.
        let dead_letter = match trigger.has_default_dead_letter() {
            true => "group",
            false => "dead_letter",
        };
        topics
            .map(|(index, topic)| (format!("topics/{index}"), topic))
            .chain([("group".to_owned(), &trigger.group)])
            .chain(
                trigger
                    .output
                    .iter()
                    .map(|topic| ("output".to_owned(), topic)),
            )
            .chain([(dead_letter.to_owned(), &trigger.dead_letter)])
            .filter(|(_, name)| !self.allows(namespace, name))
            .map(|(key, name)| (key, name.as_str()))
    }
}

/// What is left of the subscriptions of a host: each has threads, connections and buffers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriptions {
    /// For this document.
    pub free: usize,
    /// For all documents together.
    pub most: usize,
}

/// What a host allows of the JSON Web Tokens of HTTP triggers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtHost {
    /// Whether the operator has an issuer.
    pub has_issuer: bool,
    /// Origins (`http://host:8080`) from which keys may come without TLS, and from private addresses.
    pub trusted: Vec<String>,
}

impl JwtHost {
    /// Whether the operator trusts what this URL leads to.
    pub fn trusts(&self, url: &str) -> bool {
        self.trusted.iter().any(|origin| {
            url.strip_prefix(origin.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
        })
    }
}

/// One plugin version.
#[derive(Clone, Debug)]
pub struct KnownPlugin {
    /// The plugin.
    pub name: Name,
    /// The version.
    pub version: Version,
    /// The component's digest.
    pub digest: Digest,
    /// The world it targets, with its version.
    pub world: String,
    /// The interfaces it imports, with their versions.
    pub imports: Vec<String>,
}

/// A pipeline and what starts it.
#[derive(Clone, Debug)]
pub struct KnownPipeline {
    /// The tenant.
    pub namespace: Name,
    /// The pipeline.
    pub name: Name,
    /// What starts it.
    pub triggers: Vec<TriggerSpec>,
}

/// A document without mistakes, and what its references resolved to.
#[derive(Clone, Debug)]
pub struct Validated {
    /// The document, typed.
    pub spec: PipelineSpec,
    /// The exact version of each plugin step, in order.
    pub pins: Vec<Pin>,
    /// The document as it was written, in its own order.
    pub document: serde_json::Value,
}

/// The exact plugin version of one step, fixed when the document was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The step.
    #[serde(rename = "id")]
    pub step: Name,
    /// The plugin.
    pub plugin: Name,
    /// Its version.
    pub version: Version,
    /// Its component.
    pub digest: Digest,
}

/// How a plugin is called, by the world it targets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Step,
    Function,
    Unsupported,
}

impl Draft {
    /// Checks the document against the host and pins its plugins.
    ///
    /// # Errors
    /// Every mistake of the document, those found while reading it included.
    pub fn validate(
        mut self,
        namespace: &Name,
        host: &HostState,
    ) -> Result<Validated, Vec<Problem>> {
        let mut found = Found::default();
        let mut pins = Vec::new();
        let mut functions = Vec::new();
        let mut unknown = false;
        for step in &self.steps {
            check_bindings(step, host, &mut found);
            let Some(NodeSpec::Plugin(reference)) = &step.node else {
                unknown |= step.node.is_none();
                continue;
            };
            let Some(plugin) = resolve(step, reference, host, &mut found) else {
                unknown = true;
                continue;
            };
            check_imports(step, plugin, &mut found);
            match role(&plugin.world) {
                Role::Step => {}
                Role::Function => functions.push((step, plugin)),
                Role::Unsupported => {
                    let message = format!(
                        "{} targets {}, which this host does not support as a step yet",
                        shown(plugin),
                        plugin.world
                    );
                    found.push(format!("{}/plugin", step.path), message, None);
                }
            }
            pins.push(Pin {
                step: step.id.clone(),
                plugin: plugin.name.clone(),
                version: plugin.version.clone(),
                digest: plugin.digest,
            });
        }
        if functions.is_empty() {
            // A plugin that nobody knows may yet be a function, but never one among several steps.
            if !unknown || self.steps.len() > 1 {
                self.check_event_triggers(&mut found);
            }
        } else {
            for (step, plugin) in functions {
                self.check_function(step, plugin, &mut found);
            }
        }
        self.check_auth(&host.jwt, &mut found);
        self.check_taken(namespace, host, &mut found);
        self.check_owners(namespace, &host.kafka, &mut found);
        self.check_subscriptions(host.subscriptions, &mut found);
        for (path, message, hint) in found.0 {
            self.problem(&path, message, hint);
        }
        let document = self.document();
        let spec = self.finish()?;
        Ok(Validated {
            spec,
            pins,
            document,
        })
    }

    /// Triggers of a pipeline whose steps take events.
    fn check_event_triggers(&self, found: &mut Found) {
        for (path, http) in self.http_triggers() {
            if http.method.is_none() {
                let message = "'method' is missing: only a plugin that answers HTTP requests itself takes every method";
                found.push(
                    format!("{path}/http"),
                    message,
                    Some("perhaps method: POST".to_owned()),
                );
            }
            if has_rest(http) {
                let message = "only a plugin that answers HTTP requests itself may have a path that ends in {*…}";
                found.push(format!("{path}/http/path"), message, None);
            }
        }
    }

    /// A plugin that answers HTTP requests itself.
    fn check_function(&self, step: &StepDraft, plugin: &KnownPlugin, found: &mut Found) {
        let what = format!(
            "{} answers HTTP requests itself ({})",
            shown(plugin),
            plugin.world
        );
        if self.steps.len() > 1 {
            let message = format!("{what}: it must be the only step of its pipeline");
            found.push(format!("{}/plugin", step.path), message, None);
        }
        if step.retry.is_some() {
            let message = format!("{what}: its requests cannot be retried");
            found.push(format!("{}/retry", step.path), message, None);
        }
        if step.timeout.is_some() {
            let message = format!("{what}: it has no timeout of its own");
            let hint = "give the trigger a timeout, or the step a limit of wall";
            found.push(
                format!("{}/timeout", step.path),
                message,
                Some(hint.to_owned()),
            );
        }
        for (path, trigger) in &self.triggers {
            if matches!(trigger, TriggerSpec::Kafka(_)) {
                let message = format!("{what}: only http triggers can start it");
                found.push(path.clone(), message, None);
            }
        }
    }

    /// Whether the host can tell who calls.
    fn check_auth(&self, host: &JwtHost, found: &mut Found) {
        for (path, http) in self.http_triggers() {
            match &http.auth {
                HttpAuth::Jwt if !host.has_issuer => {
                    let message =
                        "this host has no issuer of its own: its operator has not set [server.jwt]";
                    let hint = "name yours: auth: {jwt: {issuer: …, audience: …, jwks: https://…}}";
                    found.push(format!("{path}/http/auth"), message, Some(hint.to_owned()));
                }
                HttpAuth::OwnJwt(own) => {
                    if own.jwks.starts_with("http://") && !host.trusts(&own.jwks) {
                        let message = "keys that come without TLS prove nothing";
                        let hint = "write https://…; the operator may allow others in [server.jwt] trusted";
                        found.push(
                            format!("{path}/http/auth/jwt/jwks"),
                            message,
                            Some(hint.to_owned()),
                        );
                    }
                }
                HttpAuth::Jwt | HttpAuth::Token | HttpAuth::None => {}
            }
        }
    }

    /// Whether there is room for its Kafka triggers.
    fn check_subscriptions(&self, room: Option<Subscriptions>, found: &mut Found) {
        let wanted = self.kafka_triggers();
        if let Some(Subscriptions { free, most }) = room.filter(|room| wanted > room.free) {
            let message = format!(
                "{wanted} Kafka triggers, where there is room for {free}: a host has {most}, and one namespace three quarters of them while there are others (limits.subscriptions)"
            );
            let hint = "name several topics in one trigger, or ask the operator for more";
            found.push("/triggers".to_owned(), message, Some(hint.to_owned()));
        }
    }

    /// Topics and groups that are for other namespaces.
    fn check_owners(&self, namespace: &Name, owners: &KafkaOwners, found: &mut Found) {
        for (path, trigger) in &self.triggers {
            let TriggerSpec::Kafka(trigger) = trigger else {
                continue;
            };
            for (key, name) in owners.refused(namespace, trigger) {
                // Whose it is, is none of the caller's business.
                let message = format!("'{name}' is not for namespace '{namespace}'");
                let hint =
                    "topics and groups that begin so are another namespace's ([kafka.owners])";
                found.push(
                    format!("{path}/kafka/{key}"),
                    message,
                    Some(hint.to_owned()),
                );
            }
        }
    }

    /// How many of its triggers are subscriptions.
    pub fn kafka_triggers(&self) -> usize {
        self.triggers().filter(|trigger| trigger.is_kafka()).count()
    }

    /// Routes and subscriptions that another pipeline has.
    fn check_taken(&self, namespace: &Name, host: &HostState, found: &mut Found) {
        let others = host
            .pipelines
            .iter()
            .filter(|other| other.namespace != *namespace || self.name() != Some(&other.name));
        for other in others {
            let owner = &other.name;
            for (path, own) in &self.triggers {
                for taken in &other.triggers {
                    match (own, taken) {
                        (TriggerSpec::Http(own), TriggerSpec::Http(taken))
                            if other.namespace == *namespace && own.clashes_with(taken) =>
                        {
                            let message = format!(
                                "the route {} is taken by pipeline '{owner}' ({})",
                                own.shown(),
                                taken.shown()
                            );
                            found.push(format!("{path}/http/path"), message, None);
                        }
                        (TriggerSpec::Kafka(own), TriggerSpec::Kafka(taken))
                            // One that lost its names to another namespace is not deployed any more.
                            if own.shares_with(taken)
                                && host.kafka.refused(&other.namespace, taken).next().is_none() =>
                        {
                            // A tenant does not learn the names of another.
                            let reader = if other.namespace == *namespace {
                                format!("pipeline '{owner}'")
                            } else {
                                "a pipeline of another namespace".to_owned()
                            };
                            let message = format!(
                                "{reader} reads a topic of this trigger in the group '{}' too: each would get a part of the records",
                                own.group
                            );
                            found.push(
                                format!("{path}/kafka/group"),
                                message,
                                Some("choose another group".to_owned()),
                            );
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn http_triggers(&self) -> impl Iterator<Item = (&str, &HttpTriggerSpec)> {
        self.triggers
            .iter()
            .filter_map(|(path, trigger)| match trigger {
                TriggerSpec::Http(http) => Some((path.as_str(), http)),
                TriggerSpec::Kafka(_) => None,
            })
    }
}

/// Mistakes with their JSON pointers; the draft adds lines and columns.
#[derive(Default)]
struct Found(Vec<(String, String, Option<String>)>);

impl Found {
    fn push(&mut self, path: String, message: impl Into<String>, hint: Option<String>) {
        self.0.push((path, message.into(), hint));
    }
}

fn resolve<'h>(
    step: &StepDraft,
    reference: &PluginRef,
    host: &'h HostState,
    found: &mut Found,
) -> Option<&'h KnownPlugin> {
    let path = format!("{}/plugin", step.path);
    let name = &reference.name;
    let known: Vec<&KnownPlugin> = host
        .plugins
        .iter()
        .filter(|plugin| plugin.name == *name)
        .collect();
    if known.is_empty() {
        let names: BTreeSet<&str> = host
            .plugins
            .iter()
            .map(|plugin| plugin.name.as_str())
            .collect();
        let hint = nearest(name.as_str(), names).map_or_else(
            || format!("upload it: stepwell plugin push FILE --name {name}"),
            |name| format!("perhaps {name}"),
        );
        found.push(path, format!("there is no plugin '{name}'"), Some(hint));
        return None;
    }
    let picked = reference
        .version
        .pick(known.iter().map(|plugin| &plugin.version));
    if picked.is_none() {
        let mut versions: Vec<&Version> = known.iter().map(|plugin| &plugin.version).collect();
        versions.sort_by(|a, b| b.cmp(a));
        let shown: Vec<String> = versions.iter().take(10).map(ToString::to_string).collect();
        let message = match &reference.version {
            stepwell_core::VersionSelector::Latest => {
                format!("plugin '{name}' has only pre-releases")
            }
            version => format!("plugin '{name}' has no version {version}"),
        };
        found.push(
            path,
            message,
            Some(format!("there are {}", shown.join(", "))),
        );
    }
    known
        .into_iter()
        .find(|plugin| Some(&plugin.version) == picked)
}

fn check_imports(step: &StepDraft, plugin: &KnownPlugin, found: &mut Found) {
    for kind in BindingKind::ALL {
        let import = plugin.imports.iter().find(|import| {
            let interface = import.split('@').next().unwrap_or_default();
            BindingKind::of_interface(interface) == Some(kind)
        });
        match (import, step.grant_kinds.contains(&kind)) {
            (Some(import), false) => {
                let message = format!(
                    "{} imports {import}, and the step has no '{kind}' grant",
                    shown(plugin)
                );
                let action = kind.actions().first().map_or("", |action| action.as_str());
                let hint = format!("add {kind}: {{NAME: [{action}]}} to its grants");
                found.push(format!("{}/plugin", step.path), message, Some(hint));
            }
            (None, true) => {
                let message = format!(
                    "{} imports nothing that needs a '{kind}' grant",
                    shown(plugin)
                );
                found.push(
                    format!("{}/grants/{kind}", step.path),
                    message,
                    Some("leave it out".to_owned()),
                );
            }
            _ => {}
        }
    }
    // The other way round is no mistake: some languages always import it, and calls without a grant are denied.
    let sends = |import: &String| {
        let interface = import.split('@').next().unwrap_or_default();
        ["wasi:http/outgoing-handler", "wasi:http/client"].contains(&interface)
    };
    if !step.grants.http().is_empty() && !plugin.imports.iter().any(sends) {
        let message = format!("{} imports nothing that sends HTTP requests", shown(plugin));
        found.push(
            format!("{}/grants/http", step.path),
            message,
            Some("leave it out".to_owned()),
        );
    }
}

fn check_bindings(step: &StepDraft, host: &HostState, found: &mut Found) {
    for place in &step.grant_places {
        let kind = place.kind;
        let names: BTreeSet<&str> = host
            .bindings
            .iter()
            .filter(|(other, _)| *other == kind)
            .map(|(_, name)| name.as_str())
            .collect();
        if names.contains(place.binding.as_str()) {
            continue;
        }
        let hint = match nearest(&place.binding, names.iter().copied()) {
            Some(name) => format!("perhaps {name}"),
            None if names.is_empty() => {
                format!("configure it as [bindings.{kind}.{}]", place.binding)
            }
            None => {
                let all: Vec<&str> = names.into_iter().take(20).collect();
                format!("configured are {}", all.join(", "))
            }
        };
        let message = format!("there is no {kind} binding '{}'", place.binding);
        found.push(place.path.clone(), message, Some(hint));
    }
}

fn role(world: &str) -> Role {
    match world.split('@').next() {
        Some("stepwell:pipeline/step") => Role::Step,
        Some("wasi:http/proxy" | "wasi:http/service") => Role::Function,
        _ => Role::Unsupported,
    }
}

fn has_rest(http: &HttpTriggerSpec) -> bool {
    http.path
        .parse::<PathPattern>()
        .is_ok_and(|path| path.has_rest())
}

fn shown(plugin: &KnownPlugin) -> String {
    format!("'{}@{}'", plugin.name, plugin.version)
}
