//! A command of WASI 0.2 that does what its first argument says.

mod told;

wasip2::cli::command::export!(Command);

struct Command;

impl wasip2::exports::cli::run::Guest for Command {
    fn run() -> Result<(), ()> {
        told::run()
    }
}
