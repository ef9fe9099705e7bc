use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;

fn lane() -> SlowLane {
    SlowLane::start(2).unwrap()
}

#[tokio::test]
async fn what_is_moved_ends_on_another_thread_of_low_priority() {
    let lane = lane();
    let here = thread::current().id();
    let own = rustix::process::getpriority_process(None).unwrap();
    for round in 0..100 {
        let (there, nice) = lane
            .take(None, async move {
                for _ in 0..round {
                    tokio::task::yield_now().await;
                }
                let nice = rustix::process::getpriority_process(None).unwrap();
                (thread::current().id(), nice)
            })
            .await
            .unwrap();
        assert_ne!(there, here);
        assert_eq!(nice, NICE);
    }
    // Whoever calls keeps the priority that it was started with.
    assert_eq!(rustix::process::getpriority_process(None).unwrap(), own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_and_tasks_stay_with_the_runtime() {
    let lane = lane();
    let moved: Vec<_> = (0..50)
        .map(|number| {
            lane.take(None, async move {
                tokio::time::sleep(Duration::from_millis(number % 7)).await;
                tokio::spawn(async move { (thread::current().name().map(str::to_owned), number) })
                    .await
                    .unwrap()
            })
        })
        .collect();
    for (number, moved) in (0..).zip(moved) {
        let (name, got) = moved.await.unwrap();
        assert_ne!(name.as_deref(), Some("guest-slow"));
        assert_eq!(got, number);
    }
}

#[tokio::test]
async fn more_tasks_than_threads_take_turns() {
    let lane = SlowLane::start(1).unwrap();
    let spinning = lane.take(None, async {
        loop {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(lane.take(None, async { 7 }).await.unwrap(), 7);
    drop::<Moved<()>>(spinning);
}

#[tokio::test]
async fn who_computes_here_is_interrupted_also_after_a_pause() {
    let lane = SlowLane::start(1).unwrap();
    for _ in 0..3 {
        let waited = lane.take(None, async {
            let most = rustix::event::Timespec {
                tv_sec: 60,
                tv_nsec: 0,
            };
            rustix::event::poll(&mut [], Some(&most))
        });
        assert_eq!(waited.await.unwrap(), Err(rustix::io::Errno::INTR));
        // The threads have nothing to do, and wait.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn namespaces_take_turns_however_many_calls_each_has() {
    let lane = SlowLane::start(1).unwrap();
    let memory = Arc::new(crate::memory::GuestMemory::new(1 << 20));
    let tenants = ["one", "two", "other"].map(|name| memory.tenant(name));
    let [one, two, other] = &tenants;
    // Two of them keep the threads, each turn for long.
    let spinning: Vec<Moved<()>> = (0..200)
        .map(|number| {
            let tenant = if number % 2 == 0 { one } else { two };
            lane.take(Some(tenant), async {
                loop {
                    thread::sleep(Duration::from_millis(5));
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for tenant in [Some(other), None] {
        let began = std::time::Instant::now();
        let turns = lane.take(tenant, async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        });
        turns.await.unwrap();
        // A round of all calls takes half a second.
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    drop(spinning);
    // Nothing of whoever has gone is left.
    let left = || {
        let ready = lane.queue.lock();
        (ready.lines.len(), ready.turns.len(), ready.running.len())
    };
    for _ in 0..1000 {
        if left() == (0, 0, 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{:?} are left", left());
}

#[tokio::test]
async fn a_namespace_does_not_keep_all_threads() {
    let lane = SlowLane::start(1).unwrap();
    let memory = Arc::new(crate::memory::GuestMemory::new(1 << 20));
    let (one, other) = (memory.tenant("one"), memory.tenant("other"));
    let counter = || Arc::new(AtomicUsize::new(0));
    let (turns, running, most) = (counter(), counter(), counter());
    let long: Vec<Moved<()>> = (0..4)
        .map(|_| {
            let (turns, running, most) = (turns.clone(), running.clone(), most.clone());
            lane.take(Some(&one), async move {
                loop {
                    turns.fetch_add(1, Ordering::SeqCst);
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(300));
                    running.fetch_sub(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let before = turns.load(Ordering::SeqCst);
    for _ in 0..10 {
        lane.take(Some(&other), tokio::task::yield_now())
            .await
            .unwrap();
    }
    let meanwhile = turns.load(Ordering::SeqCst) - before;
    assert!(
        meanwhile < 5,
        "waited for {meanwhile} turns of who keeps them"
    );
    assert_eq!(most.load(Ordering::SeqCst), 1);
    drop(long);
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn reaches(count: &AtomicUsize, wanted: usize) {
    for _ in 0..1000 {
        if count.load(Ordering::SeqCst) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} of {wanted} were dropped", count.load(Ordering::SeqCst));
}

#[tokio::test]
async fn whoever_drops_it_ends_it_whether_it_waits_or_runs() {
    let lane = lane();
    let dropped = Arc::new(AtomicUsize::new(0));
    let waits = {
        let held = Counted(dropped.clone());
        lane.take(None, async move {
            let _held = held;
            std::future::pending::<()>().await;
        })
    };
    let runs = {
        let held = Counted(dropped.clone());
        lane.take(None, async move {
            let _held = held;
            loop {
                tokio::task::yield_now().await;
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(waits);
    drop::<Moved<()>>(runs);
    reaches(&dropped, 2).await;
    assert_eq!(lane.take(None, async { 1 }).await.unwrap(), 1);
}

/// Tells on which thread it is dropped.
struct Told(std::sync::mpsc::Sender<Option<String>>);

impl Drop for Told {
    fn drop(&mut self) {
        let name = thread::current().name().map(str::to_owned);
        let _ = self.0.send(name);
    }
}

#[tokio::test]
async fn what_takes_long_to_drop_is_dropped_in_the_lane_before_others_run() {
    let lane = SlowLane::start(1).unwrap();
    let (sender, dropped) = std::sync::mpsc::channel();
    let told = Told(sender.clone());
    let waits = lane.take(None, async move {
        let _told = told;
        std::future::pending::<()>().await;
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let turns = Arc::new(AtomicUsize::new(0));
    let spinning: Vec<Moved<()>> = (0..100)
        .map(|_| {
            let turns = turns.clone();
            lane.take(None, async move {
                loop {
                    turns.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(1));
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let before = turns.load(Ordering::SeqCst);
    waits.discard();
    let told = Told(sender);
    lane.discard(async move {
        let _told = told;
    });
    for _ in 0..2 {
        assert_eq!(dropped.recv().unwrap().as_deref(), Some("guest-slow"));
    }
    let meanwhile = turns.load(Ordering::SeqCst) - before;
    assert!(meanwhile < 70, "{meanwhile} of 100 turns came first");
    drop(spinning);
}

#[tokio::test]
async fn a_closed_lane_says_so() {
    let lane = lane();
    let dropped = Arc::new(AtomicUsize::new(0));
    let moved: Vec<_> = (0..20)
        .map(|_| {
            let held = Counted(dropped.clone());
            lane.take(None, async move {
                let _held = held;
                loop {
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    drop(lane);
    for moved in moved {
        let outcome: Result<(), Closed> = moved.await;
        assert!(outcome.is_err());
    }
    reaches(&dropped, 20).await;
}

#[tokio::test]
async fn a_panic_comes_back_to_whoever_waits() {
    let lane = lane();
    let moved = lane.take(None, async { panic!("at the disco") });
    let outcome: Result<Result<(), Closed>, _> = AssertUnwindSafe(moved).catch_unwind().await;
    assert!(outcome.is_err());
    assert_eq!(lane.take(None, async { 1 }).await.unwrap(), 1);
}
