//! Saved runs side by side: what was measured, which settings differ, and whether the difference is real.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;

use crate::{
    args::CompareArgs,
    json::{Percentiles, ReportFileError, RunReport},
    report::{grouped, micros},
    stats::{Difference, median, range},
    sweep::SweepReport,
};

/// How differences are judged, for people.
pub const RULE: &str = "A difference is real if chance alone would make one as large in at most one of twenty comparisons \
    (two-sided Mann-Whitney test of the valid runs, exact); its size is the median of the ratios of all pairs, with the interval \
    that holds the true one in at least 95 of 100 cases. Four runs of each are the fewest that can tell. Each comparison is judged \
    by itself: of many that chance alone made, one in twenty looks real.";
/// Settings that say the same as others, or where files were, or which draws were made: no difference between runs.
const NO_SETTINGS: [&str; 5] = ["seed", "seed_addresses", "knobs.name", "knobs.purpose", "facts.node"];

/// Why runs cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] ReportFileError),
}

/// Runs with the same settings, or with the same label.
#[derive(Clone, Debug)]
pub struct Group {
    /// What it is called.
    pub name: String,
    /// The runs; at least one.
    pub reports: Vec<RunReport>,
}

impl Group {
    /// The run with the median throughput, or the next above it; of the valid ones, if there are any.
    pub fn typical(&self) -> &RunReport {
        let any_valid = self.reports.iter().any(|report| report.valid);
        let mut order: Vec<&RunReport> = self.reports.iter().filter(|report| report.valid || !any_valid).collect();
        order.sort_by(|a, b| a.all.throughput_ops_per_s.total_cmp(&b.all.throughput_ops_per_s));
        order[order.len() / 2]
    }

