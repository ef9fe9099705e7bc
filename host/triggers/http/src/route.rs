use std::collections::{BTreeSet, HashMap, HashSet};
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

/// Which request goes to which pipeline. It is built anew for each change and swapped as a whole.
///
/// A literal segment goes before a parameter, and that before `{*rest}`, which matches what is left of a path, be it nothing;
/// of several patterns that match, the first in this order that takes the method is chosen.
#[derive(Default)]
pub struct RouteTable {
    root: Node,
    /// Whose JSON Web Tokens the routes of a namespace take.
    issuers: HashMap<Name, HashSet<JwtIssuer>>,
    namespaces: HashSet<Name>,
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

#[derive(Default)]
struct Node {
    literals: HashMap<String, Node>,
    param: Option<Box<Node>>,
    here: Vec<Arc<Route>>,
    rest: Vec<Arc<Route>>,
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
    /// The routes of these deployments. Namespaces other than `default` have theirs under `/@NAMESPACE`.
    pub fn build(deployments: &[Arc<Deployment>]) -> Self {
        let mut deployments: Vec<_> = deployments.iter().collect();
        // Validation lets no two pipelines have the same route; if it happens all the same, the outcome is at least the same
        // on every host.
        deployments.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let mut table = Self::default();
        for deployment in deployments {
            if !table.namespaces.contains(&deployment.namespace) {
                table.namespaces.insert(deployment.namespace.clone());
            }
            for trigger in &deployment.triggers {
                if let TriggerSpec::Http(spec) = trigger {
                    table.insert(deployment, spec);
                }
            }
        }
        table
    }

    fn insert(&mut self, deployment: &Arc<Deployment>, spec: &HttpTriggerSpec) {
        let (namespace, pipeline) = (&deployment.namespace, &deployment.name);
        let tenant = *namespace != Name::default_namespace();
        let prefix = if tenant {
            format!("/@{namespace}")
        } else {
            String::new()
        };
        let method = spec.method.as_deref().map(Method::try_from);
        let Ok(method) = method.transpose() else {
            tracing::error!(%namespace, %pipeline, method = spec.method, "a route has no usable method");
            return;
        };
        if let HttpAuth::OwnJwt(issuer) = &spec.auth {
            let issuers = self.issuers.entry(namespace.clone()).or_default();
            issuers.insert(issuer.clone());
        }
        let pattern = format!("{prefix}{}", spec.path);
        let mut params = Vec::new();
        let mut node = &mut self.root;
        let mut rest = false;
        let root_of_tenant = tenant && spec.path == "/";
        let shape = if root_of_tenant { &prefix } else { &pattern };
        for segment in shape
            .split('/')
            .skip(1)
            .filter(|segment| !segment.is_empty())
        {
            let name = segment
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'));
            match name.map(|name| name.strip_prefix('*').ok_or(name)) {
                None => node = node.literals.entry(segment.to_owned()).or_default(),
                Some(Err(name)) => {
                    params.push(name.to_owned());
                    node = node.param.get_or_insert_default();
                }
                Some(Ok(name)) => {
                    params.push(name.to_owned());
                    rest = true;
                }
            }
        }
        let route = Arc::new(Route {
            deployment: deployment.clone(),
            method,
            params,
            max_body: spec.max_body,
            timeout: spec.timeout,
            auth: spec.auth.clone(),
            metrics: OnceLock::new(),
            pattern,
        });
        if root_of_tenant {
            // `/@tenant/` is the root of the tenant's paths, `/@tenant` what people type.
            node.literals
                .entry(String::new())
                .or_default()
                .here
                .push(route.clone());
        }
        if rest {
            node.rest.push(route);
        } else {
            node.here.push(route);
        }
    }

    pub(crate) fn issuers(&self) -> &HashMap<Name, HashSet<JwtIssuer>> {
        &self.issuers
    }

