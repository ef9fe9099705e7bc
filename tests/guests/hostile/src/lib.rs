//! A step that does what the event's type says: mostly harm, and for each harm a harmless twin.

use std::hint::black_box;
use std::time::{Duration, Instant};

use wasip2::clocks::monotonic_clock;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest};

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

impl Guest for Hostile {
    fn process(input: Event) -> Result<Vec<Event>, Error> {
        let (what, argument) = input.type_.split_once(':').unwrap_or((&input.type_, ""));
        let number = || argument.parse::<usize>().expect("a number");
        let reply = match what {
            "echo" => return Ok(vec![input]),
            "drop" => return Ok(Vec::new()),
            "repeat" => {
                let times = number();
                return Ok(vec![input; times]);
            }
            "status" => {
                let extensions = vec![("httpstatus".into(), argument.into())];
                return Ok(vec![Event {
                    extensions,
                    ..input
                }]);
            }
            "extensions" => format!("{:?}", input.extensions),
            "invalid" => return Err(Error::Invalid(argument.into())),
            "unavailable" => return Err(Error::Unavailable(argument.into())),
            "failed" => return Err(Error::Failed(argument.into())),

            "spin" => loop {
                black_box(());
            },
            "spin-for" => {
                let end = Instant::now() + Duration::from_millis(number() as u64);
                while Instant::now() < end {}
                String::new()
            }
            "call-host" => loop {
                black_box(monotonic_clock::now());
            },
            "sleep" => {
                std::thread::sleep(Duration::from_millis(number() as u64));
                String::new()
            }
            "allocate" => {
                let mut all = Vec::new();
                let mut left = number();
                while left > 0 {
                    let size = left.min(1 << 20);
                    all.push(vec![1u8; size]);
                    left -= size;
                }
                black_box(&all).len().to_string()
            }
            "try-allocate" => Vec::<u8>::new()
                .try_reserve_exact(number())
                .is_ok()
                .to_string(),
            "recurse" => recurse(number()).to_string(),
            "trap" => std::arch::wasm32::unreachable(),
            "panic" => panic!("at the disco"),
            "exit" => std::process::exit(1),
            "output" => {
                return Ok(vec![Event {
                    data: vec![b'x'; number()],
                    ..empty()
                }]);
            }
            "events" => return Ok((0..number()).map(|_| empty()).collect()),
            "log" => {
                for line in 0..number() {
                    println!("line {line}");
                }
                eprint!("end");
                String::new()
            }
            "handles" => {
                let all: Vec<_> = (0..number())
                    .map(|_| monotonic_clock::subscribe_duration(1))
                    .collect();
                all.len().to_string()
            }
            "shout" => {
                let bytes = vec![b'x'; number()];
                format!(
                    "{:?}",
                    wasip2::cli::stdout::get_stdout().write(&bytes).is_ok()
                )
            }

            "environment" => {
                let all: Vec<String> = std::env::vars()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                format!("{} args {}", all.join(","), std::env::args().count())
            }
            "config" => format!("{:?}", wasi::config::store::get(argument)),
            "connect" => format!(
                "{:?}",
                std::net::TcpStream::connect("127.0.0.1:1").map_err(|error| error.kind())
            ),
            "files" => format!(
                "{:?}",
                std::fs::read_dir("/")
                    .map(|_| ())
                    .map_err(|error| error.kind())
            ),
            "fetch" => {
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
            other => return Err(Error::Invalid(format!("no such behaviour: {other}"))),
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
