//! How what computes for long gives way to requests. A low priority alone does not: Linux lets a thread go on that has begun
//! its turn, or that has got less than its share so far, and looks again when a tick or another thread wakes it, which takes
//! milliseconds.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The shortest turn that Linux gives.
const TURN: Duration = Duration::from_micros(100);

/// How long a thread with a [`Pace`] computes before it asks who else wants to. Asking takes about a microsecond, and twenty on a
/// virtual machine that has no timers of its own.
const PERIOD: Duration = Duration::from_micros(300);

/// Bytes of a compiler's thread's stack: as many as the first thread of a process usually has.
pub(crate) const STACK: usize = 8 << 20;

/// Has this thread take the shortest turns that there are. Linux lets it interrupt, when it wakes up, those who take longer ones,
/// where it has not had its share; others wait until their turn ends.
///
/// For threads that answer requests. Linux knows turns of another length from 6.12 on, and does nothing about it before.
pub fn take_short_turns() {
    // Where it cannot be known, nothing has set it.
    take_short_turns_at(rustix::process::getpriority_process(None).unwrap_or_default());
}

/// The same at that priority, for this thread and the processes that it starts.
pub(crate) fn take_short_turns_at(niceness: i32) {
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or_default(),
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: 0,
        sched_nice: niceness,
        sched_priority: 0,
        sched_runtime: nanoseconds(TURN).cast_unsigned(),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads as many bytes as `size` says, of a value that outlives the call.
    #[allow(unsafe_code, reason = "no library has this system call")]
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if refused != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "a thread takes turns of the usual length");
    }
}

/// The paces of threads that all have something to do, and whether they are to give way at all.
pub(crate) struct Paces(Mutex<Kept>);

struct Kept {
    give_way: bool,
    all: Vec<Pace>,
}

impl Paces {
    pub(crate) fn new(give_way: bool) -> Self {
        let all = Vec::new();
        Self(Mutex::new(Kept { give_way, all }))
    }

    /// Whether there is anybody to give way to: being interrupted for nothing takes a fifth of a thread's time on a virtual machine.
    pub(crate) fn give_way(&self, give_way: bool) {
        let mut kept = self.lock();
        if kept.give_way != give_way {
            kept.give_way = give_way;
            kept.all.iter().for_each(|pace| kept.set(pace));
        }
    }

    fn keep(&self, pace: Pace) {
        let mut kept = self.lock();
        kept.set(&pace);
        kept.all.push(pace);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn set(&self, pace: &Pace) {
        // Where it is refused, the thread competes as others of its priority do.
        let _ = match self.give_way {
            true => pace.begin(),
            false => pace.pause(),
        };
    }
}

/// Threads that compile, as many as `RAYON_NUM_THREADS` says, each of which gives way whenever [`PERIOD`] is over while these paces
/// say so. They live as long as the process.
pub(crate) fn yielding_threads(paces: Arc<Paces>) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new()
        .stack_size(STACK)
        .start_handler(move |_| {
            if let Ok(pace) = Pace::new() {
                paces.keep(pace);
            }
        })
        .build()
}

/// Interrupts the thread that made it, to have it yield. System calls that may be begun again after a signal are.
pub(crate) struct Pace {
    timer: libc::timer_t,
}

// SAFETY: a timer is its process's: every thread may set it.
#[allow(unsafe_code, reason = "its number is a pointer for the C library")]
unsafe impl Send for Pace {}

impl Pace {
    /// One that does nothing yet. From the first one on the process does not end by `SIGALRM`.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a value of zeros is a valid `sigaction`. The handler makes system calls and reads and writes a number of its
        // thread's, which may be done at any point of a program, and on whatever stack: a guest's has no room for it. Both pointers
        // are good for the call.
        #[allow(unsafe_code, reason = "no library has this system call")]
        let refused = unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = give_way as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut())
        };
        checked(refused)?;
        let mut timer = ptr::null_mut();
        // SAFETY: a value of zeros is a valid `sigevent`, and the thread's number is this thread's. Both pointers are good for the
        // call.
        #[allow(unsafe_code, reason = "no library has this system call")]
        let refused = unsafe {
            let mut event: libc::sigevent = MaybeUninit::zeroed().assume_init();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        checked(refused)?;
        Ok(Self { timer })
    }

    /// For a thread that has something to do.
    pub(crate) fn begin(&self) -> io::Result<()> {
        self.every(PERIOD)
    }

    /// For a thread that is about to wait.
    pub(crate) fn pause(&self) -> io::Result<()> {
        self.every(Duration::ZERO)
    }

    /// Zero: never.
    fn every(&self, period: Duration) -> io::Result<()> {
        let period = libc::timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds(period),
        };
        let times = libc::itimerspec {
            it_interval: period,
            it_value: period,
        };
        // SAFETY: the timer is there until this is dropped. The pointers are good for the call.
        #[allow(unsafe_code, reason = "no library has this system call")]
        let refused =
            unsafe { libc::timer_settime(self.timer, 0, &raw const times, ptr::null_mut()) };
        checked(refused)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        // SAFETY: nobody else knows the timer.
        #[allow(unsafe_code, reason = "no library has this system call")]
        unsafe {
            libc::timer_delete(self.timer);
        }
    }
}

/// CPU time that a thread has before it gives way again, at the least and at the most.
const SHORTEST: Duration = Duration::from_micros(150);
const LONGEST: Duration = Duration::from_millis(1);

/// Which part of the time that it waited for its core is the thread's own afterwards.
const PART: u32 = 4;