    /// Runs that may be quoted.
    pub fn valid_count(&self) -> usize {
        self.reports.iter().filter(|report| report.valid).count()
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
    /// The sweeps that were given, by file; their points are drawn into one figure.
    pub sweeps: Vec<(String, SweepReport)>,
}

/// Reads the files: runs, and sweeps, of which each variant's runs at its knee are taken. Runs with a label are one group, and
/// other runs whose settings are the same are one.
///
/// # Errors
/// Names the file that is neither, the run that is given twice, or the name.
pub fn load(args: &CompareArgs) -> Result<Comparison, CompareError> {
    let (mut groups, mut sweeps, mut unlabelled) = (Vec::new(), Vec::new(), Vec::new());
    for label in &args.labels {
        let reports = label.files.iter().map(|file| RunReport::load(file)).collect::<Result<Vec<_>, _>>()?;
        groups.push(Group { name: label.name.clone(), reports });
    }
    for file in &args.files {
        match RunReport::load(file) {
            Ok(report) => unlabelled.push((file.clone(), report)),
            Err(error) => match SweepReport::load(file) {
                Ok(sweep) => sweeps.push((file, sweep)),
                Err(_) => return Err(error.into()),
            },
        }
    }
    groups.extend(by_settings(unlabelled));
    for (file, sweep) in &sweeps {
        groups.extend(at_knees(file, sweep, sweeps.len() > 1));
    }
    if groups.is_empty() {
        return Err(CompareError::Usage(
            "there is nothing to compare: no sweep has a level before its knee".to_owned(),
        ));
    }
    refuse_twins(&groups)?;
    let sweeps = sweeps.into_iter().map(|(file, sweep)| (file.display().to_string(), sweep)).collect();
    Ok(Comparison { groups, sweeps })
}

/// Puts repeats together. A group is named after the file of its first run, without what all names have in common.
fn by_settings(runs: Vec<(PathBuf, RunReport)>) -> Vec<Group> {
    let stem = |file: &Path| file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut groups: Vec<(PathBuf, Group)> = Vec::new();
    for (file, report) in runs {
        let is_same = |group: &Group| differences(&[&group.reports[0], &report]).is_empty();
        match groups.iter_mut().find(|(_, group)| is_same(group)) {
            Some((_, group)) => group.reports.push(report),
            None => groups.push((file.clone(), Group { name: stem(&file), reports: vec![report] })),
        }
    }
    let stems: Vec<String> = groups.iter().map(|(_, group)| group.name.clone()).collect();
    for (file, group) in &mut groups {
        if stems.iter().filter(|stem| **stem == group.name).count() > 1 {
            group.name = file.display().to_string();
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn at_knees(file: &Path, sweep: &SweepReport, names_file: bool) -> Vec<Group> {
    let group = |variant: &String| {
        let point = sweep.best(variant).filter(|point| !point.runs.is_empty())?;
        let of = if names_file { format!("{}: ", file.display()) } else { String::new() };
        Some(Group { name: format!("{of}{variant} at {}", sweep.level_text(point.level)), reports: point.runs.clone() })
    };
    sweep.variants.iter().filter_map(group).collect()
}

/// One run under two names would be two pieces of evidence.
fn refuse_twins(groups: &[Group]) -> Result<(), CompareError> {
    let all: Vec<(&Group, &RunReport)> =
        groups.iter().flat_map(|group| group.reports.iter().map(move |report| (group, report))).collect();
    for (place, (group, report)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..place].iter().find(|(_, known)| known == report) {
            let (first, second, at) = (&other.name, &group.name, &report.started_at);
            return Err(CompareError::Usage(format!(
                "the run that began at {at} is given twice, in '{first}' and in '{second}': give each run once"
            )));
        }
    }
    Ok(())
}

/// Every row: its name, what it reads off a report, and how that is written.
type Row = (String, Box<dyn Fn(&RunReport) -> f64>, fn(f64) -> String);
/// A name and what it stands for.
type Named<From, To> = (&'static str, fn(&From) -> To);

/// What is compared of a group, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The median.
    pub median: String,
    /// From where to where the runs are spread; empty of a single one.
    pub spread: String,
    /// How it differs from the first group; none of the first group itself.
    pub difference: Option<Difference>,
}

fn rows() -> Vec<Row> {
    let whole: fn(f64) -> String = |value| grouped(value.round() as u64);
    let mut rows: Vec<Row> = vec![
        ("throughput, 1/s".to_owned(), Box::new(|report| report.all.throughput_ops_per_s), whole),
        ("errors".to_owned(), Box::new(|report| report.all.error_count() as f64), whole),
        ("CPU, µs per op".to_owned(), Box::new(|report| report.cpu.map_or(0.0, |cpu| cpu.us_per_op)), |value| {
            format!("{value:.2}")
        }),
    ];
    let parts: [Named<RunReport, Percentiles>; 5] = [
        ("all", |report| report.all.response_us),
        ("service", |report| report.all.service_us.unwrap_or_default()),
        ("lag", |report| report.all.lag_us.unwrap_or_default()),
        // Where all are of one kind, all has been said.
        ("read", |report| if report.operations.len() == 1 { Percentiles::default() } else { report.read.response_us }),
        (
            "write",
            |report| if report.operations.len() == 1 { Percentiles::default() } else { report.write.response_us },
        ),
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
            rows.push((format!("{part} {name}, µs"), Box::new(move |report| field(&of(report))), micros));
        }
    }
    rows
}

impl Comparison {
    /// The numbers: of each that was measured its name, and what it is for each group.
    pub fn numbers(&self) -> Vec<(String, Vec<Compared>)> {
        let number = |(name, value_of, written): Row| {
            let values: Vec<Vec<f64>> = self.groups.iter().map(|group| group.values(&*value_of)).collect();
            if values.iter().flatten().all(|value| *value == 0.0) && name != "errors" {
                return None;
            }
            let compared = |(position, own): (usize, &Vec<f64>)| {
                let (least, most) = range(own);
                let is_several = own.len() > 1;
                let comparable = position > 0 && values[0].iter().any(|value| *value != 0.0);
                Compared {
                    median: written(median(own)),
                    spread: if is_several { format!("{} to {}", written(least), written(most)) } else { String::new() },
                    difference: comparable.then(|| Difference::between(&values[0], own)),
                }
            };
            let compared = values.iter().enumerate().map(compared).collect();
            Some((name, compared))
        };
        rows().into_iter().filter_map(number).collect()
    }

    /// The same as a table for a terminal: median, spread and difference in lines below each other.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let title = |group: &Group| match (group.reports.len(), group.valid_count()) {
            (1, _) => group.name.clone(),
            (all, valid) if all == valid => format!("{}\n{all} runs", group.name),
            (all, valid) => format!("{}\n{valid} of {all} runs valid", group.name),
        };
        let head = ["".to_owned()].into_iter().chain(self.groups.iter().map(title)).collect();
        let cell = |of: &Compared| {
            let spread = if of.spread.is_empty() { String::new() } else { format!("  ({})", of.spread) };
            let difference = of.difference.map_or_else(String::new, |told| format!("\n{}", told.text()));
            format!("{}{spread}{difference}", of.median)
        };
        let row = |(name, of): (String, Vec<Compared>)| [name].into_iter().chain(of.iter().map(cell)).collect();
        [head].into_iter().chain(self.numbers().into_iter().map(row)).collect()
    }

