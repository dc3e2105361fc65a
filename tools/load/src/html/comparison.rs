//! The page of a comparison.

use super::{banner, charts, differing, environment, escaped, figure, note, page, settings, sweep, table_of_markup};
use crate::{
    compare::{Compared, Comparison, Group, RULE},
    json::RunReport,
    stats::Verdict,
};

/// The page of a comparison.
pub fn of_comparison(comparison: &Comparison) -> String {
    let warnings = comparison.warnings();
    let mut body = if warnings.is_empty() {
        banner(true, "All runs are valid.", "", &[])
    } else {
        banner(false, "To be read with care:", "", &warnings)
    };
    if let Some(sweep) = comparison.joint_sweep() {
        body += &sweep::throughput_figures(&sweep);
        body += &note(&sweep.rule);
    }
    body += "<h2>Medians</h2>\n";
    body += &numbers(comparison);
    body += &note(RULE);
    let typical: Vec<(&str, &RunReport)> =
        comparison.groups.iter().map(|group| (group.name.as_str(), group.typical())).collect();
    let curves: Vec<_> = typical.iter().map(|(name, run)| (*name, run.curves.response.as_slice())).collect();
    body += &figure(
        "Response time by percentile",
        "Of the run with the median throughput of each.",
        &charts::percentiles("response time", &curves),
    );
    let runs: Vec<_> = comparison.groups.iter().map(|group| (group.name.as_str(), group.reports.as_slice())).collect();
    body += &figure(
        "Every run",
        "Of each from above to below in the order given; the stroke is the median of the valid runs. Hollow: not valid.",
        &charts::every_run(&runs),
    );
    if typical.iter().any(|(_, run)| !run.seconds.is_empty()) {
        body += &figure(
            "Throughput over time",
            "The measured seconds of the run with the median throughput of each.",
            &charts::rates_over_time(&typical),
        );
    }
    let firsts: Vec<(String, &RunReport)> =
        comparison.groups.iter().map(|group| (group.name.clone(), &group.reports[0])).collect();
    if firsts.len() > 1 {
        body += &differing(&firsts);
    }
    body += &environment(&firsts);
    for (name, report) in &firsts {
        body += &settings(&format!("All settings of {name}"), report);
    }
    page("wpaxos-load compare", &title(comparison), &body)
}

fn title(comparison: &Comparison) -> String {
    match comparison.groups.len() {
        1 | 2 => comparison.headline(),
        _ => comparison.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(" against "),
    }
}

fn numbers(comparison: &Comparison) -> String {
    let title = |group: &Group| {
        let (runs, valid) = (group.reports.len(), group.valid_count());
        let count = if runs == 1 { "1 run".to_owned() } else { format!("{valid} of {runs} runs valid") };
        format!("{}<br><small>{count}</small>", escaped(&group.name))
    };
    let head = [String::new()].into_iter().chain(comparison.groups.iter().map(title)).collect();
    let row = |(name, of): (String, Vec<Compared>)| {
        let cells = [escaped(&name)].into_iter().chain(of.iter().map(cell)).collect();
        (name == "throughput, 1/s" || name == "all p99, µs", cells)
    };
    let rows: Vec<_> = [(false, head)].into_iter().chain(comparison.numbers().into_iter().map(row)).collect();
    table_of_markup("", &rows)
}

/// Median, spread, and what the difference says: below each other.
fn cell(of: &Compared) -> String {
    let mut out = escaped(&of.median);
    if !of.spread.is_empty() {
        out += &format!("<small>{}</small>", escaped(&of.spread));
    }
    if let Some(told) = &of.difference {
        let (size, judgement) = (escaped(&told.size()), escaped(&told.judgement()));
        let class = if told.verdict == Verdict::Real { " class=\"real\"" } else { "" };
        out += &format!("<small><span{class}>{size}</span></small><small><span{class}>{judgement}</span></small>");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{html::tests::assert_alone, json::sample, sweep::tests::sample_sweep};

    fn group(name: &str, reports: Vec<RunReport>) -> Group {
        Group { name: name.to_owned(), reports }
    }

    fn runs(keys: u64, base: f64) -> Vec<RunReport> {
        let run = |repeat: u8| {
            let mut report = sample();
            report.all.throughput_ops_per_s = base + f64::from(repeat);
            report.config.insert("keys".to_owned(), serde_json::json!(keys));
            report
        };
        (0..5).map(run).collect()
    }

    #[test]
    fn a_comparison_names_what_differs_and_whether_it_is_real() {
        let groups = vec![group("first & <b>", runs(1000, 100.0)), group("second", runs(7, 150.0))];
        let page = of_comparison(&Comparison { groups, sweeps: Vec::new() });
        for part in [
            "second against first &amp; &lt;b&gt;: throughput +49.",
            "Settings that differ",
            ">keys<",
            ">7<",
            "class=\"real\">real (p = 0.008)",
            "<small>100 to 104</small>",
            "5 of 5 runs valid",
            "Every run",
            "Throughput over time",
            "All runs are valid.",
            "</svg>second</li>",
        ] {
            assert!(page.contains(part), "no {part:?}");
        }
        assert_alone(&page);
    }

    #[test]
    fn single_runs_are_compared_without_a_verdict() {
        let (a, mut b) = (sample(), sample());
        b.all.throughput_ops_per_s = 30.0;
        let page =
            of_comparison(&Comparison { groups: vec![group("a", vec![a]), group("b", vec![b])], sweeps: Vec::new() });
        assert!(page.contains("nothing can be said of significance") && page.contains("+50.0%"));
        assert!(!page.contains("class=\"real\"") && !page.contains("All runs are valid."));
        assert_alone(&page);
    }

    #[test]
    fn two_sweeps_are_drawn_into_one_figure() {
        let sweeps = vec![("before".to_owned(), sample_sweep()), ("after".to_owned(), sample_sweep())];
        let page = of_comparison(&Comparison { groups: vec![group("a", vec![sample()])], sweeps });
        for part in ["p99 latency against throughput", "</svg>before: fast</li>", "</svg>after: slow</li>"] {
            assert!(page.contains(part), "no {part:?}");
        }
        assert_alone(&page);
    }
}
