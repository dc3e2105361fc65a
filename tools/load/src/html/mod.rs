//! Reports as pages that stand alone: one file, no script, nothing loaded from anywhere; fit for a screen, light or dark, and
//! for paper.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use crate::{
    compare::{Comparison, differences, flat_settings},
    json::{CurvePoint, Phase, ReportFileError, RunReport, Second},
    report::{grouped, micros},
    sweep::SweepReport,
};

mod plot;

use plot::{Axis, Plot, Scale, Series, label};

const STYLE: &str = include_str!("style.css");
/// What is faster than this is not drawn: it would only make the axis longer.
const LEAST_US: f64 = 1.0;
/// The end of the axis of percentiles: five nines.
const LAST_PERCENTILE: f64 = 99.999;

/// Text that cannot be taken for markup.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            other => out.push(other),
        }
    }
    out
}

/// Writes a page.
///
/// # Errors
/// If the file cannot be written.
pub fn save(page: &str, path: &Path) -> Result<(), ReportFileError> {
    let file = path.display().to_string();
    fs::write(path, page).map_err(|error| ReportFileError::Io { what: "write", file, error })
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n{body}\
         <footer>wpaxos-load {}</footer>\n</main></body></html>\n",
        env!("CARGO_PKG_VERSION"),
        title = escaped(title),
    )
}

fn figure(title: &str, caption: &str, plot: &Plot) -> String {
    format!("<figure><h2>{title}</h2>\n{}<figcaption>{caption}</figcaption></figure>\n", plot.svg())
}

/// A table; the first row is its head, the first column names the others.
fn table(rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"wide\"><table>\n");
    for (number, row) in rows.iter().enumerate() {
        let cell = |(column, text): (usize, &String)| match (number, column) {
            (0, _) => format!("<th scope=\"col\">{}</th>", escaped(text)),
            (_, 0) => format!("<th scope=\"row\">{}</th>", escaped(text)),
            _ => format!("<td>{}</td>", escaped(text)),
        };
        let _ = writeln!(out, "<tr>{}</tr>", row.iter().enumerate().map(cell).collect::<String>());
    }
    out + "</table></div>\n"
}

fn settings(summary: &str, all: &BTreeMap<String, String>) -> String {
    let rows = [vec!["setting".to_owned(), "value".to_owned()]].into_iter();
    let rows: Vec<_> = rows.chain(all.iter().map(|(name, value)| vec![name.clone(), value.clone()])).collect();
    format!("<details><summary>{summary}</summary>{}</details>\n", table(&rows))
}

/// What every figure must be read with, in a line; without what `varies`.
fn conditions(report: &RunReport, varies: &[&str]) -> String {
    let flat = flat_settings(report);
    let named = [
        ("facts.nodes", "nodes"),
        ("facts.quorum", "quorums"),
        ("facts.durability", "durability"),
        ("value_bytes", "bytes of value"),
        ("concurrency", "in flight"),
        ("rate", "requests/s offered"),
        ("cores", "cores"),
        ("facts.pinning", "executors"),
        ("pinning", "load"),
        ("facts.tuning", "tuning"),
        ("target", "target"),
    ];
    let said = named.into_iter().filter(|(key, _)| !varies.contains(key));
    let said = said.filter_map(|(key, name)| flat.get(key).map(|value| format!("{name}: {value}")));
    escaped(&said.collect::<Vec<_>>().join(" · "))
}

/// The page of one run.
pub fn of_run(report: &RunReport) -> String {
    let mut body = format!("<h1>{}</h1>\n", escaped(&headline(report)));
    let _ = writeln!(body, "<p class=\"conditions\">{}</p>", conditions(report, &[]));
    if !report.valid {
        let why = escaped(&report.invalid_because.join("; "));
        let _ = writeln!(body, "<p class=\"invalid\"><strong>Not valid:</strong> {why}</p>");
    }
    body += &table(&latency_rows(report));
    body += &figure(
        "Latency by percentile",
        "Response time counts from the intended start; service time from the sending. What lies between is the schedule lag.",
        &percentiles(&[
            ("response", &report.curves.response),
            ("service", &report.curves.service),
            ("lag", &report.curves.lag),
        ]),
    );
    body += &over_time(report);
    for note in &report.notes {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escaped(note));
    }
    body += &settings("All settings, the machine, and what the cluster says of itself", &flat_settings(report));
    page(&format!("wpaxos-load: {}", headline(report)), &body)
}

fn headline(report: &RunReport) -> String {
    let rate = grouped(report.all.throughput_ops_per_s.round() as u64);
    format!("{rate} requests/s, p99 {} µs", micros(report.all.response_us.p99))
}

