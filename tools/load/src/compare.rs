//! Saved runs side by side: what was measured, which settings differ, and whether the difference is real.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use crate::{
    json::{Percentiles, ReportFileError, RunReport},
    report::{grouped, micros},
    stats::{Difference, median, range},
    sweep::SweepReport,
};

/// How differences are judged, for people.
pub const RULE: &str = "A difference is real if chance alone would make one as large in fewer than one of twenty comparisons \
    (two-sided Mann-Whitney test of the valid runs, exact); its size is the median of the ratios of all pairs. Four runs of each \
    are the fewest that can tell.";

/// Runs with the same settings.
#[derive(Clone, Debug)]
pub struct Group {
    /// What it is called.
    pub name: String,
    /// The runs; at least one.
    pub reports: Vec<RunReport>,
}

impl Group {
    /// The run with the median throughput, or the next above it.
    pub fn typical(&self) -> &RunReport {
        let mut order: Vec<&RunReport> = self.reports.iter().collect();
        order.sort_by(|a, b| a.all.throughput_ops_per_s.total_cmp(&b.all.throughput_ops_per_s));
        order[order.len() / 2]
    }

    /// What is read off each run that may be quoted; off all of them if none may.
    fn values(&self, of: &dyn Fn(&RunReport) -> f64) -> Vec<f64> {
        let valid: Vec<f64> = self.reports.iter().filter(|report| report.valid).map(of).collect();
        if valid.is_empty() { self.reports.iter().map(of).collect() } else { valid }
    }
}

/// Groups of runs; the others are compared with the first.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// At least one.
    pub groups: Vec<Group>,
}

/// Reads the files: runs, and sweeps, of which each variant's runs at its knee are taken. Runs whose settings are the same make
/// one group, named after its first file.
///
/// # Errors
/// Names the file that is neither.
pub fn load(files: &[PathBuf]) -> Result<Comparison, ReportFileError> {
    let mut groups: Vec<Group> = Vec::new();
    for file in files {
        match RunReport::load(file) {
            Ok(report) => add(&mut groups, &file.display().to_string(), report),
            Err(error) => match SweepReport::load(file) {
                Ok(sweep) => groups.extend(at_knees(file, &sweep)),
                Err(_) => return Err(error),
            },
        }
    }
    Ok(Comparison { groups })
}

fn add(groups: &mut Vec<Group>, name: &str, report: RunReport) {
    let same = groups.iter_mut().find(|group| differences(&[&group.reports[0], &report]).is_empty());
    match same {
        Some(group) => group.reports.push(report),
        None => groups.push(Group { name: name.to_owned(), reports: vec![report] }),
    }
}

fn at_knees(file: &Path, sweep: &SweepReport) -> Vec<Group> {
    let group = |(variant, level): (&String, &u64)| {
        let point = sweep.points.iter().find(|point| point.variant == *variant && point.level == *level)?;
        let name = format!("{}: {variant} at {level}", file.display());
        (!point.runs.is_empty()).then(|| Group { name, reports: point.runs.clone() })
    };
    sweep.knees.iter().filter_map(group).collect()
}

/// Every row: its name, what it reads off a report, and how that is written.
type Row = (String, Box<dyn Fn(&RunReport) -> f64>, fn(f64) -> String);
/// A name and what it stands for.
type Named<From, To> = (&'static str, fn(&From) -> To);

fn rows() -> Vec<Row> {
    let whole: fn(f64) -> String = |value| grouped(value as u64);
    let mut rows: Vec<Row> = vec![
        ("throughput, 1/s".to_owned(), Box::new(|report| report.all.throughput_ops_per_s), whole),
        ("errors".to_owned(), Box::new(|report| report.all.error_count() as f64), whole),
        ("CPU, us per op".to_owned(), Box::new(|report| report.cpu.map_or(0.0, |cpu| cpu.us_per_op)), |value| {
            format!("{value:.2}")
        }),
    ];
    let parts: [Named<RunReport, Percentiles>; 5] = [
        ("all", |report| report.all.response_us),
        ("service", |report| report.all.service_us.unwrap_or_default()),
        ("lag", |report| report.all.lag_us.unwrap_or_default()),
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

impl Comparison {
    /// The numbers: medians, their spread where there are several runs, and what the difference from the first group says.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let head = ["".to_owned()].into_iter().chain(self.groups.iter().map(|group| group.name.clone())).collect();
        let mut all = vec![head];
        for (name, value_of, written) in rows() {
            let values: Vec<Vec<f64>> = self.groups.iter().map(|group| group.values(&*value_of)).collect();
            if values.iter().flatten().all(|value| *value == 0.0) && !name.starts_with("errors") {
                continue;
            }
            let cell = |(position, own): (usize, &Vec<f64>)| {
                let (least, most) = range(own);
                let mut text = written(median(own));
                if own.len() > 1 {
                    text += &format!(" [{} to {}]", written(least), written(most));
                }
                let comparable = position > 0 && values[0].iter().any(|value| *value != 0.0);
                if comparable { format!("{text} ({})", Difference::between(&values[0], own).text()) } else { text }
            };
            all.push([name].into_iter().chain(values.iter().enumerate().map(cell)).collect());
        }
        all
    }

    /// As a terminal shows it: the numbers, then the settings that differ.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n\n{RULE}\n\n", table(&self.rows()));
        let firsts: Vec<&RunReport> = self.groups.iter().map(|group| &group.reports[0]).collect();
        let differing = differences(&firsts);
        if differing.is_empty() {
            out += "The runs have the same settings.\n";
        } else {
            let head = ["setting".to_owned()].into_iter().chain(self.groups.iter().map(|group| group.name.clone()));
            let rows = differing.into_iter().map(|(setting, values)| [setting].into_iter().chain(values).collect());
            let rows: Vec<Vec<String>> = [head.collect()].into_iter().chain(rows).collect();
            out += &format!("Settings that differ:\n{}\n", table(&rows));
        }
        for group in &self.groups {
            for report in group.reports.iter().filter(|report| !report.valid) {
                out += &format!("{} is not valid: {}\n", group.name, report.invalid_because.join("; "));
            }
        }
        out
    }
}

/// A table for a terminal; the first row is its head.
pub(crate) fn table(rows: &[Vec<String>]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED);
    let aligned = |(column, text): (usize, &String)| {
        Cell::new(text).set_alignment(if column == 0 { CellAlignment::Left } else { CellAlignment::Right })
    };
    let mut rows = rows.iter().map(|row| row.iter().enumerate().map(aligned).collect::<Vec<_>>());
    if let Some(head) = rows.next() {
        table.set_header(head);
    }
    for row in rows {
        table.add_row(row);
    }
    table
}