    /// Of the deployments, whether or not they have a route.
    pub(crate) fn namespaces(&self) -> &HashSet<Name> {
        &self.namespaces
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
mod tests {
    use std::time::Duration;

    use stepwell_pipeline::{Deployed, HttpAuth, PathPattern};

    use super::*;

    fn table(routes: &[(&str, &str, &str, &str)]) -> RouteTable {
        let deployments: Vec<_> = routes
            .iter()
            .map(|(namespace, name, method, path)| {
                Arc::new(Deployment {
                    namespace: namespace.parse().unwrap(),
                    name: name.parse().unwrap(),
                    revision: 1,
                    triggers: vec![TriggerSpec::Http(HttpTriggerSpec {
                        method: (!method.is_empty()).then(|| (*method).to_owned()),
                        path: (*path).to_owned(),
                        max_body: 1,
                        timeout: Duration::from_secs(1),
                        auth: HttpAuth::None,
                    })],
                    body: Deployed::Steps(Vec::new()),
                })
            })
            .collect();
        RouteTable::build(&deployments)
    }

    fn find(table: &RouteTable, method: &str, path: &str) -> String {
        match table.find(&method.parse().unwrap(), path) {
            Found::Route(route, values) => {
                let params = route.params.iter().zip(values);
                let params: String = params
                    .map(|(name, value)| format!(" {name}={value}"))
                    .collect();
                format!("{}{params}", route.deployment.name)
            }
            Found::WrongMethod(allow) => format!("allow {allow}"),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn the_most_literal_pattern_wins_and_others_stand_in_for_its_methods() {
        let table = table(&[
            ("default", "root", "GET", "/"),
            ("default", "one", "POST", "/digits/{set}"),
            ("default", "other-name", "GET", "/digits/{id}"),
            ("default", "train", "POST", "/digits/train"),
            ("default", "deep", "POST", "/digits/{set}/{item}"),
            ("default", "fun", "", "/fun/{*rest}"),
            ("default", "below", "GET", "/fun/{x}/y"),
        ]);
        for (method, path, expected) in [
            ("GET", "/", "root"),
            ("HEAD", "/", "root"),
            ("POST", "/", "allow GET, HEAD"),
            ("POST", "/digits/a", "one set=a"),
            ("GET", "/digits/a", "other-name id=a"),
            ("POST", "/digits/train", "train"),
            ("POST", "/d%69gits/train", "train"),
            ("GET", "/digits/train", "other-name id=train"),
            ("PUT", "/digits/train", "allow GET, HEAD, POST"),
            ("OPTIONS", "/digits/x", "allow GET, HEAD, POST"),
            ("POST", "/digits/a%2Fb", "one set=a%2Fb"),
            ("POST", "/digits/a/b", "deep set=a item=b"),
            ("POST", "/digits/", "nothing"),
            ("POST", "/digits", "nothing"),
            ("POST", "/digits/a/b/c", "nothing"),
            ("POST", "//digits/a", "nothing"),
            ("GET", "/fun", "fun rest="),
            ("GET", "/fun/", "fun rest="),
            ("BREW", "/fun/a//b/", "fun rest=a//b/"),
            ("GET", "/fun/a/y", "below x=a"),
            ("POST", "/fun/a/y", "fun rest=a/y"),
            ("GET", "/funny", "nothing"),
            ("GET", "*", "nothing"),
            ("GET", "/%ff", "nothing"),
        ] {
            assert_eq!(find(&table, method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn tenants_and_the_host_keep_their_paths() {
        let table = table(&[
            ("default", "everything", "", "/{*rest}"),
            ("default", "two", "GET", "/{a}/{b}"),
            ("acme", "root", "GET", "/"),
            ("acme", "item", "GET", "/items/{id}"),
        ]);
        for (path, expected) in [
            ("/", "everything rest="),
            ("/x", "everything rest=x"),
            ("/x/y", "two a=x b=y"),
            ("/@acme", "root"),
            ("/@acme/", "root"),
            ("/@acme/items/1", "item id=1"),
            ("/%40acme/items/1", "item id=1"),
            ("/@acme/x", "nothing"),
            ("/@other/x", "nothing"),
            ("/%40other/x", "nothing"),
            ("/v2/models/x", "nothing"),
            ("/%762/models/x", "nothing"),
            ("/v1/models", "nothing"),
            ("/v1/other", "two a=v1 b=other"),
            ("/v22", "everything rest=v22"),
        ] {
            assert_eq!(find(&table, "GET", path), expected, "{path}");
        }
    }

    #[test]
    fn ten_thousand_routes_are_found_as_fast_as_ten() {
        fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
            let started = std::time::Instant::now();
            let result = work();
            (started.elapsed().as_secs_f64(), result)
        }
        let names: Vec<(String, String)> = (0..10_000)
            .map(|n| (format!("p{n}"), format!("/area-{}/p{n}/{{id}}", n % 100)))
            .collect();
        let routes: Vec<_> = names
            .iter()
            .map(|(name, path)| ("default", name.as_str(), "POST", path.as_str()))
            .collect();
        let small = table(&routes[..10]);
        let (few, _) = timed(|| table(&routes[..1_000]));
        let (many, large) = timed(|| table(&routes));
        // In proportion it is ten times as much; if each route looked at all others, it would be a hundred times.
        assert!(many < few * 50.0, "{few} s, {many} s");
        let lookups = |table: &RouteTable, among: usize| {
            timed(|| {
                for n in 0..50_000 {
                    let n = n % among;
                    let path = format!("/area-{}/p{n}/7", n % 100);
                    let found = table.find(&Method::POST, &path);
                    assert!(matches!(found, Found::Route(_, values) if values == ["7"]));
                }
            })
            .0
        };
        let (few, many) = (lookups(&small, 10), lookups(&large, 10_000));
        assert!(many < few * 100.0, "{few} s, {many} s");
        assert_eq!(find(&large, "POST", "/area-99/p9999/x"), "p9999 id=x");
        assert_eq!(find(&large, "POST", "/area-98/p9999/x"), "nothing");
    }

    #[test]
    fn what_is_reserved_here_is_refused_at_apply() {
        for prefix in RESERVED {
            let path = format!("/{}/x", prefix.join("/"));
            assert!(path.parse::<PathPattern>().is_err(), "{path}");
        }
        assert!("/@acme/x".parse::<PathPattern>().is_err());
    }
}
