use std::time::Duration;

use stepwell_pipeline::{Deployed, HttpAuth, PathPattern};

use super::*;

fn deployments(routes: &[(&str, &str, &str, &str)]) -> Vec<Arc<Deployment>> {
    routes
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
        .collect()
}

fn table(routes: &[(&str, &str, &str, &str)]) -> RouteTable {
    RouteTable::default().with(&deployments(routes))
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
fn a_table_that_was_changed_is_one_that_was_made_anew() {
    const PATHS: [&str; 7] = [
        "/",
        "/a",
        "/a/{x}",
        "/a/{x}/b",
        "/a/{y}/{*rest}",
        "/b/c",
        "/{*all}",
    ];
    let all: Vec<(String, &str, &str, &str)> = ["default", "acme"]
        .iter()
        .flat_map(|namespace| PATHS.iter().map(move |path| (*namespace, *path)))
        .enumerate()
        .flat_map(|(n, (namespace, path))| {
            ["GET", ""].map(|method| (format!("p{n}{}", method.len()), namespace, method, path))
        })
        .collect();
    let every: Vec<_> = all
        .iter()
        .map(|(name, namespace, method, path)| (*namespace, name.as_str(), *method, *path))
        .collect();
    let every = deployments(&every);
    let answers = |table: &RouteTable| {
        let mut answers = Vec::new();
        for prefix in ["", "/@acme"] {
            for path in [
                "", "/", "/a", "/a/1", "/a/1/b", "/a/1/b/2", "/b", "/b/c", "/c/d",
            ] {
                for method in ["GET", "PUT"] {
                    answers.push(find(table, method, &format!("{prefix}{path}")));
                }
            }
        }
        answers
    };
    let mut table = RouteTable::default();
    let mut state = 1_u64;
    for _ in 0..300 {
        let mut now = Vec::new();
        for deployment in &every {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            match state >> 61 {
                0..3 => {}
                // Another revision.
                3 => now.push(Arc::new(Deployment {
                    namespace: deployment.namespace.clone(),
                    name: deployment.name.clone(),
                    revision: 2,
                    triggers: deployment.triggers.clone(),
                    body: Deployed::Steps(Vec::new()),
                })),
                _ => now.push(deployment.clone()),
            }
        }
        let before = (table.clone(), answers(&table));
        table = table.with(&now);
        assert_eq!(answers(&table), answers(&RouteTable::default().with(&now)));
        assert_eq!(answers(&before.0), before.1);
        assert_eq!(table.namespaces().count(), 2);
    }
    let metered = |table: &RouteTable| match table.find(&Method::GET, "/a") {
        Found::Route(route, _) => Arc::as_ptr(&route),
        _ => panic!("/a is there"),
    };
    let full = table.with(&every);
    let fewer = full.with(&every[1..]);
    assert_eq!(metered(&full), metered(&fewer));
    let table = fewer.with(&[]);
    assert!(table.root.is_empty());
    assert_eq!(table.namespaces().count(), 0);
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
