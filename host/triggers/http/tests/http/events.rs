use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use serde_json::json;
use stepwell_core::Event;

use super::{deployment, inspect, one, post, send, spec, step, steps, trigger};

#[tokio::test]
async fn a_plain_request_becomes_an_event_of_the_hosts_making() {
    let spec = spec("POST", "/digits/{set}/{item}");
    let trigger = trigger(&[deployment(spec, 1, steps(vec![inspect()]))]);
    let request = post("/digits/a%20b/%C3%A9?x=1&y=%20").header("content-type", "image/png");
    let reply = send(&trigger, request, "data").await;
    assert_eq!(reply.status, 200);
    let event = reply.json();
    assert_eq!(event["id"].as_str(), reply.header("stepwell-run-id"));
    assert_eq!(event["source"], "/stepwell/default/p");
    assert_eq!(event["type"], "http.request");
    assert_eq!(event["datacontenttype"], "image/png");
    assert_eq!(event["data"], "data");
    let time = event["time"].as_str().unwrap();
    let format = time::format_description::well_known::Rfc3339;
    assert!(time::OffsetDateTime::parse(time, &format).is_ok());
    let expected = json!({
        "httpmethod": "POST", "httppath": "/digits/a%20b/%C3%A9", "httpquery": "x=1&y=%20",
        "httpparamset": "a b", "httpparamitem": "é",
    });
    assert_eq!(event["extensions"], expected);
    // The caller did not speak CloudEvents, so the reply does not either.
    assert_eq!(reply.header("ce-id"), None);
    assert_eq!(reply.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn without_specversion_other_ce_headers_mean_nothing() {
    let trigger = one(inspect());
    let reply = send(
        &trigger,
        post("/p").header("ce-id", "x").header("ce-a-b", "y"),
        "",
    )
    .await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["type"], "http.request");
    assert_eq!(reply.json()["datacontenttype"], json!(null));
}

fn binary() -> http::request::Builder {
    post("/p?q")
        .header("ce-specversion", "1.0")
        .header("ce-id", "42")
        .header("ce-source", "/test")
        .header("ce-type", "a.b")
        .header("content-type", "text/plain")
}

#[tokio::test]
async fn binary_mode_comes_in_and_goes_out() {
    let request = binary()
        .header("ce-subject", "Euro%20%E2%82%AC")
        .header("ce-time", "2026-01-02T03:04:05Z")
        .header("ce-quoted", "\"a \\\"b\\\"\"")
        .header("ce-datacontenttype", "application/lie")
        .header("ce-httpstatus", "500")
        .header("ce-httppath", "/admin")
        .header("ce-httpforged", "x");
    let reply = send(&one(inspect()), request, "hi").await;
    assert_eq!(reply.status, 200);
    let event = reply.json();
    assert_eq!(event["id"], "42");
    assert_eq!(event["source"], "/test");
    assert_eq!(event["type"], "a.b");
    assert_eq!(event["subject"], "Euro €");
    assert_eq!(event["time"], "2026-01-02T03:04:05Z");
    assert_eq!(event["datacontenttype"], "text/plain");
    let expected = json!({
        "quoted": "a \"b\"", "httpmethod": "POST", "httppath": "/p", "httpquery": "q",
    });
    assert_eq!(event["extensions"], expected);
    for (name, value) in [
        ("ce-specversion", Some("1.0")),
        ("ce-id", Some("42")),
        ("ce-subject", Some("Euro%20%E2%82%AC")),
        ("ce-quoted", Some("a%20%22b%22")),
        ("ce-httpmethod", None),
        ("ce-httppath", None),
    ] {
        assert_eq!(reply.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn structured_mode_comes_in() {
    let body = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","httpstatus":"500","x":true,"data":{"n": 1.50}}"#;
    let content_type = "Application/CloudEvents+JSON; charset=utf-8";
    let reply = send(
        &one(inspect()),
        post("/p").header("content-type", content_type),
        body,
    )
    .await;
    assert_eq!(reply.status, 200);
    let event = reply.json();
    assert_eq!(event["id"], "1");
    assert_eq!(event["datacontenttype"], "application/json");
    assert_eq!(event["data"], r#"{"n": 1.50}"#);
    let expected = json!({"x": "true", "httpmethod": "POST", "httppath": "/p"});
    assert_eq!(event["extensions"], expected);
    assert_eq!(reply.header("ce-id"), Some("1"));
}

#[tokio::test]
async fn malformed_cloudevents_are_400() {
    let trigger = one(inspect());
    let without = |missing: &str| {
        let mut request = post("/p");
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
        ] {
            if name != missing {
                request = request.header(name, value);
            }
        }
        request
    };
    for (request, part) in [
        (without("ce-id"), "'id' is missing"),
        (without("ce-source"), "'source' is missing"),
        (without("ce-type"), "'type' is missing"),
        (without("ce-id").header("ce-id", ""), "'id' is missing"),
        (without("").header("ce-id", "2"), "'id' is there twice"),
        (
            without("ce-specversion").header("ce-specversion", "0.3"),
            "not 1.0",
        ),
        (without("").header("ce-time", "noon"), "RFC 3339"),
        (
            without("").header("ce-bad-name", "x"),
            "'bad-name' is no attribute",
        ),
        (without("").header("ce-data", "x"), "'data' is no attribute"),
        (without("").header("ce-subject", "%ff"), "no UTF-8"),
        (
            post("/p").header("content-type", "application/cloudevents+json"),
            "no JSON object",
        ),
    ] {
        let reply = send(&trigger, request, "").await;
        let detail = reply.assert_problem(400, "malformed")["detail"].to_string();
        assert!(
            detail.contains("not a CloudEvent") && detail.contains(part),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn a_cloudevent_of_too_many_extensions_is_400() {
    let mut route = spec("POST", "/p");
    route.max_body = 1 << 20;
    let trigger = trigger(&[deployment(route, 1, steps(vec![inspect()]))]);
    for (count, status) in [(256, 200), (257, 400), (50_000, 400)] {
        let extensions: String = (0..count).map(|i| format!(r#","x{i}":1"#)).collect();
        let body =
            format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{extensions}}}"#);
        let request = post("/p").header("content-type", "application/cloudevents+json");
        let reply = send(&trigger, request, body.leak()).await;
        assert_eq!(reply.status, status, "{count}");
        if status == 400 {
            let detail = reply.assert_problem(400, "malformed")["detail"].to_string();
            assert!(detail.contains("more than 256 extensions"), "{detail}");
        }
    }
}

#[tokio::test]
async fn a_parameter_that_is_no_utf8_is_400() {
    let trigger = trigger(&[deployment(
        spec("POST", "/x/{a}"),
        1,
        steps(vec![inspect()]),
    )]);
    send(&trigger, post("/x/%ff"), "")
        .await
        .assert_problem(400, "malformed");
}

fn event_of(data: &'static str, content_type: Option<&str>) -> Event {
    Event {
        id: "1".to_owned(),
        source: "/s".to_owned(),
        r#type: "t".to_owned(),
        subject: None,
        time: None,
        datacontenttype: content_type.map(str::to_owned),
        extensions: Vec::new(),
        data: Bytes::from_static(data.as_bytes()),
    }
}

const JSON: Option<&str> = Some("application/json");

#[tokio::test]
async fn no_event_is_204() {
    let reply = send(&one(step(|_| Ok(Vec::new()))), binary(), "x").await;
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    assert!(reply.header("stepwell-run-id").is_some());
    assert_eq!(reply.header("content-type"), None);
}

#[tokio::test]
async fn one_event_is_its_data() {
    let trigger = one(step(|_| Ok(vec![event_of("<a/>", Some("text/xml"))])));
    let reply = send(&trigger, post("/p"), "").await;
    assert_eq!((reply.status, &*reply.body), (200, b"<a/>".as_slice()));
    assert_eq!(reply.header("content-type"), Some("text/xml"));
    let trigger = one(step(|_| Ok(vec![event_of("raw", None)])));
    let reply = send(&trigger, post("/p"), "").await;
    assert_eq!(
        (reply.header("content-type"), &*reply.body),
        (None, b"raw".as_slice())
    );
}

#[tokio::test]
async fn several_json_events_are_an_array() {
    let trigger = one(step(|_| {
        let other = event_of("[1, 2.50]", Some("application/vnd.x+json; charset=utf-8"));
        Ok(vec![event_of(r#"{"a":1}"#, JSON), other])
    }));
    let reply = send(&trigger, binary(), "").await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(&*reply.body, br#"[{"a":1},[1, 2.50]]"#);
}

#[tokio::test]
async fn several_events_of_other_types_are_a_batch() {
    let lie = || event_of("{broken", JSON);
    for (second, data) in [
        (
            event_of("text", Some("text/plain")),
            json!({"data": "text"}),
        ),
        (event_of("raw", None), json!({"data_base64": "cmF3"})),
        (lie(), json!({"data_base64": "e2Jyb2tlbg=="})),
    ] {
        let trigger = one(step(move |_| {
            let mut first = event_of("1", JSON);
            first.set_extension("httpstatus", "201");
            first.set_extension("mine", "x");
            Ok(vec![first, second.clone()])
        }));
        let reply = send(&trigger, post("/p"), "").await;
        assert_eq!(reply.status, 201);
        let content_type = "application/cloudevents-batch+json";
        assert_eq!(reply.header("content-type"), Some(content_type));
        let batch = reply.json();
        assert_eq!(batch[0]["specversion"], "1.0");
        assert_eq!(batch[0]["data"], 1);
        assert_eq!(batch[0]["mine"], "x");
        assert_eq!(batch[0]["httpstatus"], json!(null));
        for (member, value) in data.as_object().unwrap() {
            assert_eq!(batch[1][member], *value);
        }
    }
}

#[tokio::test]
async fn a_plugin_chooses_the_status_within_reason() {
    let with = |status: &str| {
        let mut event = event_of("body", Some("text/plain"));
        event.set_extension("httpstatus", status);
        one(step(move |_| Ok(vec![event.clone()])))
    };
    for status in [200, 201, 299, 302, 404, 418, 500, 599] {
        let reply = send(&with(&status.to_string()), binary(), "").await;
        assert_eq!((reply.status, reply.body.len()), (status, 4));
        assert_eq!(reply.header("ce-httpstatus"), None);
    }
    for status in [204, 205, 304] {
        let reply = send(&with(&status.to_string()), post("/p"), "").await;
        assert_eq!((reply.status, reply.body.len()), (status, 0));
        assert_eq!(reply.header("content-type"), None);
    }
    for status in [
        "100",
        "101",
        "199",
        "600",
        "999",
        "-1",
        "",
        "abc",
        "200 OK",
        "200\r\nx: y",
    ] {
        let reply = send(&with(status), post("/p"), "").await;
        reply.assert_problem(500, "failed");
    }
}

/// Keeps what is logged, as text.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Logged {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(
            &mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                line += &format!("{field}={value:?} ");
            },
        );
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn replies_that_cannot_be_sent_do_not_fill_the_log() {
    let trigger = one(step(|_| {
        let mut event = event_of("body", Some("text/plain"));
        event.set_extension("httpstatus", "999");
        Ok(vec![event])
    }));
    let logged = Logged::default();
    let _log = tracing::subscriber::set_default(logged.clone());
    for _ in 0..200 {
        let reply = send(&trigger, post("/p"), "").await;
        reply.assert_problem(500, "failed");
    }
    let lines = logged.0.lock().unwrap();
    let replies: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("a reply cannot be sent"))
        .collect();
    assert!((1..=100).contains(&replies.len()), "{}", replies.len());
    for part in [
        "run_id=",
        "namespace=",
        "pipeline=",
        "999",
        "from 200 to 599",
    ] {
        assert!(replies[0].contains(part), "{part}: {}", replies[0]);
    }
}

#[tokio::test]
async fn what_a_plugin_puts_into_attributes_cannot_break_the_reply() {
    let trigger = one(step(|_| {
        let mut event = event_of("{}", JSON);
        event.id = "1\r\nset-cookie: a=b".to_owned();
        event.subject = Some("\0\u{7f}é\"%".to_owned());
        for (name, value) in [
            ("injected", "x\r\n\r\n<html>"),
            ("stepwell-run-id", "forged"),
            ("content-type", "forged"),
            ("Upper", "forged"),
            ("id", "forged"),
            ("a\r\nb", "forged"),
        ] {
            event.extensions.push((name.to_owned(), value.to_owned()));
        }
        Ok(vec![event])
    }));
    let reply = send(&trigger, binary(), "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("set-cookie"), None);
    assert_eq!(reply.header("ce-id"), Some("1%0D%0Aset-cookie:%20a=b"));
    assert_eq!(reply.header("ce-subject"), Some("%00%7F%C3%A9%22%25"));
    assert_eq!(reply.header("ce-injected"), Some("x%0D%0A%0D%0A<html>"));
    assert!(
        !format!("{:?}", reply.headers).contains("forged"),
        "{:?}",
        reply.headers
    );

    let trigger = one(step(|_| {
        Ok(vec![event_of("x", Some("text/plain\r\nset-cookie: a=b"))])
    }));
    let reply = send(&trigger, post("/p"), "").await;
    assert_eq!(reply.header("set-cookie"), None);
    assert_eq!(
        reply.header("content-type"),
        Some("application/octet-stream")
    );

    let trigger = one(step(|_| {
        let mut event = event_of("{}", JSON);
        event.set_extension("huge", "x".repeat(100_000));
        Ok(vec![event])
    }));
    send(&trigger, binary(), "")
        .await
        .assert_problem(500, "failed");
    assert_eq!(send(&trigger, post("/p"), "").await.status, 200);
}

#[tokio::test]
async fn head_is_answered_by_a_get_route() {
    let trigger = trigger(&[deployment(spec("GET", "/p"), 1, steps(vec![inspect()]))]);
    let request = Request::builder().method("HEAD").uri("/p");
    let reply = send(&trigger, request, "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["extensions"]["httpmethod"], "HEAD");
}
