use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What a measurement was made on and with.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    processor: String,
    kernel: String,
    /// Processes that were running or wanted to, over the last minute, before the bench began.
    load: f64,
    stepwell: String,
    wasmtime: String,
    axum: String,
}

impl Machine {
    pub(crate) fn look(stepwell: &Path, wasmtime: &Path) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor = processor
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let load = read("/proc/loadavg");
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: processor
                .unwrap_or("unknown processor")
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or_default(),
            stepwell: version(stepwell),
            wasmtime: version(wasmtime),
            axum: locked("axum"),
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let Self {
            cores,
            processor,
            kernel,
            load,
            stepwell,
            wasmtime,
            axum,
        } = self;
        let mut lines = vec![
            format!("{cores} cores ({processor}), Linux {kernel}, load {load:.2} before the run"),
            format!("{stepwell}; {wasmtime}; axum {axum}"),
        ];
        if *load > *cores as f64 * 0.5 {
            lines.push("WARNING: the machine was busy with other work: trust no number, and ratios only if their spread is small".into());
        }
        lines
    }
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|error| format!("{}: {error}", program.display()))
}

/// A dependency's version, as locked when this was built.
fn locked(package: &str) -> String {
    let name = format!("name = \"{package}\"");
    let mut lines = include_str!("../../../Cargo.lock")
        .lines()
        .skip_while(|line| *line != name);
    let version = lines
        .nth(1)
        .and_then(|line| line.strip_prefix("version = "));
    version.unwrap_or("unknown").trim_matches('"').to_owned()
}
