use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::lane::{Closed, Moved};
use crate::room::Room;
use crate::store::StoreState;

/// The guest of an instance that answers several calls: it is executed by whoever polls this as long as its calls pay for it, and in
/// the slow lane otherwise.
pub(crate) struct Paced<S: StoreState, T: 'static> {
    room: Arc<Room<S>>,
    at: At<T>,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

enum At<T> {
    Here(Boxed<T>),
    Lane(Moved<Turn<T>>),
    Ended,
}

/// Why it leaves the slow lane.
enum Turn<T> {
    Over(T),
    /// Calls have come that pay for the next polls.
    Back(Boxed<T>),
}

impl<S: StoreState, T: Send + 'static> Paced<S, T> {
    /// The future owns all that the guest needs, since it may go to another thread between two polls.
    pub(crate) fn new(
        room: &Arc<Room<S>>,
        guest: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self {
            room: room.clone(),
            at: At::Here(Box::pin(guest)),
        }
    }

    fn to_lane(&self, guest: Boxed<T>) -> Moved<Turn<T>> {
        let room = self.room.clone();
        let mut guest = Some(guest);
        let turn = poll_fn(move |cx| {
            if room.is_light()
                && let Some(guest) = guest.take()
            {
                return Poll::Ready(Turn::Back(guest));
            }
            match &mut guest {
                Some(guest) => room.execute(guest.as_mut(), cx).map(Turn::Over),
                None => Poll::Pending,
            }
        });
        self.room.lane().take(self.room.tenant(), turn)
    }
}

impl<S: StoreState, T: 'static> Drop for Paced<S, T> {
    fn drop(&mut self) {
        if self.room.is_large() {
            // Giving its memory back takes as long as many calls.
            match std::mem::replace(&mut self.at, At::Ended) {
                At::Here(guest) => self.room.lane().discard(guest),
                At::Lane(moved) => moved.discard(),
                At::Ended => {}
            }
        }
    }
}

impl<S: StoreState, T: Send + 'static> Future for Paced<S, T> {
    type Output = Result<T, Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.at, At::Ended) {
                At::Here(mut guest) if this.room.is_light() => {
                    let polled = this.room.execute_here(guest.as_mut(), cx);
                    if polled.is_pending() {
                        this.at = At::Here(guest);
                    }
                    return polled.map(Ok);
                }
                At::Here(guest) => this.at = At::Lane(this.to_lane(guest)),
                At::Lane(mut moved) => match Pin::new(&mut moved).poll(cx) {
                    Poll::Pending => {
                        this.at = At::Lane(moved);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(Turn::Over(outcome))) => return Poll::Ready(Ok(outcome)),
                    Poll::Ready(Ok(Turn::Back(guest))) => this.at = At::Here(guest),
                    Poll::Ready(Err(closed)) => return Poll::Ready(Err(closed)),
                },
                At::Ended => return Poll::Pending,
            }
        }
    }
}
