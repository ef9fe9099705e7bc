//! The two runtimes of a host: guests are polled on one, and what must answer whatever guests do lives on the other.
//!
//! On the control runtime are the admin listener, readiness, reconciliation and upkeep. It never polls a guest. Everything that takes
//! part in a run is on the data runtime: the data listener, the records of subscriptions and the clients that host functions use.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::Response;
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt, StreamBody};
use stepwell_engine::take_short_turns;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{mpsc, oneshot};

/// Threads of the control runtime: one may be held up by a large document while the other answers.
const CONTROL: usize = 2;

/// Frames of a body that may be on their way from one runtime to the other.
const FRAMES: usize = 4;

/// Time for what is left on a runtime when the host stops.
const STOP: Duration = Duration::from_secs(1);

pub(crate) struct Runtimes {
    control: Runtime,
    data: Runtime,
}

impl Runtimes {
    pub(crate) fn start() -> std::io::Result<Self> {
        let control = Builder::new_multi_thread()
            .worker_threads(CONTROL)
            .thread_name("control")
            .on_thread_start(take_short_turns)
            .enable_all()
            .build()?;
        let data = Builder::new_multi_thread()
            .thread_name("data")
            .on_thread_start(take_short_turns)
            .enable_all()
            .build()?;
        Ok(Self { control, data })
    }

    /// The runtime that guests are polled on.
    pub(crate) fn data(&self) -> Handle {
        self.data.handle().clone()
    }

    /// Runs this on the control runtime, then stops both.
    pub(crate) fn run<T>(self, host: impl Future<Output = T>) -> T {
        let outcome = self.control.block_on(host);
        self.data.shutdown_timeout(STOP);
        self.control.shutdown_timeout(STOP);
        outcome
    }
}

/// Awaits a future here, but what it opens and spawns belongs to that runtime.
pub(crate) async fn opened_on<F: Future>(runtime: &Handle, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let _entered = runtime.enter();
        future.as_mut().poll(cx)
    })
    .await
}

/// Has a response made on that runtime, and its body, which a guest may still be writing. None: the runtime is stopping.
pub(crate) async fn answered_on(
    runtime: &Handle,
    answer: impl Future<Output = Response<stepwell_pipeline::Body>> + Send + 'static,
) -> Option<Response<Body>> {
    let (head, answered) = oneshot::channel();
    runtime.spawn(async move {
        let (parts, mut body) = answer.await.into_parts();
        if http_body::Body::size_hint(&body).exact().is_some() {
            // It is there as a whole.
            let _ = head.send(Response::from_parts(parts, Body::new(body)));
            return;
        }
        let (frames, receiver) = mpsc::channel(FRAMES);
        let received = stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        let relayed = Body::new(StreamBody::new(received.boxed()));
        if head.send(Response::from_parts(parts, relayed)).is_err() {
            return;
        }
        while let Some(frame) = body.frame().await {
            // Whoever hangs up drops the body, which knows what becomes of its run.
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    answered.await.ok()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use axum::body::Bytes;
    use axum::http::HeaderMap;
    use http_body::Frame;
    use http_body_util::Full;

    use super::*;

    type BoxError = Box<dyn std::error::Error + Send + Sync>;

    fn on_a_data_thread() -> bool {
        thread::current().name() == Some("data")
    }

    fn frames(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> Response<stepwell_pipeline::Body> {
        // Each frame is made while the body is polled.
        let frames = stream::iter(frames).map(|frame| {
            assert!(on_a_data_thread());
            frame
        });
        Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
    }

    #[test]
    fn bodies_are_polled_on_the_data_runtime_alone() {
        let runtimes = Runtimes::start().unwrap();
        let data = runtimes.data();
        runtimes.run(async move {
            let trailers = HeaderMap::from_iter([("x".parse().unwrap(), "y".parse().unwrap())]);
            let answer = async {
                assert!(on_a_data_thread());
                let mut all: Vec<Result<Frame<Bytes>, BoxError>> = (0..20)
                    .map(|n| Ok(Frame::data(Bytes::from(vec![n; 3]))))
                    .collect();
                all.push(Ok(Frame::trailers(trailers)));
                frames(all)
            };
            let response = answered_on(&data, answer).await.unwrap();
            assert!(!on_a_data_thread());
            let whole = response.into_body().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()["x"], "y");
            assert_eq!(whole.to_bytes().len(), 60);

            let broken = async {
                frames(vec![
                    Ok(Frame::data(Bytes::from_static(b"begun"))),
                    Err("cut off".into()),
                ])
            };
            let response = answered_on(&data, broken).await.unwrap();
            assert!(response.into_body().collect().await.is_err());

            let whole = async {
                let body = Full::new(Bytes::from_static(b"all"));
                Response::new(BodyExt::boxed_unsync(body.map_err(|never| match never {})))
            };
            let response = answered_on(&data, whole).await.unwrap();
            let hint = http_body::Body::size_hint(response.body());
            assert_eq!(hint.exact(), Some(3));
        });
    }

    #[test]
    fn what_is_opened_on_the_data_runtime_spawns_there() {
        let runtimes = Runtimes::start().unwrap();
        let data = runtimes.data();
        runtimes.run(async move {
            let (sender, spawned) = tokio::sync::oneshot::channel();
            opened_on(&data, async {
                tokio::task::yield_now().await;
                tokio::spawn(async { sender.send(on_a_data_thread()) });
            })
            .await;
            assert!(spawned.await.unwrap());
            assert!(!tokio::spawn(async { on_a_data_thread() }).await.unwrap());
        });
    }
}
