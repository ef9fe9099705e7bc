//! The memory that all guests of a host have together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use stepwell_core::{Blame, ErrorKind, Reuse, StepError};
use stepwell_engine::{Environment, Kept, Plugin};

use crate::hand_made;
use crate::support::{Calling, Host, State, event, generous, guest, host_with, soon};

/// 128 pages for all guests.
fn small() -> Host {
    host_with(|config| config.guest_memory = 8 << 20)
}

/// A step with a memory of so many pages, which grows by so many.
async fn step(host: &Host, pages: u32, more: u32) -> Arc<Plugin<State>> {
    let module = format!(
        r#"
    (memory (export "memory") {pages})
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (if (i32.eq (memory.grow (i32.const {more})) (i32.const -1)) (then (unreachable)))
      (i32.const 16))"#
    );
    host.plugin(hand_made::step(&module)).await
}

async fn call(
    kept: &Kept<State>,
    plugin: &Plugin<State>,
    calling: &Calling,
) -> Result<(), StepError> {
    kept.process(plugin, calling, soon(), event("x"))
        .await
        .map(drop)
}

#[tokio::test]
async fn idle_instances_make_room_for_the_memory_of_others() {
    let host = small();
    let resting = step(&host, 80, 0).await;
    let kept = resting.keep(generous(), Reuse::default());
    let (large, growing) = (step(&host, 80, 0).await, step(&host, 1, 80).await);
    for plugin in [large, growing] {
        call(&kept, &resting, &host.calling()).await.unwrap();
        assert_eq!(kept.idle(), 1);
        host.call(&plugin, generous(), "x").await.unwrap();
        assert_eq!(kept.idle(), 0);
    }
    // What there is not cannot be made.
    let huge = step(&host, 129, 0).await;
    let error = host.call(&huge, generous(), "x").await.unwrap_err();
    assert_eq!(
        (error.kind, error.blame),
        (ErrorKind::Unavailable, Blame::Host)
    );
}

#[tokio::test]
async fn idle_instances_of_many_calls_make_room_too() {
    let host = host_with(|config| config.guest_memory = 6 << 20);
    let plugin = host.plugin(guest("service.wasm")).await;
    let reuse = Reuse {
        concurrency: 2,
        ..Reuse::default()
    };
    let (one, other) = (
        plugin.keep(generous(), reuse),
        plugin.keep(generous(), reuse),
    );
    let calling = host.calling();
    let get = async |kept: &Kept<State>, path: &str| -> Result<Bytes, StepError> {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::builder().uri(path).body(body).unwrap();
        let response = kept.handle(&plugin, &calling, soon(), request).await?;
        Ok(response.into_body().collect().await.unwrap().to_bytes())
    };
    get(&one, "/allocate/4500000").await.unwrap();
    assert_eq!(get(&one, "/count").await.unwrap(), "2");
    assert_eq!(get(&other, "/count").await.unwrap(), "1");
    assert_eq!(get(&one, "/count").await.unwrap(), "1");
}

#[tokio::test]
async fn a_namespace_leaves_a_quarter_of_the_memory_to_the_others() {
    let host = small();
    let step_of = |namespace| Arc::new(Environment::default().of(host.engine.tenant(namespace)));
    let one = step_of("one");
    let large = step(&host, 100, 0).await;
    let large = async |step| {
        large
            .process(host.state_of(step), generous(), soon(), event("x"))
            .await
    };
    large(&one).await.unwrap();

    let two = step_of("two");
    let error = large(&one).await.unwrap_err();
    assert_eq!(
        (error.kind, error.blame),
        (ErrorKind::Unavailable, Blame::Host)
    );
    assert!(
        error.message.contains("6MiB") && error.message.contains("limits.guest_memory"),
        "{error}"
    );

    // Its own idle instances make room for it, and those of others do not.
    let small = step(&host, 16, 0).await;
    let others = small.keep(generous(), Reuse::default());
    call(&others, &small, &host.calling_as(&two)).await.unwrap();
    let medium = step(&host, 60, 0).await;
    let [first, second] = [(); 2].map(|()| medium.keep(generous(), Reuse::default()));
    let calling = host.calling_as(&one);
    call(&first, &medium, &calling).await.unwrap();
    call(&second, &medium, &calling).await.unwrap();
    assert_eq!((first.idle(), second.idle(), others.idle()), (0, 1, 1));

    drop((others, small, two));
    // The other namespace has nothing deployed any more, as soon as its instance has gone.
    let began = Instant::now();
    while let Err(error) = large(&one).await {
        assert!(began.elapsed() < Duration::from_secs(10), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
