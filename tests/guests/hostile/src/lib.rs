//! A step that does what the event's type says: mostly harm, and for each harm a harmless twin.

use std::hint::black_box;
use std::time::{Duration, Instant};

use wasip2::clocks::monotonic_clock;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest, OutgoingResponse};

wit_bindgen::generate!({
    path: ["../../../wit/config", "../../../wit/pipeline"],
    inline: "
        package test:hostile;
        world guest {
            include stepwell:pipeline/step@0.1.0;
            import wasi:config/store@0.2.0-rc.1;
        }
    ",
    world: "test:hostile/guest",
    generate_all,
});

use exports::stepwell::pipeline::handler::{Error, Event, Guest};

struct Hostile;
export!(Hostile);

/// Makes an enumeration of the cases, so that none can be here that is not in the list.
macro_rules! cases {
    ($($name:ident)*) => {
        #[allow(non_camel_case_types)]
        enum Case { $($name,)* }

        impl Case {
            fn named(name: &str) -> Option<Self> {
                match name.replace('-', "_").as_str() {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}
include!("../cases.rs");

impl Guest for Hostile {
    fn process(input: Event) -> Result<Vec<Event>, Error> {
        let (what, argument) = input.type_.split_once(':').unwrap_or((&input.type_, ""));
        let number = || argument.parse::<usize>().expect("a number");
        let Some(case) = Case::named(what) else {
            return Err(Error::Invalid(format!("no such behaviour: {what}")));
        };
        let reply = match case {
            Case::echo => return Ok(vec![input]),
            Case::drop => return Ok(Vec::new()),
            Case::repeat => {
                let times = number();
                return Ok(vec![input; times]);
            }
            Case::status => {
                let extensions = vec![("httpstatus".into(), argument.into())];
                return Ok(vec![Event {
                    extensions,
                    ..input
                }]);
            }
            Case::extensions => format!("{:?}", input.extensions),
            Case::invalid => return Err(Error::Invalid(argument.into())),
            Case::unavailable => return Err(Error::Unavailable(argument.into())),
            Case::failed => return Err(Error::Failed(argument.into())),

            Case::spin => loop {
                black_box(());
            },
            Case::spin_for => {
                let end = Instant::now() + Duration::from_millis(number() as u64);
                while Instant::now() < end {}
                String::new()
            }
            Case::call_host => loop {
                black_box(monotonic_clock::now());
            },
            Case::sleep => {
                std::thread::sleep(Duration::from_millis(number() as u64));
                String::new()
            }
            Case::allocate => {
                let mut all = Vec::new();
                let mut left = number();
                while left > 0 {
                    let size = left.min(1 << 20);
                    all.push(vec![1u8; size]);
                    left -= size;
                }
                black_box(&all).len().to_string()
            }
            Case::try_allocate => Vec::<u8>::new()
                .try_reserve_exact(number())
                .is_ok()
                .to_string(),
            // So many MiB of memory, of which it writes to the last.
            Case::reach => {
                let pages = (number() << 4) - core::arch::wasm32::memory_size(0);
                let end = (core::arch::wasm32::memory_grow(0, pages) + pages) << 16;
                let last = core::ptr::with_exposed_provenance_mut::<u8>(end - (1 << 20));
                // SAFETY: the memory has just been made, and nobody else knows of it.
                unsafe { last.write_bytes(1, 1 << 20) };
                (end >> 20).to_string()
            }
            Case::recurse => recurse(number()).to_string(),
            Case::trap => std::arch::wasm32::unreachable(),
            Case::panic => panic!("at the disco"),
            Case::exit => std::process::exit(1),
            Case::exit_zero => std::process::exit(0),
            Case::output => {
                return Ok(vec![Event {
                    data: vec![b'x'; number()],
                    ..empty()
                }]);
            }
            Case::events => return Ok((0..number()).map(|_| empty()).collect()),
            Case::attribute => {
                return Ok(vec![Event {
                    subject: Some(argument.replace("CRLF", "\r\n")),
                    ..empty()
                }]);
            }
            // Writes whether or not there is room.
            Case::blast => {
                let out = wasip2::cli::stdout::get_stdout();
                let line = [b'x'; 65_536];
                (0..number())
                    .filter(|_| out.write(&line).is_ok())
                    .count()
                    .to_string()
            }
            Case::zeroes => format!(
                "{:?}",
                wasip2::cli::stdout::get_stdout()
                    .write_zeroes(number() as u64)
                    .is_ok()
            ),
            Case::random => wasip2::random::random::get_random_bytes(number() as u64)
                .len()
                .to_string(),
            Case::log => {
                for line in 0..number() {
                    println!("line {line}");
                }
                eprint!("end");
                String::new()
            }
            Case::handles => {
                let all: Vec<_> = (0..number())
                    .map(|_| monotonic_clock::subscribe_duration(1))
                    .collect();
                all.len().to_string()
            }
            Case::pollables => {
                let all: Vec<_> = (0..number())
                    .map(|_| monotonic_clock::subscribe_duration(1_000_000))
                    .collect();
                let refs: Vec<_> = all.iter().collect();
                wasip2::io::poll::poll(&refs).len().to_string()
            }
            Case::poll_nothing => wasip2::io::poll::poll(&[]).len().to_string(),
            // Each holds as many bytes as the host lets it.
            Case::fields => {
                let all: Vec<_> = (0..number())
                    .map(|_| {
                        let fields = Fields::new();
                        let value = [b'x'; 1000];
                        for _ in 0..100 {
                            fields.append("x", &value).expect("room");
                        }
                        fields
                    })
                    .collect();
                all.len().to_string()
            }
            Case::bodies => {
                let mut all = Vec::new();
                for _ in 0..number() {
                    let response = OutgoingResponse::new(Fields::new());
                    let body = response.body().expect("a body");
                    let sink = body.write().expect("a stream");
                    let mut written = 0;
                    while let Ok(room @ 1..) = sink.check_write() {
                        sink.write_zeroes(room).expect("room");
                        written += room;
                    }
                    all.push((sink, body, response, written));
                }
                all.iter().map(|body| body.3).sum::<u64>().to_string()
            }
            Case::header => {
                let value = argument.replace("CRLF", "\r\n");
                format!("{:?}", Fields::new().append("x-mine", value.as_bytes()))
            }
            Case::shout => {
                let bytes = vec![b'x'; number()];
                format!(
                    "{:?}",
                    wasip2::cli::stdout::get_stdout().write(&bytes).is_ok()
                )
            }

            Case::environment => {
                let all: Vec<String> = std::env::vars()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                format!("{} args {}", all.join(","), std::env::args().count())
            }
            Case::config => format!("{:?}", wasi::config::store::get(argument)),
            Case::connect => format!(
                "{:?}",
                std::net::TcpStream::connect("127.0.0.1:1").map_err(|error| error.kind())
            ),
            Case::files => format!(
                "{:?}",
                std::fs::read_dir("/")
                    .map(|_| ())
                    .map_err(|error| error.kind())
            ),
            Case::fetch => {
                let request = OutgoingRequest::new(Fields::new());
                request
                    .set_authority(Some("127.0.0.1:1"))
                    .expect("an authority");
                request.set_path_with_query(Some("/")).expect("a path");
                match outgoing_handler::handle(request, None) {
                    Err(code) => format!("{code:?}"),
                    Ok(future) => {
                        future.subscribe().block();
                        match future.get() {
                            Some(Ok(Err(code))) => format!("{code:?}"),
                            _ => "a response".into(),
                        }
                    }
                }
            }
        };
        Ok(vec![Event {
            data: reply.into_bytes(),
            ..empty()
        }])
    }
}

fn empty() -> Event {
    Event {
        id: String::new(),
        source: String::new(),
        type_: String::new(),
        subject: None,
        time: None,
        datacontenttype: None,
        extensions: Vec::new(),
        data: Vec::new(),
    }
}

#[allow(unconditional_recursion)]
fn recurse(depth: usize) -> usize {
    if depth == 0 {
        return 0;
    }
    let frame = black_box([depth; 16]);
    black_box(recurse(depth - 1)) + usize::from(frame[0] > 0)
}
