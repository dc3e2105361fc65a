//! Saved runs side by side.

use std::{collections::BTreeMap, path::PathBuf};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use crate::{
    json::{Percentiles, ReportFileError, RunReport},
    report::{grouped, micros},
};

/// Reads the files and sets them side by side.
///
/// # Errors
/// Names the file that is not a report.
pub fn compare(files: &[PathBuf]) -> Result<String, ReportFileError> {
    let reports = files.iter().map(|file| RunReport::load(file)).collect::<Result<Vec<_>, _>>()?;
    let names = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
    Ok(side_by_side(&names, &reports))
}

/// The table of numbers, then the settings that differ.
fn side_by_side(names: &[String], reports: &[RunReport]) -> String {
    let mut out = format!("{}\n\n", numbers(names, reports));
    let differing = differences(reports);
    if differing.is_empty() {
        out += "The runs have the same settings.\n";
    } else {
        let mut table = table(["setting".to_owned()].into_iter().chain(names.iter().cloned()));
        for (setting, values) in differing {
            table.add_row([setting].into_iter().chain(values));
        }
        out += &format!("Settings that differ:\n{table}\n");
    }
    for (name, report) in names.iter().zip(reports).filter(|(_, report)| !report.valid) {
        out += &format!("{name} is not valid: {}\n", report.invalid_because.join("; "));
    }
    out
}

fn table(header: impl Iterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(header.enumerate().map(|(column, name)| {
        Cell::new(name).set_alignment(if column == 0 { CellAlignment::Left } else { CellAlignment::Right })
    }));
    table
}

/// Every row: its name, what it reads off a report, and how that is written.
type Row = (String, Box<dyn Fn(&RunReport) -> f64>, fn(f64) -> String);
/// A name and what it stands for.
type Named<From, To> = (&'static str, fn(&From) -> To);

fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = vec![
        ("throughput, 1/s".to_owned(), Box::new(|report| report.all.throughput_ops_per_s), |value| {
            grouped(value as u64)
        }),
        ("errors".to_owned(), Box::new(|report| report.all.error_count() as f64), |value| grouped(value as u64)),
    ];
    let parts: [Named<RunReport, Percentiles>; 3] = [
        ("all", |report| report.all.response_us),
        ("read", |report| report.read.response_us),
        ("write", |report| report.write.response_us),
    ];
    let fields: [Named<Percentiles, f64>; 6] = [
        ("p50", |of| of.p50),
        ("p95", |of| of.p95),
        ("p99", |of| of.p99),
        ("p99.9", |of| of.p99_9),
        ("max", |of| of.max),
        ("mean", |of| of.mean),
    ];
    for (part, of) in parts {
        for (name, field) in fields {
            rows.push((format!("{part} {name}, us"), Box::new(move |report| field(&of(report))), micros));
        }
    }
    rows
}

/// Each run's numbers, and how far they are from those of the first.
fn numbers(names: &[String], reports: &[RunReport]) -> Table {
    let mut table = table(["".to_owned()].into_iter().chain(names.iter().cloned()));
    for (name, value_of, written) in rows() {
        let base = value_of(&reports[0]);
        let cells = reports.iter().enumerate().map(|(position, report)| {
            let value = value_of(report);
            let text = if position == 0 || base == 0.0 {
                written(value)
            } else {
                format!("{} ({:+.1}%)", written(value), (value / base - 1.0) * 100.0)
            };
            Cell::new(text).set_alignment(CellAlignment::Right)
        });
        table.add_row([Cell::new(name)].into_iter().chain(cells));
    }
    table
}

/// The settings that are not the same in all reports, with each report's value.
fn differences(reports: &[RunReport]) -> Vec<(String, Vec<String>)> {
    let flat: Vec<BTreeMap<String, String>> = reports
        .iter()
        .map(|report| {
            let mut flat = BTreeMap::from([("version".to_owned(), report.version.clone())]);
            for (name, value) in &report.config {
                flatten(name, value, &mut flat);
            }
            flat
        })
        .collect();
    let names: std::collections::BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let row = |name: &String| {
        let values = flat.iter().map(|settings| settings.get(name).cloned().unwrap_or_else(|| "-".to_owned()));
        (name.clone(), values.collect::<Vec<_>>())
    };
    names.into_iter().map(row).filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1])).collect()
}

fn flatten(name: &str, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&format!("{name}.{field}"), value, flat);
            }
        }
        Value::String(text) => drop(flat.insert(name.to_owned(), text.clone())),
        other => drop(flat.insert(name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::sample;

    #[test]
    fn numbers_and_differing_settings_stand_side_by_side() {
        let (a, mut b) = (sample(), sample());
        b.all.throughput_ops_per_s = 30.0;
        b.read.response_us.p99 *= 2.0;
        b.config.insert("keys".to_owned(), json!(5));
        b.config.insert("cluster".to_owned(), json!({"facts": {"tuning": "big-batches"}}));
        b.valid = false;
        b.invalid_because = vec!["interrupted".to_owned()];
        let text = side_by_side(&["a.json".to_owned(), "b.json".to_owned()], &[a, b]);
        let line = |start: &str| {
            let found = text.lines().find(|line| line.trim_start_matches(['|', ' ']).starts_with(start));
            found.unwrap_or_else(|| panic!("no line {start} in\n{text}")).to_owned()
        };
        assert!(line("throughput").contains("20") && line("throughput").contains("30 (+50.0%)"));
        assert!(line("read p99,").contains("(+100.0%)"));
        assert!(line("keys").contains("1000") && line("keys").contains('5'));
        assert!(line("cluster.facts.tuning").contains("big-batches"));
        assert!(!text.contains("seed"), "the same in both");
        assert!(text.contains("b.json is not valid: interrupted"));
    }

    #[test]
    fn equal_settings_are_said_to_be_equal() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        assert!(side_by_side(&names, &[sample(), sample(), sample()]).contains("same settings"));
    }
}
