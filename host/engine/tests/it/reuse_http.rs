//! HTTP functions whose requests share instances.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use stepwell_core::{ErrorKind, Limits, Reuse, StepError};
use stepwell_engine::{Body, Kept, Plugin};

use crate::support::{Host, State, generous, guest, host, host_of, soon};

struct Function {
    host: Host,
    plugin: Arc<Plugin<State>>,
    kept: Kept<State>,
}

async fn function(host: Host, limits: Limits) -> Function {
    let plugin = host.plugin(guest("keepsake-http.wasm")).await;
    let reuse = Reuse {
        idle: Duration::from_secs(3600),
        ..Reuse::default()
    };
    Function {
        host,
        kept: plugin.keep(limits, reuse),
        plugin,
    }
}

fn request(path: &str, body: &'static str) -> Request<Body> {
    let body = Full::new(Bytes::from_static(body.as_bytes()))
        .map_err(|never| match never {})
        .boxed_unsync();
    Request::builder()
        .uri(path)
        .header("host", "example.com")
        .body(body)
        .unwrap()
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Function {
    async fn get(&self, path: &str) -> Result<Response<Body>, StepError> {
        let calling = self.host.calling();
        let request = request(path, "a body");
        self.kept
            .handle(&self.plugin, &calling, soon(), request)
            .await
    }

    async fn count(&self) -> String {
        text(self.get("/count").await.unwrap()).await
    }

    /// Waits until so many instances are idle.
    async fn idle(&self, instances: usize) {
        let patience = Instant::now() + Duration::from_secs(20);
        while self.kept.idle() != instances {
            assert!(Instant::now() < patience, "{} are idle", self.kept.idle());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn requests_of_one_function_follow_each_other_in_one_instance() {
    let function = function(host(), generous()).await;
    for count in ["1", "2", "3"] {
        assert_eq!(function.count().await, count);
    }
    let response = function.get("/unknown").await.unwrap();
    assert_eq!(response.status(), 404);
    assert_eq!(function.count().await, "5");
    // In a fresh instance it is always the first.
    for _ in 0..2 {
        let (state, request) = (function.host.state(), request("/count", ""));
        let response = function
            .plugin
            .handle(state, generous(), soon(), request)
            .await;
        assert_eq!(text(response.unwrap()).await, "1");
    }
}

#[tokio::test]
async fn an_instance_is_busy_until_its_guest_has_returned() {
    let function = function(host(), generous()).await;
    assert_eq!(function.count().await, "1");
    // Its head is there and its body is not.
    let midway = function.get("/midway/300").await.unwrap();
    assert_eq!(function.count().await, "1");
    assert_eq!(text(midway).await, "2");
    function.idle(2).await;
    // Its response is complete and it goes on.
    let after = function.get("/after/2000").await.unwrap();
    assert_eq!(text(after).await, "3");
    assert_eq!(function.count().await, "2");
    function.idle(2).await;

    let together = (0..16).map(|_| async {
        let response = function.get("/before/20").await.unwrap();
        text(response).await
    });
    for reply in join_all(together).await {
        assert_ne!(reply, "two requests at once");
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_the_instance_to_its_guest() {
    let function = function(host(), generous()).await;
    drop(function.get("/midway/100").await.unwrap());
    function.idle(1).await;
    assert_eq!(function.count().await, "2");
    // Before the head, dropping the call ends it.
    let waiting = function.get("/before/60000");
    let dropped = tokio::time::timeout(Duration::from_millis(50), waiting).await;
    assert!(dropped.is_err());
    assert_eq!(function.kept.idle(), 0);
    assert_eq!(function.count().await, "1");
}

#[tokio::test]
async fn traps_timeouts_and_bodies_that_are_kept_end_an_instance() {
    let limits = Limits {
        wall: Duration::from_secs(2),
        ..generous()
    };
    let function = function(host(), limits).await;
    for (path, kind) in [
        ("/trap", ErrorKind::Trap),
        ("/before/60000", ErrorKind::Timeout),
    ] {
        assert_eq!(function.count().await, "1");
        let error = function.get(path).await.unwrap_err();
        assert_eq!(error.kind, kind, "{path}: {error}");
    }
    assert_eq!(function.count().await, "1");
    // After the head it is the body that is cut off.
    let mut midway = function.get("/midway/60000").await.unwrap();
    let error = loop {
        match midway.body_mut().frame().await.unwrap() {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("limits.wall"), "{error}");
    assert_eq!(function.count().await, "1");
    // The request's body is the connection's.
    let kept = function.get("/keep-body").await.unwrap();
    assert_eq!(text(kept).await, "2");
    assert_eq!(function.count().await, "1");
    // No response is a mistake, but no trap.
    let error = function.get("/nothing").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert_eq!(function.count().await, "3");
}

#[tokio::test]
async fn a_function_that_is_gone_while_its_guest_goes_on_leaves_nothing() {
    let function = function(host_of(1), generous()).await;
    let response = function.get("/after/200").await.unwrap();
    let Function { host, plugin, kept } = function;
    drop(kept);
    assert_eq!(text(response).await, "1");
    // The only slot comes back when the guest has returned.
    let deadline = Instant::now() + Duration::from_secs(30);
    let (state, request) = (host.state(), request("/count", ""));
    let response = plugin.handle(state, generous(), deadline, request).await;
    assert_eq!(text(response.unwrap()).await, "1");
}
