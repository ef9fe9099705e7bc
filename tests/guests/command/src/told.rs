use std::io::{Read, Write};

/// Does what the first argument says.
pub(crate) fn run() -> Result<(), ()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (what, rest) = arguments.split_first().expect("an argument");
    match what.as_str() {
        "greet" => println!(
            "hello {} {:?}",
            rest.join(" "),
            std::env::var("GREETING").ok()
        ),
        "cat" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).expect("stdin");
            let mut out = std::io::stdout();
            out.write_all(text.as_bytes()).expect("stdout");
            // A component without a main has nobody who does it at the end.
            out.flush().expect("stdout");
            eprintln!("{} bytes", text.len());
        }
        "exit" => std::process::exit(rest[0].parse().expect("a number")),
        "exit-with-code" => crate::exit_with_code(rest[0].parse().expect("a number")),
        "fail" => return Err(()),
        "read" => println!("{}", std::fs::read_to_string(&rest[0]).map_err(|_| ())?),
        "write" => std::fs::write(&rest[0], &rest[1]).map_err(|_| ())?,
        "connect" => {
            let connected = std::net::TcpStream::connect(rest[0].as_str());
            println!("{}", connected.is_ok());
        }
        "allocate" => {
            let bytes = vec![1u8; rest[0].parse().expect("a number")];
            println!("{}", bytes.iter().filter(|byte| **byte == 1).count());
        }
        "spin" => loop {
            std::hint::black_box(());
        },
        "sleep" => std::thread::sleep(std::time::Duration::from_secs(3600)),
        "trap" => std::arch::wasm32::unreachable(),
        other => panic!("{other}"),
    }
    Ok(())
}
