//! The page of one run.

use super::{banner, charts, environment, figure, note, page, settings, table, tiles};
use crate::{
    json::{Part, Percentiles, RunReport},
    report::{grouped, micros, span},
};

/// The page of one run.
pub fn of_run(report: &RunReport) -> String {
    let mut body = verdict(report);
    body += &tiles(&figures(report));
    let curves = &report.curves;
    body += &figure(
        "Latency by percentile",
        "Each nine of the percentile has the same room. Response time counts from the intended start of a request, service time \
         from its sending; what lies between is the lag of the schedule. In a closed loop the two are the same.",
        &charts::percentiles(
            "time",
            &[("response time", &curves.response), ("service time", &curves.service), ("schedule lag", &curves.lag)],
        ),
    );
    body += &table("", &latency_rows(report), |_| false);
    body += &charts::over_time(report);
    body += &environment(&[(String::new(), report)]);
    body += &settings("All settings, the machine, and what the cluster says of itself", report);
    page(&format!("wpaxos-load run, {}", report.started_at), &headline(report), &body)
}

fn headline(report: &RunReport) -> String {
    let rate = grouped(report.all.throughput_ops_per_s.round() as u64);
    let doubt = if report.valid { "" } else { " (not valid)" };
    format!("{rate} requests/s, p99 {}{doubt}", span(report.all.response_us.p99))
}

fn verdict(report: &RunReport) -> String {
    let mut out = if report.valid {
        let text = format!(
            "{} requests answered in {:.1} s; it kept its schedule, and hardly any failed.",
            grouped(report.all.response_us.count),
            report.measured_s
        );
        banner(true, "Valid.", &text, &[])
    } else {
        banner(false, "Not valid: do not quote these numbers.", "", &report.invalid_because)
    };
    for text in &report.notes {
        out += &note(text);
    }
    out
}

fn figures(report: &RunReport) -> Vec<(&'static str, String)> {
    let of = &report.all.response_us;
    let mut all = vec![("requests/s answered", grouped(report.all.throughput_ops_per_s.round() as u64))];
    if let Some(offered) = report.offered_ops_per_s {
        all.push(("requests/s offered", grouped(offered.round() as u64)));
        all.push(("sent late", grouped(report.late_sends)));
    }
    all.extend([("p50", span(of.p50)), ("p99", span(of.p99)), ("p99.9", span(of.p99_9)), ("max", span(of.max))]);
    all.push(("errors", grouped(report.all.error_count())));
    if let Some(cpu) = report.cpu {
        let name = if cpu.with_cluster { "CPU per op, cluster too" } else { "CPU per op, load only" };
        all.push((name, span(cpu.us_per_op)));
    }
    all
}

fn latency_rows(report: &RunReport) -> Vec<Vec<String>> {
    let head = ["µs", "p50", "p90", "p99", "p99.9", "p99.99", "max", "mean", "count", "requests/s", "errors"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut add = |name: &str, of: &Percentiles, more: [String; 2]| {
        let times = [of.p50, of.p90, of.p99, of.p99_9, of.p99_99, of.max, of.mean].map(micros);
        rows.push([name.to_owned()].into_iter().chain(times).chain([grouped(of.count)]).chain(more).collect());
    };
    let more = |part: &Part| [grouped(part.throughput_ops_per_s.round() as u64), grouped(part.error_count())];
    add("response time", &report.all.response_us, more(&report.all));
    for (name, part) in [("service time", &report.all.service_us), ("schedule lag", &report.all.lag_us)] {
        if let Some(times) = part {
            add(name, times, [String::new(), String::new()]);
        }
    }
    for (name, part) in report.operations.iter().filter(|_| report.operations.len() > 1) {
        add(&format!("{name}: response"), &part.response_us, more(part));
    }
    for zone in report.zones.iter().filter(|_| report.zones.len() > 1) {
        add(&format!("zone {}: response", zone.zone), &zone.all.response_us, more(&zone.all));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{html::tests::assert_alone, json::sample};

    #[test]
    fn a_page_stands_alone_and_has_everything() {
        let mut report = sample();
        report.config.insert("facts".to_owned(), serde_json::json!({"durability": "sync & sound"}));
        report.curves.lag = report.curves.response.clone();
        report.all.lag_us = Some(report.all.response_us);
        report.notes = vec!["<i>note</i>".to_owned()];
        let page = of_run(&report);
        for part in [
            "<h1>20 requests/s, p99 2 ms</h1>",
            "<strong>Valid.</strong>",
            "sync &amp; sound",
            "&lt;i&gt;note&lt;/i&gt;",
            "Latency by percentile",
            "percentile of requests, %",
            "</svg>response time</li>",
            "</svg>schedule lag</li>",
            "response time: 1 ms at 50%",
            "Throughput over time",
            "Latency over time",
            ">p99.9<",
            ">write: response<",
            ">zone 4: response<",
            ">Environment<",
            "prefers-color-scheme: dark",
            "@media print",
            "<details>",
        ] {
            assert!(page.contains(part), "no {part:?}");
        }
        assert!(!page.contains("service time</li>"), "a closed loop has no such curve");
        assert_alone(&page);
    }

    #[test]
    fn a_run_that_is_not_valid_says_so_first() {
        let mut report = sample();
        report.valid = false;
        report.invalid_because = vec!["<script>alert(1)</script>".to_owned(), "late".to_owned()];
        let page = of_run(&report);
        let (verdict, figures) =
            (page.find("Not valid: do not quote").unwrap(), page.find("<dl class=\"tiles\"").unwrap());
        assert!(verdict < figures && page.contains("<li>late</li>") && page.contains("&lt;script&gt;"));
        assert!(!page.contains("<strong>Valid.</strong>") && page.contains("(not valid)</h1>"));
        assert_alone(&page);
    }

    #[test]
    fn an_old_file_without_curves_has_a_page_too() {
        let mut report = sample();
        report.curves = crate::json::Curves::default();
        report.seconds.clear();
        report.operations.clear();
        assert_alone(&of_run(&report));
    }
}
