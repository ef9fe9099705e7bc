//! Memory that calls have left in the pool's slots.
//!
//! What a call has written to stays in its slot, cleared, up to [`KEPT_OF_A_SLOT`](crate::config::KEPT_OF_A_SLOT): the next call
//! finds it there without a page fault. But what lies beyond the next call's memory is looked at by nobody any more. A guest whose
//! memory grows a little less with each call, and which writes to its end alone, leaves as much again each time: a slot held 60 MiB
//! after as many calls, and there are a thousand slots. Only who has a slot for itself can give back what is in it.

use std::iter;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mm::{Advice, madvise};
use tokio::sync::Semaphore;
use wasmtime::{Engine, Instance, Module, Store};

use crate::config::SLOT;

/// `(module (memory (export "m") 0))`
const NOTHING: &[u8] = b"\0asm\x01\0\0\0\x05\x03\x01\0\0\x07\x05\x01\x01m\x02\0";

/// One slot in so many is left to calls meanwhile.
const SPARE: usize = 8;

/// Bytes that are given back together where most of what is in a slot is: other threads cannot change what is mapped meanwhile.
const PIECE: usize = 4 << 20;

/// Bytes of a slot that are given back in pieces of [`PIECE`]: what a call's memory is by default.
const SLOT_START: usize = 64 << 20;

/// A piece that took less was empty, or as good as that.
const SHORT: Duration = Duration::from_micros(50);

/// Gives back what is in the slots that nobody uses, and answers how many they were. It takes some ten milliseconds, and two seconds
/// where it is gigabytes; calls that find no slot wait for it.
pub(crate) fn sweep(engine: &Engine, slots: &Semaphore) -> wasmtime::Result<usize> {
    let Some(pool) = engine.pooling_allocator_metrics() else {
        return Ok(0);
    };
    let free = slots.available_permits();
    let taken = free.saturating_sub(free / SPARE);
    let permits = u32::try_from(taken).unwrap_or_default();
    let Ok(_permits) = slots.try_acquire_many(permits) else {
        return Ok(0);
    };
    let used_before = pool.unused_warm_memories();
    sweep_some(engine, taken)?;
    // Slots that were never used come first; once all have been, it is those that were not used for longest.
    if pool.unused_warm_memories() > used_before {
        sweep_some(engine, taken)?;
    }
    Ok(taken)
}

fn sweep_some(engine: &Engine, slots: usize) -> wasmtime::Result<()> {
    // A new one each time: one that had slots before would get the same again.
    let module = Module::new(engine, NOTHING)?;
    // All at once, since the slot that was used last is the first to be given again.
    let mut held = Vec::with_capacity(slots);
    for _ in 0..slots {
        let mut store = Store::new(engine, ());
        let instance = Instance::new(&mut store, &module, &[])?;
        let Some(memory) = instance.get_memory(&mut store, "m") else {
            break;
        };
        let start = memory.data_ptr(&store);
        for (from, bytes) in pieces() {
            let began = Instant::now();
            // SAFETY: from its memory's start on so many bytes are this store's slot, which nobody else has as long as the store
            // lives, and the pieces are within it. The memory is empty: what is there counts as zeros for whoever comes next, and
            // reads as zeros once it was given back.
            #[allow(
                unsafe_code,
                reason = "wasmtime does not give back what no memory covers"
            )]
            unsafe {
                madvise(start.add(from).cast(), bytes, Advice::LinuxDontNeed)?;
            }
            let took = began.elapsed();
            if took > SHORT {
                // Whoever has waited for it comes next.
                thread::sleep(took);
            }
        }
        held.push(store);
    }
    Ok(())
}

/// Where the pieces of a slot begin, and how many bytes they have.
fn pieces() -> impl Iterator<Item = (usize, usize)> {
    let equal = (0..SLOT_START).step_by(PIECE).map(|from| (from, PIECE));
    let doubled = iter::successors(Some(SLOT_START), |from| from.checked_mul(2));
    equal.chain(
        doubled
            .take_while(|from| *from < SLOT)
            .map(|from| (from, from.min(SLOT - from))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flavor, wasmtime_engine};

    /// Grows to so many MiB, writes to the last of them and says what the one before begins with.
    const GUEST: &str = r#"
        (module
          (memory 1)
          (func (export "call") (param $size i32) (result i32)
            (drop (memory.grow (i32.sub (i32.mul (local.get $size) (i32.const 16)) (i32.const 1))))
            (memory.fill
              (i32.sub (i32.mul (local.get $size) (i32.const 1048576)) (i32.const 1040000))
              (i32.const 1) (i32.const 1040000))
            (i32.load (i32.sub (i32.mul (local.get $size) (i32.const 1048576)) (i32.const 2000000)))))"#;

    fn anonymous() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.unwrap().trim().strip_suffix("kB").unwrap();
        kib.trim().parse::<usize>().unwrap() >> 10
    }

    #[test]
    fn the_pieces_make_up_a_slot() {
        let end = pieces().fold(0, |end, (from, bytes)| {
            assert_eq!(from, end);
            from + bytes
        });
        assert_eq!(end, SLOT);
        assert!(pieces().count() < 30);
    }

    #[test]
    fn what_calls_leave_beyond_the_next_ones_memory_is_given_back() {
        for flavor in [Flavor::Lean, Flavor::Concurrent] {
            let (engine, _) = wasmtime_engine(flavor, 20, 20).unwrap();
            let slots = Semaphore::new(20);
            let module = Module::new(&engine, wat::parse_str(GUEST).unwrap()).unwrap();
            let call = |size: i32| {
                let mut store = Store::new(&engine, ());
                store.set_epoch_deadline(u64::MAX / 2);
                let instance = Instance::new(&mut store, &module, &[]).unwrap();
                let call = instance.get_typed_func::<i32, i32>(&mut store, "call");
                assert_eq!(call.unwrap().call(&mut store, size).unwrap(), 0);
            };
            let before = anonymous();
            for size in (3..200).rev() {
                call(size);
            }
            // Else there would be nothing to sweep.
            assert!(anonymous() > before + 120, "{} MiB", anonymous());
            assert!(sweep(&engine, &slots).unwrap() >= 17);
            assert!(anonymous() < before + 60, "{} MiB", anonymous());
            assert_eq!(slots.available_permits(), 20);
            // They are as good as before.
            (3..20).for_each(call);
        }
    }
}
