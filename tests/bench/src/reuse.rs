//! Steps and functions that keep their instances, beside native handlers and beside themselves in fresh instances.

use crate::bench::{Group, Servers, side};

/// An HTTP function and a step of `bytes`, each reused; `steps` are the lengths of the pipelines, from 1.
pub(crate) fn groups(servers: Servers, steps: &[usize], bytes: usize) -> [Group; 2] {
    let hello = vec![
        side(
            "stepwell, reused",
            servers.stepwell,
            "/reused/hello".into(),
            0,
        ),
        side("native hyper", servers.hyper, "/hello".into(), 0),
        side("stepwell, fresh", servers.stepwell, "/hello".into(), 0),
    ];
    let mut echo = vec![
        side(
            "stepwell, 1 step reused",
            servers.stepwell,
            "/reused/echo/1".into(),
            bytes,
        ),
        side("native axum", servers.axum, "/echo".into(), bytes),
        side(
            "stepwell, 1 step fresh",
            servers.stepwell,
            "/echo/1".into(),
            bytes,
        ),
    ];
    echo.extend(steps.iter().skip(1).map(|steps| {
        let name = format!("stepwell, {steps} steps reused");
        let path = format!("/reused/echo/{steps}");
        side(&name, servers.stepwell, path, bytes)
    }));
    [
        Group {
            short: "hello-http reused",
            title: "HTTP function (hello-http, wasi:http), instances reused: GET /hello".into(),
            rate: 0.0,
            sides: hello,
        },
        Group {
            short: "step reused",
            title: format!("step, instances reused: POST {bytes} bytes, echoed"),
            rate: 0.0,
            sides: echo,
        },
    ]
}