/// The settings that are not the same in all reports, with each report's value. What only says where a run kept its files is
/// none.
pub fn differences(reports: &[&RunReport]) -> Vec<(String, Vec<String>)> {
    let flat: Vec<BTreeMap<String, String>> = reports.iter().map(|report| flat_settings(report)).collect();
    let names: BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let row = |name: &String| {
        let values = flat.iter().map(|settings| settings.get(name).cloned().unwrap_or_else(|| "-".to_owned()));
        (name.clone(), values.collect::<Vec<_>>())
    };
    let rows = names.into_iter().filter(|name| *name != "seed_addresses").map(row);
    rows.filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1])).collect()
}

/// All settings of a run, by name; what is inside of others behind their names.
pub fn flat_settings(report: &RunReport) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::from([("version".to_owned(), report.version.clone())]);
    for (name, value) in &report.config {
        flatten(name, value, &mut flat);
    }
    flat
}

fn flatten(name: &str, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&format!("{name}.{field}"), value, flat);
            }
        }
        Value::String(text) => drop(flat.insert(name.to_owned(), text.clone())),
        Value::Array(items) => {
            let items: Vec<String> =
                items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect();
            flat.insert(name.to_owned(), items.join(" "));
        }
        other => drop(flat.insert(name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::json::sample;

    fn group(name: &str, reports: &[RunReport]) -> Group {
        Group { name: name.to_owned(), reports: reports.to_vec() }
    }

    #[test]
    fn numbers_and_differing_settings_stand_side_by_side() {
        let (a, mut b) = (sample(), sample());
        b.all.throughput_ops_per_s = 30.0;
        b.read.response_us.p99 *= 2.0;
        b.config.insert("keys".to_owned(), json!(5));
        b.config.insert("cluster".to_owned(), json!({"facts": {"tuning": "big-batches"}}));
        b.valid = false;
        b.invalid_because = vec!["interrupted".to_owned()];
        let text = Comparison { groups: vec![group("a.json", &[a]), group("b.json", &[b])] }.text();
        let line = |start: &str| {
            let found = text.lines().find(|line| line.trim_start_matches(['|', ' ']).starts_with(start));
            found.unwrap_or_else(|| panic!("no line {start} in\n{text}")).to_owned()
        };
        assert!(line("throughput").contains("20") && line("throughput").contains("30 (+50.0%, too few runs to tell)"));
        assert!(line("read p99,").contains("(+100.0%"));
        assert!(line("keys").contains("1000") && line("keys").contains('5'));
        assert!(line("cluster.facts.tuning").contains("big-batches"));
        assert!(!text.contains("\n| seed"), "the same in both");
        assert!(text.contains("b.json is not valid: interrupted"));
    }

    #[test]
    fn repeats_are_one_group_and_a_real_difference_is_told() {
        let mut groups = Vec::new();
        for (keys, base) in [(1000, 100.0), (5, 150.0)] {
            for repeat in 0..5 {
                let mut report = sample();
                report.all.throughput_ops_per_s = base + f64::from(repeat);
                report.config.insert("keys".to_owned(), json!(keys));
                add(&mut groups, &format!("{keys}-{repeat}"), report);
            }
        }
        assert_eq!(groups.iter().map(|group| group.reports.len()).collect::<Vec<_>>(), [5, 5]);
        let comparison = Comparison { groups };
        let throughput = &comparison.rows()[1];
        assert!(throughput[1].starts_with("102 [100 to 104]"), "{throughput:?}");
        assert!(throughput[2].contains("real (p = 0.008)"), "{throughput:?}");
        assert_eq!(comparison.groups[0].typical().all.throughput_ops_per_s, 102.0);
    }

    #[test]
    fn equal_settings_are_said_to_be_equal() {
        let comparison = Comparison { groups: vec![group("a", &[sample(), sample(), sample()])] };
        assert!(comparison.text().contains("same settings"));
    }
}
