use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter;
use std::sync::{Arc, OnceLock};

use http::Method;
use stepwell_core::Name;
use stepwell_pipeline::{Deployment, HttpAuth, HttpTriggerSpec, JwtIssuer, TriggerSpec};

use crate::percent;
use crate::telemetry::RouteMetrics;

/// What the host keeps for itself: no pattern of a pipeline matches these, `/{*rest}` included.
const RESERVED: [&[&str]; 8] = [
    &["v2"],
    &["v1", "models"],
    &["langserve"],
    &["runs"],
    &["threads"],
    &["assistants"],
    &["monitoring"],
    &["pinecone"],
];

/// Which request goes to which pipeline. A change makes another table, which shares with this one all that it leaves as it is,
/// and is swapped as a whole.
///
/// A literal segment goes before a parameter, and that before `{*rest}`, which matches what is left of a path, be it nothing;
/// of several patterns that match, the first in this order that takes the method is chosen.
#[derive(Clone, Default)]
pub(crate) struct RouteTable {
    root: Node,
    /// What it was made from, in the order of namespaces and names.
    deployments: Vec<Arc<Deployment>>,
    /// Whose JSON Web Tokens the routes of a namespace take.
    issuers: Arc<HashMap<Name, HashSet<JwtIssuer>>>,
}

/// One trigger of one revision.
pub(crate) struct Route {
    pub(crate) deployment: Arc<Deployment>,
    pub(crate) method: Option<Method>,
    pub(crate) params: Vec<String>,
    pub(crate) max_body: u64,
    pub(crate) timeout: std::time::Duration,
    pub(crate) auth: HttpAuth,
    metrics: OnceLock<RouteMetrics>,
    pattern: String,
}

impl Route {
    /// Its metrics, which exist from its first request on: thousands of routes may never have one.
    pub(crate) fn metrics(&self) -> &RouteMetrics {
        let deployment = &self.deployment;
        let (namespace, pipeline) = (deployment.namespace.as_str(), deployment.name.as_str());
        self.metrics
            .get_or_init(|| RouteMetrics::new(namespace, pipeline, &self.pattern))
    }
}

/// Shared between tables; a change copies those on its way.
#[derive(Clone, Default)]
struct Node {
    literals: HashMap<Arc<str>, Arc<Node>>,
    param: Option<Arc<Node>>,
    here: Vec<Arc<Route>>,
    rest: Vec<Arc<Route>>,
}

/// Where a pattern's routes are in the tree.
struct Place<'a> {
    segments: Vec<Segment<'a>>,
    rest: bool,
}

enum Segment<'a> {
    Literal(&'a str),
    Param,
}

impl Node {
    /// The routes of a place, with the nodes on the way made where they are missing.
    fn routes(&mut self, place: &Place<'_>) -> &mut Vec<Arc<Route>> {
        let mut node = self;
        for segment in &place.segments {
            node = Arc::make_mut(match *segment {
                Segment::Param => node.param.get_or_insert_default(),
                Segment::Literal(segment) => node.literals.entry(segment.into()).or_default(),
            });
        }
        if place.rest {
            &mut node.rest
        } else {
            &mut node.here
        }
    }

