//! The figures that several kinds of page have.

use super::{
    figure,
    plot::{Axis, Plot, Run, Scale, Series, Strip, Unit, count},
};
use crate::{
    json::{CurvePoint, Phase, RunReport, Second},
    report::{grouped, span},
};

/// The end of the axis of percentiles.
const LAST_PERCENTILE: f64 = 99.9999;
const SECONDS: Axis = Axis { title: "seconds since measuring began", scale: Scale::Linear, unit: Unit::Count };

/// Distributions, one beside the other, by the percentile on an axis where each nine has the same room.
pub(super) fn percentiles(title: &'static str, curves: &[(&str, &[CurvePoint])]) -> String {
    let series = |(colour, (name, curve)): (usize, &(&str, &[CurvePoint]))| {
        let shown = || curve.iter().filter(|at| at.percentile <= LAST_PERCENTILE && at.us > 0.0);
        let note = |at: &CurvePoint| format!("{name}: {} at {}%", span(at.us), percent(at.percentile));
        Series {
            name: (*name).to_owned(),
            colour,
            points: shown().map(|at| (at.percentile, at.us)).collect(),
            notes: shown().map(note).collect(),
            ..Series::default()
        }
    };
    let plot = Plot {
        x: Axis { title: "percentile of requests, %", scale: Scale::Nines, unit: Unit::Count },
        y: Axis { title, scale: Scale::Log, unit: Unit::Micros },
        series: curves.iter().enumerate().filter(|(_, (_, curve))| !curve.is_empty()).map(series).collect(),
        bands: Vec::new(),
        bound: None,
    };
    plot.svg()
}

