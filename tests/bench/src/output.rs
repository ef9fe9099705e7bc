/// Prints a line of what was asked for.
#[allow(clippy::print_stdout, reason = "stdout is where the measurements go")]
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// Says what is going on.
#[allow(clippy::print_stderr, reason = "progress, for whoever waits")]
pub(crate) fn note(text: &str) {
    eprintln!("stepwell-bench: {text}");
}
