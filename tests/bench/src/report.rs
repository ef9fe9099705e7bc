//! Medians with their spread, and ratios.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::bench::{Group, Outcome, Sample, Side};
use crate::output::line;

/// The median over the rounds.
pub(crate) fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    middle(samples.iter().map(of).collect())
}

pub(crate) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied();
    let lower = values.get(values.len().saturating_sub(1) / 2).copied();
    match (lower, upper) {
        (Some(lower), Some(upper)) => f64::midpoint(lower, upper),
        _ => f64::NAN,
    }
}

/// The median of the rounds' ratios: the two values of one round were measured within seconds of each other.
fn ratio(above: &[Sample], below: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    middle(
        above
            .iter()
            .zip(below)
            .map(|(above, below)| of(above) / of(below))
            .collect(),
    )
}

fn spread(samples: &[Sample], unit: f64, digits: usize, of: impl Fn(&Sample) -> f64) -> String {
    let values = || samples.iter().map(|sample| of(sample) / unit);
    let least = values().fold(f64::INFINITY, f64::min);
    let most = values().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{:.digits$} ({least:.digits$}–{most:.digits$})",
        middle(values().collect())
    )
}

fn rate(sample: &Sample) -> f64 {
    sample.load.requests_per_second
}

fn p50(sample: &Sample) -> f64 {
    sample.load.p50_us
}

fn p99(sample: &Sample) -> f64 {
    sample.load.p99_us
}

/// Prints a run for people.
pub(crate) fn print(outcome: &Outcome) {
    for text in outcome.machine.lines() {
        line(&text);
    }
    line(&format!(
        "medians (least–most) of {} rounds of {} s by turns, {} connections; × is stepwell's median ratio to that side",
        outcome.rounds, outcome.seconds, outcome.connections
    ));
    for group in [
        &outcome.hello,
        &outcome.echo,
        &outcome.hello_reused,
        &outcome.echo_reused,
    ] {
        print_group(group);
    }
    line("");
    for text in goals(outcome) {
        line(&text);
    }
}

fn print_group(group: &Group) {
    let Some(own) = group.sides.first() else {
        return;
    };
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "",
        "1000 req/s",
        "×",
        "CPU µs/req",
        &format!("p50 µs at {:.0}/s", group.rate),
        "p99 µs",
        "×",
        "p50 µs, 1 connection",
    ]);
    for side in &group.sides {
        table.add_row([
            side.name.clone(),
            spread(&side.full, 1e3, 1, rate),
            format!("{:.2}", ratio(&own.full, &side.full, rate)),
            format!("{:.1}", median(&side.full, |sample| sample.cpu_us)),
            spread(&side.paced, 1.0, 0, p50),
            spread(&side.paced, 1.0, 0, p99),
            format!("{:.2}", ratio(&own.paced, &side.paced, p99)),
            spread(&side.alone, 1.0, 0, p50),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    line(&format!("\n{}\n{table}", group.title));
}

/// What the host is meant to reach, and whether it did.
fn goals(outcome: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    let mut goal = |what: &str, reached: f64, least: bool, bound: f64| {
        let met = if least {
            reached >= bound
        } else {
            reached <= bound
        };
        let (sign, verdict) = (
            if least { '≥' } else { '≤' },
            if met { "met" } else { "missed" },
        );
        lines.push(format!(
            "{verdict:>6}: {what} {reached:.2}, goal {sign} {bound}"
        ));
    };
    if let [own, defaults, best, ..] = outcome.hello.sides.as_slice() {
        goal(
            "requests/s ÷ wasmtime serve with defaults",
            ratio(&own.full, &defaults.full, rate),
            true,
            4.0,
        );
        goal(
            "p99 ÷ wasmtime serve with defaults",
            ratio(&own.paced, &defaults.paced, p99),
            false,
            0.5,
        );
        goal(
            "requests/s ÷ wasmtime serve with best flags",
            ratio(&own.full, &best.full, rate),
            true,
            2.0,
        );
        goal(
            "p99 ÷ wasmtime serve with best flags",
            ratio(&own.paced, &best.paced, p99),
            false,
            1.0,
        );
    }
    if let [one, native, _, four] = outcome.echo.sides.as_slice() {
        goal(
            "requests/s of one step ÷ native axum",
            ratio(&one.full, &native.full, rate),
            true,
            0.5,
        );
        goal(
            "µs for one more step (p50, 4 KB, one connection)",
            step_cost(one, four),
            false,
            12.0,
        );
    }
    if let [own, native, _] = outcome.hello_reused.sides.as_slice() {
        goal(
            "requests/s, reused ÷ native hyper",
            ratio(&own.full, &native.full, rate),
            true,
            0.7,
        );
    }
    if let [one, native, _, _, four] = outcome.echo_reused.sides.as_slice() {
        goal(
            "requests/s of one step, reused ÷ native axum",
            ratio(&one.full, &native.full, rate),
            true,
            0.85,
        );
        goal(
            "µs for one more step, reused (p50, 4 KB, one connection)",
            step_cost(one, four),
            false,
            4.0,
        );
    }
    lines
}

/// A third of what three more steps cost, median of the rounds.
fn step_cost(one: &Side, four: &Side) -> f64 {
    let rounds = one.alone.iter().zip(&four.alone);
    middle(
        rounds
            .map(|(one, four)| (p50(four) - p50(one)) / 3.0)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(middle(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(middle(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(middle(Vec::new()).is_nan());
    }
}
