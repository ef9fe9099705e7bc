//! A command of WASI 0.2 that does what its first argument says.

mod told;

use wasip2::cli::exit::exit_with_code;

wasip2::cli::command::export!(Command);

struct Command;

impl wasip2::exports::cli::run::Guest for Command {
    fn run() -> Result<(), ()> {
        told::run()
    }
}
