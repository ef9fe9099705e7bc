//! Where requests may go: each rule with its refused twin.

use std::sync::atomic::Ordering;

use stepwell_egress::EgressConfig;
use wasmtime_wasi_http::Error as HttpError;

use crate::server::Server;
use crate::{Names, call, egress, open, request};

#[tokio::test]
async fn a_grant_opens_its_origin_and_no_other() {
    let (server, other) = (Server::start().await, Server::start().await);
    let egress = egress(
        open(),
        &Names::loopback(&["api.example", "sub.api.example"]),
    );
    let mut call = call(&egress, "a", &[&server.origin("api.example")]);
    assert_eq!(
        call.text(&server.url("api.example", "/x?y=1")).await,
        "GET /x"
    );
    assert_eq!(call.text(&server.url("API.Example", "/x")).await, "GET /x");
    for url in [
        server.url("sub.api.example", "/"),
        server.url("127.0.0.1", "/"),
        other.url("api.example", "/"),
        format!("https://api.example:{}/", server.port),
        "http://api.example/".into(),
    ] {
        let error = call.error(&url).await;
        assert!(
            matches!(error, HttpError::HttpRequestDenied),
            "{url}: {error:?}"
        );
    }
    assert_eq!(other.made(), 0);
    assert!(call.noted().contains("the step has no http grant for it"));
    assert!(!call.noted().contains("y=1"), "queries may hold secrets");
}

#[tokio::test]
async fn a_url_that_others_may_read_differently_is_refused() {
    let server = Server::start().await;
    let port = server.port;
    let egress = egress(open(), &Names::loopback(&["good.example"]));
    let grants = [server.origin("good.example"), server.origin("127.0.0.1")];
    let mut call = call(&egress, "a", &[&grants[0], &grants[1]]);
    for authority in [
        format!("good.example@127.0.0.1:{port}"),
        format!("127.0.0.1:{port}@good.example:{port}"),
        format!("user:password@good.example:{port}"),
        format!("2130706433:{port}"),
        format!("0x7f000001:{port}"),
        format!("0177.0.0.1:{port}"),
        format!("127.1:{port}"),
        format!("127.0.0.1.:{port}"),
        format!("good.example.:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("[::ffff:7f00:1]:{port}"),
        "good.example:0".into(),
        "good.example:".into(),
        "good.example:99999".into(),
        format!("good.example:0{port}"),
    ] {
        // What `http` itself does not take never gets this far.
        let Ok(url) = http::Uri::builder()
            .scheme("http")
            .authority(authority.as_str())
            .path_and_query("/")
            .build()
        else {
            continue;
        };
        let error = call.error(&url.to_string()).await;
        assert!(
            matches!(error, HttpError::HttpRequestUriInvalid),
            "{authority}: {error:?}"
        );
    }
    assert_eq!(server.made(), 0);
    // A fragment is the guest's own; it is not sent.
    assert_eq!(
        call.text(&server.url("good.example", "/a#@evil.example/"))
            .await,
        "GET /a"
    );
}

#[tokio::test]
async fn no_tunnels_and_no_mirrors() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&[]));
    let mut call = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    for method in ["CONNECT", "TRACE", "TRACK", "connect", "Trace"] {
        let error = call
            .send(request(method, &server.url("127.0.0.1", "/")))
            .await;
        let error = error.map(drop).unwrap_err();
        assert!(
            matches!(error, HttpError::HttpRequestMethodInvalid),
            "{method}: {error:?}"
        );
    }
    assert_eq!(server.made(), 0);
    let purge = call
        .send(request("PURGE", &server.url("127.0.0.1", "/")))
        .await;
    assert_eq!(crate::text(purge.unwrap()).await, "PURGE /");
}