/// A percentile with as many nines as it has, and one digit more.
fn percent(percentile: f64) -> String {
    let rest = 100.0 - percentile;
    let decimals = if rest > 0.0 { (1.0 - rest.log10()).ceil().clamp(0.0, 6.0) as usize } else { 0 };
    let text = format!("{percentile:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A name, what of a second is drawn under it, and how that is written.
type Line = (&'static str, fn(&Second) -> f64, fn(f64) -> String);

/// Every second of a run, in order, with those of which nothing was reported because nothing happened.
fn all_seconds(report: &RunReport) -> Vec<(i64, Option<&Second>)> {
    let ends = report.seconds.iter().map(|at| at.second);
    let (Some(first), Some(last)) = (ends.clone().min(), ends.max()) else { return Vec::new() };
    let of = |second: i64| report.seconds.iter().find(|at| at.second == second);
    // A run of days would be a broken file; nobody could read its page.
    (first..=last.min(first.saturating_add(100_000))).map(|second| (second, of(second))).collect()
}

fn line(colour: usize, report: &RunReport, (name, of, written): Line, gaps: bool) -> Series {
    // In the middle of its second. Where nothing happened a count is 0, and a time is none.
    let value = |at: Option<&Second>| match at.map(of) {
        Some(value) if value > 0.0 || !gaps => value,
        _ if gaps => f64::NAN,
        _ => 0.0,
    };
    let seconds: Vec<_> = all_seconds(report).into_iter().map(|(second, at)| (second, value(at))).collect();
    Series {
        name: name.to_owned(),
        colour,
        points: seconds.iter().map(|(second, value)| (*second as f64 + 0.5, *value)).collect(),
        notes: seconds
            .iter()
            .map(|(second, value)| {
                let written = if value.is_finite() { written(*value) } else { String::new() };
                format!("second {second}, {name}: {written}")
            })
            .collect(),
        dots: true,
        ..Series::default()
    }
}

/// Stretches that are not measured.
fn bands(report: &RunReport) -> Vec<(f64, f64, &'static str)> {
    let band = |phase: Phase, name| {
        let of = || report.seconds.iter().filter(|second| second.phase == phase).map(|second| second.second);
        Some((of().min()? as f64, of().max()? as f64 + 1.0, name))
    };
    [band(Phase::WarmUp, "warm-up"), band(Phase::CoolDown, "cool-down")].into_iter().flatten().collect()
}

/// Throughput and latency by second, with what was not measured shaded.
pub(super) fn over_time(report: &RunReport) -> String {
    if report.seconds.is_empty() {
        return String::new();
    }
    let rates: [Line; 3] = [
        ("answered", |at| at.answered as f64, count),
        ("failed", |at| at.errors as f64, count),
        ("sent late", |at| at.late as f64, count),
    ];
    let times: [Line; 3] =
        [("p50", |at| at.p50_us, span), ("p99", |at| at.p99_us, span), ("max", |at| at.max_us, span)];
    // What never happened is no line.
    let happened = |(name, of, _): &Line| *name == "answered" || report.seconds.iter().any(|at| of(at) > 0.0);
    let drawn = |lines: [Line; 3], gaps: bool| -> Vec<Series> {
        let lines = lines.into_iter().enumerate().filter(|(_, line)| happened(line));
        lines.map(|(colour, of)| line(colour, report, of, gaps)).collect()
    };
    let plot = |y, series| Plot { x: SECONDS, y, series, bands: bands(report), bound: None }.svg();
    let rate = Axis { title: "requests per second", scale: Scale::Linear, unit: Unit::Count };
    let time = Axis { title: "response time", scale: Scale::Log, unit: Unit::Micros };
    figure(
        "Throughput over time",
        "By the second in which answers came; the first and the last second may be shorter than the others.",
        &plot(rate, drawn(rates, false)),
    ) + &figure(
        "Latency over time",
        "Response times of the answers that came in each second. Where the line is broken nothing was answered; those of the \
         cool-down are not recorded.",
        &plot(time, drawn(times, true)),
    )
}

/// Throughput by second of several runs, warm-up and cool-down left out, and a last second that was measured in part.
pub(super) fn rates_over_time(runs: &[(&str, &RunReport)]) -> String {
    let series = |(colour, (name, report)): (usize, &(&str, &RunReport))| {
        let is_whole = |at: &&Second| (at.second + 1) as f64 <= report.measured_s + 0.05;
        let steady = || report.seconds.iter().filter(|at| at.phase == Phase::Steady);
        let steady: Vec<Second> = if steady().any(|at| is_whole(&at)) {
            steady().filter(is_whole).copied().collect()
        } else {
            steady().copied().collect()
        };
        let report = RunReport { seconds: steady, ..(*report).clone() };
        let line = line(colour, &report, ("answered", |at| at.answered as f64, count), false);
        let notes = line.notes.iter().map(|note| format!("{name}: {note}")).collect();
        Series { name: (*name).to_owned(), notes, ..line }
    };
    let y = Axis { title: "requests answered per second", scale: Scale::Linear, unit: Unit::Count };
    Plot { x: SECONDS, y, series: runs.iter().enumerate().map(series).collect(), bands: Vec::new(), bound: None }.svg()
}

/// Every run of each configuration: throughput, then p99.
pub(super) fn every_run(groups: &[(&str, &[RunReport])]) -> String {
    let strip = |x: Axis, of: fn(&RunReport) -> f64, written: fn(f64) -> String| {
        let run = |(number, report): (usize, &RunReport)| {
            let doubt = if report.valid { "" } else { ", not valid" };
            let note = format!("run {}: {}{doubt}", number + 1, written(of(report)));
            Run { value: of(report), is_valid: report.valid, note }
        };
        let row = |(name, runs): &(&str, &[RunReport])| {
            ((*name).to_owned(), runs.iter().enumerate().map(run).collect::<Vec<_>>())
        };
        Strip { x, rows: groups.iter().map(row).collect() }.svg()
    };
    let rate = Axis { title: "requests answered per second", scale: Scale::Close, unit: Unit::Count };
    let p99 = Axis { title: "p99 of response time", scale: Scale::Close, unit: Unit::Micros };
    let rate_written: fn(f64) -> String = |rate| format!("{} requests/s", grouped(rate.round() as u64));
    strip(rate, |report| report.all.throughput_ops_per_s, rate_written)
        + &strip(p99, |report| report.all.response_us.p99, span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::sample;

    #[test]
    fn percentiles_are_written_with_their_nines() {
        assert_eq!([0.0, 50.0, 99.0, 99.9, 99.9934, 100.0].map(percent).join(" "), "0 50 99 99.9 99.9934 100");
        assert_eq!([93.75, 98.4375].map(percent).join(" "), "93.8 98.4");
    }

    #[test]
    fn a_second_in_which_nothing_was_answered_is_a_0_of_the_rate_and_a_gap_of_the_times() {
        let mut report = sample();
        let first = report.seconds[0];
        report.seconds = vec![
            Second { second: -1, phase: Phase::WarmUp, ..first },
            first,
            // Nothing happened in second 1.
            Second { second: 2, errors: 0, ..first },
            Second { second: 3, phase: Phase::CoolDown, p50_us: 0.0, p99_us: 0.0, max_us: 0.0, ..first },
        ];
        let rate = line(0, &report, ("answered", |at| at.answered as f64, count), false);
        assert_eq!(rate.points, [(-0.5, 200.0), (0.5, 200.0), (1.5, 0.0), (2.5, 200.0), (3.5, 200.0)]);
        let times = line(0, &report, ("p50", |at| at.p50_us, span), true);
        assert!(times.points[2].1.is_nan() && times.points[4].1.is_nan() && times.points[3].1 == 1000.0);
        assert_eq!(bands(&report), [(-1.0, 0.0, "warm-up"), (3.0, 4.0, "cool-down")]);
        let drawn = over_time(&report);
        for part in ["second 1, answered: 0", "second 0, p99: 2 ms", ">warm-up<", ">cool-down<", "</svg>failed"] {
            assert!(drawn.contains(part), "no {part}");
        }
        assert!(!drawn.contains("sent late"), "nothing was");
    }
}