    /// Takes a deployment's routes out of a place, and the nodes that are empty then.
    fn remove(&mut self, segments: &[Segment<'_>], deployment: &Arc<Deployment>) {
        match segments {
            [] => {
                let stays = |route: &Arc<Route>| !Arc::ptr_eq(&route.deployment, deployment);
                self.here.retain(stays);
                self.rest.retain(stays);
            }
            [Segment::Param, below @ ..] => {
                if let Some(child) = &mut self.param {
                    let child = Arc::make_mut(child);
                    child.remove(below, deployment);
                    if child.is_empty() {
                        self.param = None;
                    }
                }
            }
            [Segment::Literal(segment), below @ ..] => {
                if let Some(child) = self.literals.get_mut(*segment) {
                    let child = Arc::make_mut(child);
                    child.remove(below, deployment);
                    if child.is_empty() {
                        self.literals.remove(*segment);
                    }
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.literals.is_empty()
            && self.param.is_none()
            && self.here.is_empty()
            && self.rest.is_empty()
    }
}

/// What a request finds.
pub(crate) enum Found {
    /// A route, and what its parameters stand for, still percent-encoded.
    Route(Arc<Route>, Vec<String>),
    /// Routes of other methods, named as in the header `Allow`.
    WrongMethod(String),
    Nothing,
}

impl RouteTable {
    /// The table of these deployments: this one, with what differs changed. Namespaces other than `default` have their routes
    /// under `/@NAMESPACE`.
    pub(crate) fn with(&self, deployments: &[Arc<Deployment>]) -> Self {
        let mut deployments = deployments.to_vec();
        // Validation lets no two pipelines have the same route; if it happens all the same, the outcome is at least the same
        // on every host.
        deployments.sort_by(by_name);
        let (gone, new) = differences(&self.deployments, &deployments);
        let mut table = Self {
            root: self.root.clone(),
            issuers: self.issuers.clone(),
            deployments: Vec::new(),
        };
        for deployment in &gone {
            for spec in http_triggers(deployment) {
                for place in places(&pattern(deployment, spec)) {
                    table.root.remove(&place.segments, deployment);
                }
            }
        }
        for deployment in &new {
            for spec in http_triggers(deployment) {
                table.insert(deployment, spec);
            }
        }
        if gone
            .iter()
            .chain(&new)
            .any(|changed| own_issuers(changed).next().is_some())
        {
            let mut issuers: HashMap<Name, HashSet<JwtIssuer>> = HashMap::new();
            for deployment in &deployments {
                for issuer in own_issuers(deployment) {
                    let named = issuers.entry(deployment.namespace.clone()).or_default();
                    named.insert(issuer.clone());
                }
            }
            table.issuers = Arc::new(issuers);
        }
        table.deployments = deployments;
        table
    }

    fn insert(&mut self, deployment: &Arc<Deployment>, spec: &HttpTriggerSpec) {
        let (namespace, pipeline) = (&deployment.namespace, &deployment.name);
        let method = spec.method.as_deref().map(Method::try_from);
        let Ok(method) = method.transpose() else {
            tracing::error!(%namespace, %pipeline, method = spec.method, "a route has no usable method");
            return;
        };
        let pattern = pattern(deployment, spec);
        let params = segments(&pattern).filter_map(param);
        let route = Arc::new(Route {
            deployment: deployment.clone(),
            method,
            params: params
                .map(|name| name.strip_prefix('*').unwrap_or(name).to_owned())
                .collect(),
            max_body: spec.max_body,
            timeout: spec.timeout,
            auth: spec.auth.clone(),
            metrics: OnceLock::new(),
            pattern: pattern.clone(),
        });
        for place in places(&pattern) {
            let routes = self.root.routes(&place);
            let before = |other: &Arc<Route>| by_name(&other.deployment, deployment).is_le();
            routes.insert(routes.partition_point(before), route.clone());
        }
    }

    pub(crate) fn issuers(&self) -> &HashMap<Name, HashSet<JwtIssuer>> {
        &self.issuers
    }

    /// Of the deployments, whether or not they have a route.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Name> + Clone {
        let runs = self.deployments.chunk_by(|a, b| a.namespace == b.namespace);
        runs.filter_map(|run| Some(&run.first()?.namespace))
    }

    pub(crate) fn find(&self, method: &Method, path: &str) -> Found {
        let Some(path) = path.strip_prefix('/') else {
            return Found::Nothing;
        };
        let mut search = Search {
            method,
            values: Vec::new(),
            found: None,
            allow: BTreeSet::new(),
        };
        let segments = (!path.is_empty()).then_some(path);
        if is_reserved(path) {
            return Found::Nothing;
        }
        if path.starts_with('@') || path.starts_with("%40") {
            // A tenant's own; the parameters of `default` do not reach in here.
            search.literal(&self.root, path);
        } else {
            search.node(&self.root, segments);
        }
        match search.found {
            Some((route, values)) => Found::Route(route, values),
            None if search.allow.is_empty() => Found::Nothing,
            None => {
                let allow: Vec<&str> = search.allow.iter().map(String::as_str).collect();
                Found::WrongMethod(allow.join(", "))
            }
        }
    }
}

fn by_name(a: &Arc<Deployment>, b: &Arc<Deployment>) -> Ordering {
    (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name))
}

/// What is only in the first and what is only in the second of two lists in the order of names.
fn differences(
    old: &[Arc<Deployment>],
    new: &[Arc<Deployment>],
) -> (Vec<Arc<Deployment>>, Vec<Arc<Deployment>>) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let (mut gone, mut added) = (Vec::new(), Vec::new());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return (gone, added),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                old.next();
                new.next();
                continue;
            }
            (Some(a), Some(b)) => by_name(a, b),
        };
        if order.is_le() {
            gone.extend(old.next().cloned());
        }
        if order.is_ge() {
            added.extend(new.next().cloned());
        }
    }
}

fn http_triggers(deployment: &Deployment) -> impl Iterator<Item = &HttpTriggerSpec> {
    deployment
        .triggers
        .iter()
        .filter_map(|trigger| match trigger {
            TriggerSpec::Http(spec) => Some(spec),
            _ => None,
        })
}