#[tokio::test]
async fn a_name_that_stands_for_a_private_address_is_blocked_after_its_look_up() {
    let server = Server::start().await;
    let answers: [(&str, &[&[&str]]); 8] = [
        ("loopback.example", &[&["127.0.0.1"]]),
        ("metadata.example", &[&["169.254.169.254"]]),
        ("lan.example", &[&["10.0.0.1", "192.168.1.1"]]),
        ("mapped.example", &[&["::ffff:127.0.0.1"]]),
        ("translated.example", &[&["64:ff9b::7f00:1"]]),
        ("sixtofour.example", &[&["2002:7f00:1::"]]),
        ("v6.example", &[&["::1", "fd00::1", "fe80::1"]]),
        ("zero.example", &[&["0.0.0.0", "::"]]),
    ];
    let names = Names::of(&answers);
    let origins: Vec<String> = answers
        .iter()
        .map(|(name, _)| server.origin(name))
        .collect();
    let origins: Vec<&str> = origins.iter().map(String::as_str).collect();
    let closed = egress(EgressConfig::default(), &names);
    let mut guest = call(&closed, "a", &origins);
    for (name, _) in answers {
        let error = guest.error(&server.url(name, "/")).await;
        assert!(
            matches!(error, HttpError::DestinationIpProhibited),
            "{name}: {error:?}"
        );
    }
    // An address in the URL is no different from one in the DNS.
    for host in [
        "127.0.0.1",
        "169.254.169.254",
        "[::1]",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
    ] {
        let mut guest = call(&closed, "a", &[&server.origin(host)]);
        let error = guest.error(&server.url(host, "/")).await;
        assert!(
            matches!(error, HttpError::DestinationIpProhibited),
            "{host}: {error:?}"
        );
        let note = guest.noted();
        assert!(note.contains("[egress] private"), "{note}");
    }
    let note = guest.noted();
    assert!(
        !note.contains("127.0.0.1") && !note.contains("169.254"),
        "no address is told: {note}"
    );
    assert_eq!(server.made(), 0);
    // The operator's word opens the one, and only the one.
    let opened = egress(open(), &names);
    let mut guest = call(&opened, "a", &origins);
    assert_eq!(
        guest.text(&server.url("loopback.example", "/")).await,
        "GET /"
    );
    assert_eq!(
        guest.text(&server.url("mapped.example", "/")).await,
        "GET /"
    );
    for (name, _) in &answers[1..] {
        if *name != "mapped.example" {
            let error = guest.error(&server.url(name, "/")).await;
            assert!(
                matches!(error, HttpError::DestinationIpProhibited),
                "{name}: {error:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_star_never_opens_private_addresses() {
    let server = Server::start().await;
    let egress = egress(open(), &Names::loopback(&["a.b.example"]));
    let star = format!("http://*.b.example:{}", server.port);
    let url = server.url("a.b.example", "/");
    let mut by_name = call(&egress, "a", &[&server.origin("a.b.example")]);
    assert_eq!(by_name.text(&url).await, "GET /");
    // Not through the connection that is open already either.
    let mut by_star = call(&egress, "a", &[&star]);
    let error = by_star.error(&url).await;
    assert!(
        matches!(error, HttpError::DestinationIpProhibited),
        "{error:?}"
    );
    let mut by_both = call(&egress, "a", &[&star, &server.origin("a.b.example")]);
    assert_eq!(by_both.text(&url).await, "GET /");
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_the_checked_address_is_used() {
    let server = Server::start().await;
    // Allowed the first time, forbidden ever after; and both at once.
    let names = Names::of(&[
        ("rebinding.example", &[&["127.0.0.1"], &["169.254.169.254"]]),
        (
            "mixed.example",
            &[&["10.0.0.1", "127.0.0.1", "169.254.169.254"]],
        ),
    ]);
    let egress = egress(open(), &names);
    let origins = [
        server.origin("rebinding.example"),
        server.origin("mixed.example"),
    ];
    let mut guest = call(&egress, "a", &[&origins[0], &origins[1]]);
    let rebinding = server.url("rebinding.example", "/");
    assert_eq!(guest.text(&rebinding).await, "GET /");
    assert_eq!(names.asked.load(Ordering::Relaxed), 1);
    // A connection that needs a second look-up is checked again.
    let mut elsewhere = call(&egress, "b", &[&origins[0]]);
    let error = elsewhere.error(&rebinding).await;
    assert!(
        matches!(error, HttpError::DestinationIpProhibited),
        "{error:?}"
    );
    assert_eq!(guest.text(&server.url("mixed.example", "/")).await, "GET /");
}

#[tokio::test]
async fn the_hosts_own_listener_is_out_of_reach() {
    let admin = Server::start().await;
    let config = EgressConfig {
        own: vec![([127, 0, 0, 1], admin.port).into()],
        ..open()
    };
    let egress = egress(config, &Names::loopback(&["admin.example"]));
    for host in ["127.0.0.1", "admin.example"] {
        let mut call = call(&egress, "a", &[&admin.origin(host)]);
        let error = call.error(&admin.url(host, "/")).await;
        assert!(
            matches!(error, HttpError::DestinationIpProhibited),
            "{error:?}"
        );
    }
    assert_eq!(admin.made(), 0);
}

#[tokio::test]
async fn the_operator_has_the_last_word_on_hosts() {
    let server = Server::start().await;
    let config = EgressConfig {
        allow: vec!["*.good.example".parse().unwrap()],
        deny: vec!["not.good.example".parse().unwrap()],
        ..open()
    };
    let names = ["api.good.example", "not.good.example", "bad.example"];
    let egress = egress(config, &Names::loopback(&names));
    let origins = names.map(|name| server.origin(name));
    let mut call = call(&egress, "a", &[&origins[0], &origins[1], &origins[2]]);
    assert_eq!(call.text(&server.url(names[0], "/")).await, "GET /");
    for name in &names[1..] {
        let error = call.error(&server.url(name, "/")).await;
        assert!(
            matches!(error, HttpError::HttpRequestDenied),
            "{name}: {error:?}"
        );
    }
    assert!(call.noted().contains("[egress] allow and deny"));
}

#[tokio::test]
async fn redirects_are_the_guests_and_checked_like_any_request() {
    let (server, other) = (Server::start().await, Server::start().await);
    let egress = egress(open(), &Names::loopback(&[]));
    let mut call = call(&egress, "a", &[&server.origin("127.0.0.1")]);
    let path = format!("/redirect/{}", other.url("127.0.0.1", "/secret"));
    let response = call.get(&server.url("127.0.0.1", &path)).await.unwrap();
    assert_eq!(response.status(), 302);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let error = call.error(&location).await;
    assert!(matches!(error, HttpError::HttpRequestDenied), "{error:?}");
    assert_eq!(other.made(), 0);
}
