//! What hostile guests do: each with what its caller sees, what its deployer is told, and what is counted.

/// Something that a hostile guest does.
pub(crate) struct Harm {
    /// The pipeline of which it is asked.
    pub(crate) pipeline: &'static str,
    /// The event's type, or what follows the function's name in its path.
    pub(crate) what: &'static str,
    /// What its caller sees; none: a response whose body breaks off.
    pub(crate) status: Option<u16>,
    /// The limit that it runs into, as the metric has it; none: it runs into none.
    pub(crate) limit: Option<&'static str>,
    /// The kind of trap that the log has.
    pub(crate) trap: Option<&'static str>,
    /// What the log says to whoever deploys: the limit, its value and its setting.
    pub(crate) says: &'static [&'static str],
}

const OWN: &str = "this limit is the host's own and has no setting";

/// A step that runs into a limit.
const fn limit(what: &'static str, limit: &'static str, says: &'static [&'static str]) -> Harm {
    Harm {
        pipeline: "bad",
        what,
        status: Some(500),
        limit: Some(limit),
        trap: Some(limit),
        says,
    }
}

/// A step that traps by itself.
const fn trap(pipeline: &'static str, what: &'static str, trap: &'static str) -> Harm {
    Harm {
        pipeline,
        what,
        status: Some(500),
        limit: None,
        trap: Some(trap),
        says: &["the guest trapped"],
    }
}

const CPU: &[&str] = &["200ms of CPU time", "limits.cpu"];
const MEMORY: &[&str] = &["64MiB of memory", "limits.memory"];
const OUTPUT: &[&str] = &["1MiB of output", "limits.output"];
const WALL: &[&str] = &["more than its 1s", "limits.wall"];
const HANDLES: &[&str] = &["1000 resource handles", OWN];

/// Without the guest's own mistakes, which are those of any guest.
pub(crate) const ALL: &[Harm] = &[
    limit("spin", "cpu", CPU),
    limit("call-host", "cpu", CPU),
    limit("allocate:1073741824", "memory", MEMORY),
    limit("fields:100000", "memory", MEMORY),
    limit("output:8000000", "output", OUTPUT),
    limit("events:200000", "output", OUTPUT),
    limit("handles:100000", "handles", HANDLES),
    limit("pollables:100000", "handles", HANDLES),
    limit(
        "shout:33554432",
        "host_call",
        &["16MiB to one host function", OWN],
    ),
    trap("bad", "recurse:100000000", "stack-overflow"),
    trap("bad", "trap", "unreachable-code-reached"),
    trap("bad", "panic", "unreachable-code-reached"),
    trap("liar", "x", "invalid-value"),
    trap("letters", "x", "invalid-value"),
    Harm {
        pipeline: "tables",
        ..limit("x", "tables", &["100000 table elements", OWN])
    },
    Harm {
        pipeline: "memories",
        ..limit("x", "memory", MEMORY)
    },
    Harm {
        pipeline: "short",
        status: Some(504),
        ..limit("sleep:3600000", "wall", WALL)
    },
    Harm {
        status: Some(200),
        trap: None,
        ..limit("log:100000", "log", &["64KiB", OWN])
    },
    // What the events of one call carry on of the request, and what a run holds and does.
    limit("events:4000", "carried", &["16MiB together", OWN]),
    limit("events:11000", "run_events", &["10000 events", OWN]),
    Harm {
        pipeline: "calls",
        ..limit("repeat:150", "run_calls", &["10000 calls", OWN])
    },
    Harm {
        pipeline: "function",
        ..limit("spin", "cpu", CPU)
    },
    Harm {
        pipeline: "function",
        ..limit("fields/1000", "memory", MEMORY)
    },
    Harm {
        pipeline: "function",
        status: None,
        ..limit("endless", "output", OUTPUT)
    },
    Harm {
        pipeline: "short-function",
        status: None,
        ..limit("stall", "wall", WALL)
    },
    // It never reads the stream that it is sent.
    Harm {
        pipeline: "function",
        what: "deaf",
        status: Some(200),
        limit: None,
        trap: None,
        says: &[],
    },
];

/// Steps that no compiler would make: their names, and what is in them.
pub(crate) const MADE: &[(&str, &str)] = &[
    // More elements of a table than there may be.
    (
        "tables",
        r#"(memory (export "memory") 1) (table $t 1 funcref)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (if (i32.lt_s (table.grow $t (ref.null func) (i32.const 1000000)) (i32.const 0)) (then unreachable))
      (i32.const 16))"#,
    ),
    // Each of its memories is small enough, and all together are not.
    (
        "memories",
        r#"(memory (export "memory") 1) (memory $b 1) (memory $c 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (if (i32.lt_s (memory.grow $b (i32.const 600)) (i32.const 0)) (then unreachable))
      (if (i32.lt_s (memory.grow $c (i32.const 600)) (i32.const 0)) (then unreachable))
      (i32.const 16))"#,
    ),
    // A list of two thousand million events, in a memory of 64 KiB.
    (
        "liar",
        r#"(memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (i32.store (i32.const 20) (i32.const 0)) (i32.store (i32.const 24) (i32.const 0x7fffffff))
      (i32.const 16))"#,
    ),
    // An error whose text is no UTF-8.
    (
        "letters",
        r#"(memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32)
      (i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 100) (i32.const 0xff))
      (i32.store (i32.const 24) (i32.const 100)) (i32.store (i32.const 28) (i32.const 1))
      (i32.const 16))"#,
    ),
    // No events: not hostile, and the last step of those that are.
    (
        "nothing",
        r#"(memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
    (func (export "process") (param i32) (result i32) (i32.const 16))"#,
    ),
];
