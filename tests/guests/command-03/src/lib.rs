//! A command of WASI 0.3 that does what its first argument says.

#[path = "../../command/src/told.rs"]
mod told;

use wasip3::cli::exit::exit_with_code;
use wasip3::cli::{environment, stdout};
use wasip3::clocks::monotonic_clock;
use wasip3::wit_stream;

wasip3::cli::command::export!(Command);

struct Command;

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        if environment::get_arguments()
            .get(1)
            .is_none_or(|what| what != "tick")
        {
            return told::run();
        }
        // What only WASI 0.3 has.
        for tick in ["one\n", "two\n"] {
            monotonic_clock::wait_for(10_000_000).await;
            let (mut sink, lines) = wit_stream::new();
            let written = stdout::write_via_stream(lines);
            sink.write_all(tick.as_bytes().to_vec()).await;
            drop(sink);
            written.await.map_err(|_| ())?;
        }
        Ok(())
    }
}