    /// What came of it, in a line: of each other group how its throughput and p99 differ from the first one's.
    pub fn headline(&self) -> String {
        let Some((first, others)) = self.groups.split_first() else { return String::new() };
        let said = |group: &Group| {
            let told = |of: &dyn Fn(&RunReport) -> f64| {
                let told = Difference::between(&first.values(of), &group.values(of));
                format!("{:+.1}% ({})", (told.ratio - 1.0) * 100.0, told.judgement())
            };
            let (rate, p99) =
                (told(&|report| report.all.throughput_ops_per_s), told(&|report| report.all.response_us.p99));
            format!("{} against {}: throughput {rate}, p99 {p99}", group.name, first.name)
        };
        if others.is_empty() { first.name.clone() } else { others.iter().map(said).collect::<Vec<_>>().join("; ") }
    }

    /// What a reader must know of the groups: runs that are in no median, runs of one label that differ, comparisons that no
    /// number of such runs could decide.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        for group in &self.groups {
            let runs = group.reports.len();
            for (number, report) in group.reports.iter().enumerate().filter(|(_, report)| !report.valid) {
                let which = if runs > 1 { format!(", run {}", number + 1) } else { String::new() };
                all.push(format!("{}{which} is not valid: {}", group.name, report.invalid_because.join("; ")));
            }
            if group.valid_count() == 0 {
                all.push(format!("{} has no valid run: its numbers are shown, and must not be quoted", group.name));
            }
            let differing = differences(&group.reports.iter().collect::<Vec<_>>());
            if !differing.is_empty() {
                let names: Vec<&str> = differing.iter().map(|(name, _)| name.as_str()).collect();
                all.push(format!("the runs of {} differ in their settings: {}", group.name, names.join(", ")));
            }
        }
        if self.groups.len() > 1 && self.groups.iter().any(|group| group.reports.len() == 1) {
            all.push(
                "with a single run nothing can be said of significance: how much the next would differ is not known"
                    .to_owned(),
            );
        }
        all
    }

    /// The sweeps as one, if their levels are of one kind: variants are named with their file where there are several.
    pub fn joint_sweep(&self) -> Option<SweepReport> {
        let (_, first) = self.sweeps.first()?;
        if self.sweeps.iter().any(|(_, sweep)| sweep.levels != first.levels) {
            return None;
        }
        let named = |file: &str, variant: &str| {
            if self.sweeps.len() > 1 { format!("{file}: {variant}") } else { variant.to_owned() }
        };
        let mut joint =
            SweepReport { variants: Vec::new(), points: Vec::new(), knees: BTreeMap::new(), ..first.clone() };
        for (file, sweep) in &self.sweeps {
            joint.variants.extend(sweep.variants.iter().map(|variant| named(file, variant)));
            joint.knees.extend(sweep.knees.iter().map(|(variant, level)| (named(file, variant), *level)));
            joint.interrupted |= sweep.interrupted;
            let bound = |sweep: &SweepReport| sweep.p99_bound_us;
            joint.p99_bound_us = joint.p99_bound_us.filter(|own| bound(sweep) == Some(*own));
            let points = sweep.points.iter().cloned();
            joint
                .points
                .extend(points.map(|point| crate::sweep::Point { variant: named(file, &point.variant), ..point }));
        }
        Some(joint)
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
        for warning in self.warnings() {
            out += &format!("Note: {warning}\n");
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
    let rows = names.into_iter().filter(|name| !NO_SETTINGS.contains(&name.as_str())).map(row);
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

    fn comparison(groups: Vec<Group>) -> Comparison {
        Comparison { groups, sweeps: Vec::new() }
    }

    /// Five runs around a throughput, with so many keys.
    fn five(keys: u64, base: f64) -> Vec<RunReport> {
        let run = |repeat: u8| {
            let mut report = sample();
            report.all.throughput_ops_per_s = base + f64::from(repeat);
            report.config.insert("keys".to_owned(), json!(keys));
            report
        };
        (0..5).map(run).collect()
    }

    #[test]
    fn numbers_and_differing_settings_stand_side_by_side() {
        let (a, mut b) = (sample(), sample());
        b.all.throughput_ops_per_s = 30.0;
        b.read.response_us.p99 *= 2.0;
        b.config.insert("keys".to_owned(), json!(5));
        b.config.insert("knobs".to_owned(), json!({"batch": {"linger_us": 7}, "purpose": "words"}));
        b.valid = false;
        b.invalid_because = vec!["interrupted".to_owned()];
        let text = comparison(vec![group("a", &[a]), group("b", &[b])]).text();
        let lines: Vec<&str> = text.lines().collect();
        let place = |start: &str| {
            let found = lines.iter().position(|line| line.trim_start_matches(['|', ' ']).starts_with(start));
            found.unwrap_or_else(|| panic!("no line {start} in\n{text}"))
        };
        let throughput = place("throughput");
        assert!(lines[throughput].contains("20") && lines[throughput].contains("30"), "{text}");
        assert!(lines[throughput + 1].contains("+50.0%, no significance: a single run"), "{text}");
        assert!(lines[place("read p99,") + 1].contains("+100.0%"));
        assert!(lines[place("keys")].contains("1000") && lines[place("keys")].contains('5'));
        assert!(lines[place("knobs.batch.linger_us")].contains('7'), "knobs of the tuning are settings too");
        assert!(!text.contains("words"), "prose is not");
        assert!(!text.contains("\n| seed"), "the same in both");
        assert!(text.contains("b is not valid: interrupted") && text.contains("b has no valid run"));
        assert!(text.contains("with a single run nothing can be said of significance"));
    }

    #[test]
    fn repeats_are_one_group_and_a_real_difference_is_told() {
        let named = |directory: &str, runs: Vec<RunReport>| {
            let file = |number: usize| PathBuf::from(format!("{directory}/run-{number}.json"));
            runs.into_iter().enumerate().map(|(number, run)| (file(number), run)).collect::<Vec<_>>()
        };
        let runs = [named("a", five(1000, 100.0)), named("b", five(5, 150.0))].concat();
        let groups = by_settings(runs.clone());
        assert_eq!(groups.iter().map(|group| group.reports.len()).collect::<Vec<_>>(), [5, 5]);
        assert_eq!(
            [&groups[0].name, &groups[1].name],
            ["a/run-0.json", "b/run-0.json"],
            "stems that say which is which"
        );
        assert_eq!(by_settings(runs[..5].to_vec())[0].name, "run-0");
        let comparison = comparison(groups);
        let (name, throughput) = &comparison.numbers()[0];
        assert!(name.starts_with("throughput"));
        assert_eq!((&throughput[0].median[..], &throughput[0].spread[..]), ("102", "100 to 104"));
        assert!(throughput[0].difference.is_none());
        let told = throughput[1].difference.unwrap().text();
        assert!(told.starts_with("+49.") && told.ends_with("real (p = 0.008)") && told.contains(" to +5"), "{told}");
        assert!(comparison.headline().contains("b/run-0.json against a/run-0.json: throughput +49."));
        assert_eq!(comparison.groups[0].typical().all.throughput_ops_per_s, 102.0);
        assert!(comparison.warnings().is_empty(), "{:?}", comparison.warnings());
    }

    #[test]
    fn runs_that_are_not_valid_are_in_no_median_and_are_named() {
        let mut runs = five(1000, 100.0);
        runs[4].valid = false;
        runs[4].invalid_because = vec!["late".to_owned()];
        let comparison = comparison(vec![group("a", &runs)]);
        assert_eq!(comparison.numbers()[0].1[0].spread, "100 to 103");
        assert!(
            comparison.text().contains("4 of 5 runs valid")
                && comparison.text().contains("a, run 5 is not valid: late")
        );
    }

    #[test]
    fn labels_make_groups_of_files_and_no_run_counts_twice() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let mut runs = five(1000, 100.0);
        runs[1].config.insert("keys".to_owned(), json!(7));
        for (number, run) in runs.iter().enumerate() {
            run.save(&file(&format!("{number}.json"))).unwrap();
        }
        let label = |name: &str, files: &[&str]| crate::args::Label {
            name: name.to_owned(),
            files: files.iter().map(|name| file(name)).collect(),
        };
        let args = |labels, files: &[&str]| CompareArgs {
            labels,
            files: files.iter().map(|name| file(name)).collect(),
            html: None,
        };
        let comparison = load(&args(vec![label("mine", &["0.json", "1.json"])], &["2.json", "3.json"])).unwrap();
        let names: Vec<_> = comparison.groups.iter().map(|group| (&group.name[..], group.reports.len())).collect();
        assert_eq!(names, [("mine", 2), ("2", 2)]);
        assert!(comparison.warnings()[0].contains("the runs of mine differ in their settings: keys"));
        let twice = load(&args(vec![label("mine", &["0.json"])], &["0.json"])).unwrap_err().to_string();
        assert!(twice.contains("given twice, in 'mine' and in '0'"), "{twice}");
        assert!(load(&args(Vec::new(), &["none.json"])).unwrap_err().to_string().contains("none.json"));
    }

    #[test]
    fn equal_settings_are_said_to_be_equal() {
        assert!(comparison(vec![group("a", &[sample(), sample(), sample()])]).text().contains("same settings"));
    }
}
