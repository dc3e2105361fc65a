//! The report as people read it.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use crate::{
    json::{Part, RunReport},
    target::ErrorKind,
};

/// The whole report.
pub fn render(report: &RunReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", headline(report));
    let _ = writeln!(out, "\nResponse times in microseconds\n{}", latency_table(report));
    for (name, of) in [("service", report.all.service_us), ("lag", report.all.lag_us)] {
        if let Some(of) = of {
            let [p50, p99, p99_9, max] = [of.p50, of.p99, of.p99_9, of.max].map(micros);
            let what =
                if name == "lag" { "from the intended start to the sending" } else { "from the sending to the answer" };
            let _ = writeln!(out, "{name}: p50 {p50}, p99 {p99}, p99.9 {p99_9}, max {max} ({what})");
        }
    }
    if let Some(cpu) = report.cpu {
        let whose = if cpu.with_cluster { "load generator and cluster" } else { "load generator alone" };
        let _ = writeln!(out, "{:.2} cores busy, {:.2} us of CPU per answer ({whose})", cpu.cores, cpu.us_per_op);
    }
    if report.all.errors.is_empty() {
        let _ = writeln!(out, "No errors.");
    } else {
        let _ = writeln!(out, "{}", errors(report));
    }
    if let Some(check) = &report.check {
        let _ = writeln!(out, "\nLinearizability\n{}", check.text());
    }
    let _ = writeln!(out, "\nWhat was measured\n{}", settings_table(report));
    for note in &report.notes {
        let _ = writeln!(out, "Note: {note}");
    }
    if !report.valid {
        let _ = writeln!(out, "NOT VALID: {}", report.invalid_because.join("; "));
    }
    out.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Failed requests: by kind, and by whether they may have happened all the same.
fn errors(report: &RunReport) -> String {
    let kinds = report.all.errors.iter().map(|(kind, count)| format!("{kind} {}", grouped(*count)));
    let is_certain = |kind: &str| ErrorKind::named(kind).is_some_and(ErrorKind::is_certain);
    let certain: u64 = report.all.errors.iter().filter(|(kind, _)| is_certain(kind)).map(|(_, count)| count).sum();
    let doubtful = report.all.error_count() - certain;
    format!(
        "Errors: {}\n{} of these requests did not happen; of {} nobody knows",
        kinds.collect::<Vec<_>>().join(", "),
        grouped(certain),
        grouped(doubtful)
    )
}

/// Throughput, and how it stands to what was offered.
fn headline(report: &RunReport) -> String {
    let achieved = grouped(report.all.throughput_ops_per_s.round() as u64);
    let mut out = format!("{achieved} requests/s answered over {:.1} s", report.measured_s);
    if let Some(offered) = report.offered_ops_per_s {
        let percent = report.all.throughput_ops_per_s / offered * 100.0;
        let _ = write!(out, ", {percent:.1}% of {} requests/s offered", grouped(offered.round() as u64));
        if report.late_sends > 0 {
            let _ = write!(out, "; {} sent over 10 ms late or never", grouped(report.late_sends));
        }
    }
    if report.interrupted {
        out += " (interrupted)";
    }
    out
}

fn latency_table(report: &RunReport) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED);
    let columns = ["", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max", "mean", "count", "requests/s", "errors"];
    table.set_header(columns.map(|name| Cell::new(name).set_alignment(CellAlignment::Right)));
    let mut add = |name: String, part: &Part| {
        let of = &part.response_us;
        let times = [of.p50, of.p90, of.p95, of.p99, of.p99_9, of.p99_99, of.max, of.mean];
        let times = times.map(|time| if of.count == 0 { "-".to_owned() } else { micros(time) });
        let rate = grouped(part.throughput_ops_per_s.round() as u64);
        let counts = [grouped(of.count), rate, grouped(part.error_count())];
        let numbers = times.into_iter().chain(counts);
        let numbers = numbers.map(|text| Cell::new(text).set_alignment(CellAlignment::Right));
        table.add_row([Cell::new(name)].into_iter().chain(numbers));
    };
    add("all".to_owned(), &report.all);
    for (name, part) in &report.operations {
        add(name.clone(), part);
    }
    for zone in &report.zones {
        add(format!("zone {}", zone.zone), &zone.all);
        if zone.read.response_us.count > 0 && zone.write.response_us.count > 0 {
            add(format!("zone {} read", zone.zone), &zone.read);
            add(format!("zone {} write", zone.zone), &zone.write);
        }
    }
    table
}

fn settings_table(report: &RunReport) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.add_row(["started at", &report.started_at]);
    table.add_row(["wpaxos-load", &report.version]);
    let mut add = |prefix: &str, name: &str, value: &Value| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(" "),
            other => other.to_string(),
        };
        table.add_row([format!("{prefix}{name}"), text]);
    };
    // The knobs of a tuning are in its file.
    for (name, value) in report.config.iter().filter(|(name, _)| *name != "knobs") {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(field, value)| add(&format!("{name}: "), field, value)),
            value => add("", name, value),
        }
    }
    table
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A number with its thousands set apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A time in microseconds, with a decimal where that says something.
pub fn micros(time: f64) -> String {
    if time < 100.0 { format!("{time:.1}") } else { grouped(time.round() as u64) }
}

/// A time in microseconds with the unit that suits it, and three digits at most.
pub fn span(time_us: f64) -> String {
    let (scaled, unit) = match time_us.abs() {
        999_500.0.. => (time_us / 1e6, "s"),
        999.5.. => (time_us / 1e3, "ms"),
        _ => (time_us, "µs"),
    };
    let decimals = match scaled.abs() {
        99.95.. => 0,
        9.995.. => 1,
        _ => 2,
    };
    let text = format!("{scaled:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::sample;

    #[test]
    fn the_report_shows_every_part_and_every_setting() {
        let mut report = sample();
        report.config.insert("facts".to_owned(), json!({"quorum": "floor fn=1 fz=0", "durability": "none"}));
        report.config.insert("pinning".to_owned(), json!("unpinned"));
        let text = render(&report);
        for expected in [
            "20 requests/s answered over 10.0 s",
            "p99.99",
            "zone 1",
            "zone 4 write",
            "2,0",
            "Errors: overloaded 1",
            "1 of these requests did not happen; of 0 nobody knows",
            "facts: durability",
            "floor fn=1 fz=0",
            "unpinned",
            "1970-01-01T00:00:00.000Z",
        ] {
            assert!(text.contains(expected), "no {expected:?} in\n{text}");
        }
        assert!(!text.contains("NOT VALID"));
    }

    #[test]
    fn an_open_loop_says_how_it_stands_to_its_schedule() {
        let mut report = sample();
        report.offered_ops_per_s = Some(40.0);
        report.late_sends = 1234;
        report.valid = false;
        report.invalid_because = vec!["behind its schedule".to_owned()];
        let text = render(&report);
        assert!(text.contains("50.0% of 40 requests/s offered; 1,234 sent over 10 ms late or never"), "{text}");
        assert!(text.contains("NOT VALID: behind its schedule"));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 41.47, 1234.6].map(micros), ["0.0", "41.5", "1,235"]);
        assert_eq!([0.0, 0.5, 41.47, 999.4].map(span), ["0 µs", "0.5 µs", "41.5 µs", "999 µs"]);
        assert_eq!([999.6, 1500.0, 20_000.0, 123_456.0].map(span), ["1 ms", "1.5 ms", "20 ms", "123 ms"]);
        assert_eq!([999_700.0, 12_340_000.0].map(span), ["1 s", "12.3 s"]);
    }
}