/// When a thread gives way next.
#[derive(Clone, Copy)]
struct Next {
    /// What its CPU time was when it had given way.
    since: Duration,
    /// What it has from then on.
    own: Duration,
}

thread_local! {
    /// Neither made nor dropped by any code, so a signal may come at any time.
    static NEXT: Cell<Next> = const {
        Cell::new(Next {
            since: Duration::ZERO,
            own: SHORTEST,
        })
    };
}

/// While a thread waits for a core that others are using, the next signal comes and is the first thing that it meets there: without
/// time of its own it would give way for ever and compute nothing. Requests are done in a moment; processes that compute, as this
/// one's guests do, keep the core until Linux takes it from them, and a thread that waited for those has the more time afterwards.
extern "C" fn give_way(_signal: libc::c_int) {
    let next = NEXT.get();
    if stepwell_core::thread_time().saturating_sub(next.since) < next.own {
        return;
    }
    let began = Instant::now();
    rustix::thread::sched_yield();
    NEXT.set(Next {
        since: stepwell_core::thread_time(),
        own: own_after(began.elapsed()),
    });
}

/// The CPU time that a thread has after it waited for its core for so long.
fn own_after(waited: Duration) -> Duration {
    (waited / PART).clamp(SHORTEST, LONGEST)
}

fn checked(refused: libc::c_int) -> io::Result<()> {
    match refused {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::from(duration.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use std::hint;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use rustix::event::{Timespec, poll};
    use rustix::io::Errno;
    use rustix::process::setpriority_process;

    use super::*;
    use crate::chores::NICENESS;

    /// Whether this thread is interrupted while it waits.
    fn interrupted(most: Duration) -> bool {
        let most = Timespec::try_from(most).unwrap();
        match poll(&mut [], Some(&most)) {
            Err(Errno::INTR) => true,
            Ok(0) => false,
            other => panic!("{other:?}"),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    /// How the kernel schedules this thread.
    fn attributes() -> libc::sched_attr {
        let size = u32::try_from(size_of::<libc::sched_attr>()).unwrap();
        let mut attributes = MaybeUninit::<libc::sched_attr>::zeroed();
        // SAFETY: the kernel writes as many bytes as there are, and zeros are a valid value.
        #[allow(unsafe_code, reason = "no library has this system call")]
        unsafe {
            let got = libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0);
            assert_eq!(got, 0);
            attributes.assume_init()
        }
    }

    #[test]
    fn short_turns_are_taken_at_the_priority_that_a_thread_has() {
        setpriority_process(None, 3).unwrap();
        take_short_turns();
        let now = attributes();
        assert_eq!((now.sched_policy, now.sched_nice), (0, 3));
        // An older kernel knows none.
        let turn = u64::try_from(TURN.as_nanos()).unwrap();
        assert!(
            [0, turn].contains(&now.sched_runtime),
            "{}",
            now.sched_runtime
        );
    }

    #[test]
    fn threads_that_compile_are_interrupted_and_no_others() {
        let paces = Arc::new(Paces::new(true));
        let threads = yielding_threads(paces.clone()).unwrap();
        let all_are = |expected, most| {
            let found = threads.broadcast(|_| interrupted(most));
            found.iter().all(|interrupted| *interrupted == expected)
        };
        assert!(all_are(true, LONG));
        assert!(!interrupted(PERIOD * 100));
        paces.give_way(false);
        assert!(all_are(false, PERIOD * 100), "there is nobody");
        paces.give_way(true);
        assert!(all_are(true, LONG));
    }

    #[test]
    fn threads_that_begin_where_there_is_nobody_are_not_interrupted() {
        let paces = Arc::new(Paces::new(false));
        let threads = yielding_threads(paces.clone()).unwrap();
        let interrupted = |most| threads.broadcast(|_| interrupted(most));
        assert!(!interrupted(PERIOD * 100).contains(&true));
        paces.give_way(true);
        assert!(!interrupted(LONG).contains(&false));
    }

    #[test]
    fn who_gives_way_to_others_that_compute_goes_on_all_the_same() {
        let done = AtomicBool::new(false);
        let others = 2 * thread::available_parallelism().unwrap().get();
        thread::scope(|scope| {
            for _ in 0..others {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        hint::spin_loop();
                    }
                });
            }
            let worker = scope.spawn(|| {
                setpriority_process(None, NICENESS).unwrap();
                take_short_turns();
                let pace = Pace::new().unwrap();
                pace.begin().unwrap();
                let until = Instant::now() + LONG;
                // Fifty turns' work or so.
                (0..500_000).all(|_| Instant::now() < until)
            });
            let finished = worker.join();
            done.store(true, Ordering::Relaxed);
            assert!(finished.unwrap());
        });
    }

    #[test]
    fn who_waited_long_has_more_time_and_never_so_much_that_requests_notice() {
        assert_eq!(own_after(Duration::ZERO), SHORTEST);
        assert_eq!(
            own_after(Duration::from_millis(2)),
            Duration::from_micros(500)
        );
        assert_eq!(own_after(LONG), LONGEST);
    }

    #[test]
    fn a_thread_is_interrupted_while_it_has_something_to_do() {
        let pace = Pace::new().unwrap();
        assert!(!interrupted(PERIOD * 100));
        pace.begin().unwrap();
        assert!(interrupted(LONG));
        pace.pause().unwrap();
        assert!(!interrupted(PERIOD * 100));
        pace.begin().unwrap();
        assert!(interrupted(LONG));
        drop(pace);
        assert!(!interrupted(PERIOD * 100));
    }
}