fn latency_rows(report: &RunReport) -> Vec<Vec<String>> {
    let head = ["µs", "p50", "p90", "p99", "p99.9", "p99.99", "max", "mean", "count", "requests/s", "errors"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut add = |name: &str, of: &crate::json::Percentiles, more: [String; 2]| {
        let times = [of.p50, of.p90, of.p99, of.p99_9, of.p99_99, of.max, of.mean].map(micros);
        rows.push([name.to_owned()].into_iter().chain(times).chain([grouped(of.count)]).chain(more).collect());
    };
    let rate = |part: &crate::json::Part| grouped(part.throughput_ops_per_s.round() as u64);
    add("all: response", &report.all.response_us, [rate(&report.all), grouped(report.all.error_count())]);
    for (name, part) in [("service", &report.all.service_us), ("lag", &report.all.lag_us)] {
        if let Some(times) = part {
            add(&format!("all: {name}"), times, [String::new(), String::new()]);
        }
    }
    for (name, part) in &report.operations {
        add(name, &part.response_us, [rate(part), grouped(part.error_count())]);
    }
    rows
}

fn percentiles(curves: &[(&str, &[CurvePoint])]) -> Plot {
    let series = |(name, curve): &(&str, &[CurvePoint])| Series {
        name: (*name).to_owned(),
        points: curve
            .iter()
            .filter(|at| at.percentile <= LAST_PERCENTILE && at.us >= LEAST_US)
            .map(|at| (at.percentile, at.us))
            .collect(),
        ..Series::default()
    };
    Plot {
        x: Axis { title: "percentile of requests", scale: Scale::Nines },
        y: Axis { title: "time, µs", scale: Scale::Log },
        series: curves.iter().filter(|(_, curve)| !curve.is_empty()).map(series).collect(),
        bands: Vec::new(),
    }
}

/// Without the last one of the cool-down if the load ended in it.
fn whole_seconds(seconds: &[Second]) -> &[Second] {
    match seconds {
        [rest @ .., before, last] if last.phase == Phase::CoolDown && last.answered * 2 < before.answered => {
            &seconds[..=rest.len()]
        }
        all => all,
    }
}

/// Latency and throughput by second, with what was not measured shaded.
fn over_time(report: &RunReport) -> String {
    let seconds = whole_seconds(&report.seconds);
    let band = |phase: Phase, name| {
        let mut of = seconds.iter().filter(|second| second.phase == phase).map(|second| second.second as f64);
        let first = of.next()?;
        Some((first, of.next_back().unwrap_or(first) + 1.0, name))
    };
    let bands: Vec<_> =
        [band(Phase::WarmUp, "warm-up"), band(Phase::CoolDown, "cool-down")].into_iter().flatten().collect();
    let line = |name: &str, of: fn(&Second) -> f64| Series {
        name: name.to_owned(),
        // In the middle of its second.
        points: seconds.iter().map(|at| (at.second as f64 + 0.5, of(at))).filter(|(_, y)| *y > 0.0).collect(),
        dots: true,
        notes: seconds
            .iter()
            .filter(|at| of(at) > 0.0)
            .map(|at| format!("second {}: {}", at.second, label(of(at))))
            .collect(),
        ..Series::default()
    };
    let time = Axis { title: "seconds of measured time", scale: Scale::Linear };
    let plot = |y, series| Plot { x: time, y, series, bands: bands.clone() };
    let rate = plot(
        Axis { title: "requests answered per second", scale: Scale::Linear },
        vec![line("answered", |at| at.answered as f64)],
    );
    let latency = [line("p50", |at| at.p50_us), line("p99", |at| at.p99_us), line("max", |at| at.max_us)];
    let latency = plot(Axis { title: "response time, µs", scale: Scale::Log }, latency.to_vec());
    figure(
        "Throughput over time",
        "Good answers in each second; one in which the load ended is left out behind the measured time.",
        &rate,
    ) + &figure("Latency over time", "Of the requests that were answered in each second.", &latency)
}

/// The page of a comparison.
pub fn of_comparison(comparison: &Comparison) -> String {
    let names: Vec<&str> = comparison.groups.iter().map(|group| group.name.as_str()).collect();
    let mut body = format!("<h1>{}</h1>\n", escaped(&names.join(" against ")));
    for group in &comparison.groups {
        let count = group.reports.len();
        let _ = writeln!(
            body,
            "<p class=\"conditions\">{} ({count} runs) · {}</p>",
            escaped(&group.name),
            conditions(&group.reports[0], &[])
        );
        for report in group.reports.iter().filter(|report| !report.valid) {
            let why = escaped(&report.invalid_because.join("; "));
            let _ =
                writeln!(body, "<p class=\"invalid\"><strong>{}: not valid:</strong> {why}</p>", escaped(&group.name));
        }
    }
    body += &table(&comparison.rows());
    let _ = writeln!(body, "<p class=\"note\">{}</p>", escaped(crate::compare::RULE));
    let typical = |group: &crate::compare::Group| group.typical().curves.response.clone();
    let curves: Vec<_> = comparison.groups.iter().map(|group| (group.name.as_str(), typical(group))).collect();
    let curves: Vec<_> = curves.iter().map(|(name, curve)| (*name, curve.as_slice())).collect();
    body +=
        &figure("Response time by percentile", "Of the run with the median throughput of each.", &percentiles(&curves));
    let firsts: Vec<&RunReport> = comparison.groups.iter().map(|group| &group.reports[0]).collect();
    body += &differing(&names, &firsts);
    for group in &comparison.groups {
        body += &settings(&format!("All settings of {}", escaped(&group.name)), &flat_settings(&group.reports[0]));
    }
    page(&format!("wpaxos-load: {}", names.join(" against ")), &body)
}

fn differing(names: &[&str], reports: &[&RunReport]) -> String {
    let differing = differences(reports);
    if differing.is_empty() {
        return "<p>The settings are the same.</p>\n".to_owned();
    }
    let head = ["setting"].iter().chain(names).map(|name| (*name).to_owned()).collect();
    let rows = differing.into_iter().map(|(setting, values)| [setting].into_iter().chain(values).collect());
    format!("<h2>Settings that differ</h2>\n{}", table(&[head].into_iter().chain(rows).collect::<Vec<_>>()))
}

/// The page of a sweep.
pub fn of_sweep(sweep: &SweepReport) -> String {
    let mut body = format!("<h1>{}</h1>\n", escaped(&sweep.headline()));
    if let Some(first) = sweep.points.iter().find_map(|point| point.runs.first()) {
        let _ = writeln!(
            body,
            "<p class=\"conditions\">{}</p>",
            conditions(first, &["concurrency", "rate", "facts.tuning"])
        );
    }
    if sweep.interrupted {
        body += "<p class=\"invalid\"><strong>Interrupted:</strong> what was measured until then is shown.</p>\n";
    }
    body += &figure(
        "Latency against throughput",
        "Medians of the repeats; bars from the least to the greatest. The knee is the last point before the rule below says stop.",
        &against(sweep, |point| point.p99_us(), "p99 of response time, µs"),
    );
    body += &figure(
        "Median latency against throughput",
        "The same runs.",
        &against(sweep, |point| point.p50_us(), "p50 of response time, µs"),
    );
    let _ = writeln!(body, "<p class=\"note\">{}</p>", escaped(&sweep.rule));
    body += "<h2>Medians</h2>\n";
    body += &table(&sweep.rows());
    body += "<h2>Differences</h2>\n";
    body += &table(&sweep.difference_rows());
    let _ = writeln!(body, "<p class=\"note\">{}</p>", escaped(crate::compare::RULE));
    let firsts: Vec<_> =
        sweep.variants.iter().filter_map(|name| sweep.first_run(name).map(|run| (name.as_str(), run))).collect();
    let (names, reports): (Vec<&str>, Vec<&RunReport>) = firsts.into_iter().unzip();
    body += &differing(&names, &reports);
    for (name, report) in names.iter().zip(reports) {
        body += &settings(&format!("All settings of {}", escaped(name)), &flat_settings(report));
    }
    page(&format!("wpaxos-load: {}", sweep.headline()), &body)
}

fn against(sweep: &SweepReport, of: fn(&crate::sweep::Point) -> (f64, (f64, f64)), title: &'static str) -> Plot {
    let series = |variant: &String| {
        let points: Vec<_> =
            sweep.points.iter().filter(|point| point.variant == *variant && point.is_measured()).collect();
        Series {
            name: variant.clone(),
            points: points.iter().map(|point| (point.throughput().0, of(point).0)).collect(),
            spread: points.iter().map(|point| [point.throughput().1, of(point).1]).collect(),
            notes: points.iter().map(|point| point.describe()).collect(),
            mark: points.iter().position(|point| sweep.knees.get(variant) == Some(&point.level)),
            dots: true,
        }
    };
    Plot {
        x: Axis { title: "requests answered per second", scale: Scale::Linear },
        y: Axis { title, scale: Scale::Log },
        series: sweep.variants.iter().map(series).collect(),
        bands: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compare::Group, json::sample};

    #[test]
    fn a_page_stands_alone_and_has_everything() {
        let mut report = sample();
        report.valid = false;
        report.invalid_because = vec!["<script>alert(1)</script>".to_owned()];
        report.config.insert("facts".to_owned(), serde_json::json!({"durability": "sync & sound"}));
        let page = of_run(&report);
        for part in [
            "20 requests/s",
            "Not valid:",
            "&lt;script&gt;",
            "sync &amp; sound",
            "Latency by percentile",
            "percentile of requests",
            "Throughput over time",
            "p99.9",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(part), "no {part:?}");
        }
        for outside in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "the page is not alone: {outside}");
        }
    }

    #[test]
    fn a_comparison_names_what_differs() {
        let (a, mut b) = (sample(), sample());
        b.config.insert("keys".to_owned(), serde_json::json!(7));
        let group = |name: &str, report| Group { name: name.to_owned(), reports: vec![report] };
        let page = of_comparison(&Comparison { groups: vec![group("first", a), group("second", b)] });
        for part in ["first against second", "Settings that differ", ">keys<", ">7<", "too few runs"] {
            assert!(page.contains(part), "no {part:?}");
        }
    }
}