fn own_issuers(deployment: &Deployment) -> impl Iterator<Item = &JwtIssuer> {
    http_triggers(deployment).filter_map(|spec| match &spec.auth {
        HttpAuth::OwnJwt(issuer) => Some(issuer),
        _ => None,
    })
}

/// A trigger's pattern as callers see it.
fn pattern(deployment: &Deployment, spec: &HttpTriggerSpec) -> String {
    if deployment.namespace == Name::default_namespace() {
        spec.path.clone()
    } else {
        format!("/@{}{}", deployment.namespace, spec.path)
    }
}

/// Where a pattern's route is found. `/@tenant/` is the root of the tenant's paths, `/@tenant` what people type.
fn places(pattern: &str) -> impl Iterator<Item = Place<'_>> {
    let mut place = Place {
        segments: Vec::new(),
        rest: false,
    };
    for segment in segments(pattern) {
        match param(segment) {
            None => place.segments.push(Segment::Literal(segment)),
            Some(name) if name.starts_with('*') => place.rest = true,
            Some(_) => place.segments.push(Segment::Param),
        }
    }
    let tenant = pattern
        .strip_suffix('/')
        .filter(|tenant| !tenant.is_empty());
    let root = tenant.map(|tenant| Place {
        segments: [tenant.trim_start_matches('/'), ""]
            .map(Segment::Literal)
            .into(),
        rest: false,
    });
    iter::once(place).chain(root)
}

fn segments(pattern: &str) -> impl Iterator<Item = &str> {
    pattern.split('/').filter(|segment| !segment.is_empty())
}

/// The name in a segment like `{name}` or `{*name}`.
fn param(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

fn is_reserved(path: &str) -> bool {
    let mut segments = path.split('/').map(percent::decode);
    let first = segments.next().flatten();
    RESERVED.iter().any(|prefix| match prefix {
        [literal, rest @ ..] if first.as_deref() == Some(*literal) => {
            let mut segments = segments.clone();
            rest.iter()
                .all(|literal| segments.next().flatten().as_deref() == Some(*literal))
        }
        _ => false,
    })
}

/// One search; it visits each node of the table at most once.
struct Search<'a> {
    method: &'a Method,
    values: Vec<&'a str>,
    found: Option<(Arc<Route>, Vec<String>)>,
    allow: BTreeSet<String>,
}

impl<'a> Search<'a> {
    /// Whether a route was found at or below a node; `path` is what is left of the path, none at its end.
    fn node(&mut self, node: &Node, path: Option<&'a str>) -> bool {
        match path {
            None => self.take(&node.here) || self.rest(node, ""),
            Some(path) => {
                self.literal(node, path) || self.param(node, path) || self.rest(node, path)
            }
        }
    }

    fn literal(&mut self, node: &Node, path: &'a str) -> bool {
        let (segment, left) = split(path);
        let child = match percent::decode(segment) {
            Some(segment) => node.literals.get(segment.as_ref()),
            None => None,
        };
        child.is_some_and(|child| self.node(child, left))
    }

    fn param(&mut self, node: &Node, path: &'a str) -> bool {
        let (segment, left) = split(path);
        let Some(child) = node.param.as_deref().filter(|_| !segment.is_empty()) else {
            return false;
        };
        self.values.push(segment);
        let found = self.node(child, left);
        self.values.pop();
        found
    }

    fn rest(&mut self, node: &Node, path: &'a str) -> bool {
        if node.rest.is_empty() {
            return false;
        }
        self.values.push(path);
        let found = self.take(&node.rest);
        self.values.pop();
        found
    }

    /// The route of this method, if it is among those that match the path.
    fn take(&mut self, routes: &[Arc<Route>]) -> bool {
        let of = |method: &Method| {
            routes
                .iter()
                .find(|route| route.method.as_ref() == Some(method))
        };
        let head_of_get = || of(&Method::GET).filter(|_| *self.method == Method::HEAD);
        let any = || routes.iter().find(|route| route.method.is_none());
        if let Some(route) = of(self.method).or_else(head_of_get).or_else(any) {
            let values = self.values.iter().map(|value| (*value).to_owned());
            self.found = Some((route.clone(), values.collect()));
            return true;
        }
        for method in routes.iter().filter_map(|route| route.method.as_ref()) {
            self.allow.insert(method.to_string());
            if *method == Method::GET {
                self.allow.insert(Method::HEAD.to_string());
            }
        }
        false
    }
}

fn split(path: &str) -> (&str, Option<&str>) {
    path.split_once('/')
        .map_or((path, None), |(segment, left)| (segment, Some(left)))
}

#[cfg(test)]
mod tests;
