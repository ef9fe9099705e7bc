//! A step that remembers: it shows which calls share an instance, and what one leaves for the next.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use wasip2::clocks::monotonic_clock;
use wasip2::http::types::Fields;

wit_bindgen::generate!({
    path: ["../../../wit/config", "../../../wit/pipeline"],
    inline: "
        package test:keepsake;
        world guest {
            include stepwell:pipeline/step@0.1.0;
            import wasi:config/store@0.2.0-rc.1;
        }
    ",
    world: "test:keepsake/guest",
    generate_all,
});

use exports::stepwell::pipeline::handler::{Error, Event, Guest};

/// Calls of this instance, the current one included.
static CALLS: AtomicUsize = AtomicUsize::new(0);
static BUSY: AtomicBool = AtomicBool::new(false);

/// Secrets travel as bytes XOR this, so that only who has written one holds it.
const MASK: u8 = 0x5a;
const PAGE: usize = 64 << 10;

struct Keepsake;
export!(Keepsake);

impl Guest for Keepsake {
    fn process(input: Event) -> Result<Vec<Event>, Error> {
        let calls = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        let (what, argument) = input.type_.split_once(':').unwrap_or((&input.type_, ""));
        let number = || argument.parse::<usize>().expect("a number");
        let mut reply = calls.to_string();
        match what {
            "count" => {}
            // What each step of a pipeline answers.
            "trail" => reply = format!("{}{calls} ", String::from_utf8_lossy(&input.data)),
            "trap-at"
                if wasi::config::store::get("name").ok().flatten().as_deref() == Some(argument) =>
            {
                std::arch::wasm32::unreachable()
            }
            "trap-at" => {}
            // Says so if another call enters the instance meanwhile.
            "serial" => {
                if BUSY.swap(true, Ordering::Relaxed) {
                    return Err(Error::Failed("two calls at once".into()));
                }
                std::thread::sleep(Duration::from_millis(number() as u64));
                BUSY.store(false, Ordering::Relaxed);
            }
            "write" => {
                let secret: Vec<u8> = input.data.iter().map(|byte| byte ^ MASK).collect();
                std::mem::forget(secret.repeat((4 << 20) / secret.len()));
            }
            "scan" => reply = scan(&input.data).to_string(),
            "spin" => {
                let end = Instant::now() + Duration::from_millis(number() as u64);
                while Instant::now() < end {}
            }
            "sleep" => std::thread::sleep(Duration::from_millis(number() as u64)),
            "trap" => std::arch::wasm32::unreachable(),
            "invalid" => return Err(Error::Invalid(argument.into())),
            "grow" => std::mem::forget(vec![1u8; number()]),
            "try-grow" => {
                reply =
                    (std::arch::wasm32::memory_grow(0, number() / PAGE) != usize::MAX).to_string();
            }
            "output" => reply = "x".repeat(number()),
            "keep-pollable" => std::mem::forget(monotonic_clock::subscribe_duration(1)),
            "keep-fields" => std::mem::forget(Fields::new()),
            "keep-stream" => std::mem::forget(wasip2::cli::stdout::get_stdout()),
            "say" => println!("{argument}"),
            "mutter" => eprint!("{argument}"),
            "config" => reply = format!("{:?}", wasi::config::store::get(argument)),
            other => return Err(Error::Invalid(format!("no such behaviour: {other}"))),
        }
        Ok(vec![Event {
            data: reply.into_bytes(),
            ..input
        }])
    }
}

/// How often the secret stands in this instance's memory, to its last page and in pages that nobody has used.
fn scan(masked: &[u8]) -> usize {
    std::arch::wasm32::memory_grow(0, (8 << 20) / PAGE);
    let end = std::arch::wasm32::memory_size(0) * PAGE;
    let at = |address: usize| {
        // Every address below the memory's size can be read; the compiler must not guess what is there.
        unsafe { std::ptr::read_volatile(address as *const u8) }
    };
    (1..end - masked.len())
        .filter(|start| {
            masked
                .iter()
                .enumerate()
                .all(|(offset, byte)| at(start + offset) == byte ^ MASK)
        })
        .count()
}
