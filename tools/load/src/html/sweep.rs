//! The page of a sweep.

use super::{
    banner, charts, differing, environment, escaped, figure, note, page,
    plot::{Axis, Plot, Scale, Series, Unit},
    settings, table,
};
use crate::{
    compare::RULE,
    json::RunReport,
    report::{grouped, span},
    sweep::{Point, SweepReport},
};

/// The median of something at a point, and from where to where its runs are spread.
type Summary = fn(&Point) -> (f64, (f64, f64));

/// The page of a sweep.
pub fn of_sweep(sweep: &SweepReport) -> String {
    let mut body = verdict(sweep);
    body += &outcomes(sweep);
    body += &throughput_figures(sweep);
    body += "<h2>Medians</h2>\n";
    body += &table("", &sweep.rows(), |row| row.last().is_some_and(|said| said == "knee"));
    let differences = sweep.difference_rows();
    if differences.len() > 1 {
        body += "<h2>What the differences say</h2>\n";
        body += &table("", &differences, |_| false);
        body += &note(RULE);
    }
    let knees: Vec<(String, &Point)> = sweep
        .variants
        .iter()
        .filter_map(|variant| sweep.best(variant))
        .filter(|point| !point.runs.is_empty())
        .map(|point| (format!("{} at {}", point.variant, grouped(point.level)), point))
        .collect();
    body += &at_the_knees(&knees);
    let firsts: Vec<(String, &RunReport)> =
        sweep.variants.iter().filter_map(|name| sweep.first_run(name).map(|run| (name.clone(), run))).collect();
    if firsts.len() > 1 {
        body += &differing(&firsts);
    }
    if !firsts.is_empty() {
        body += &environment(&firsts);
    }
    for (name, report) in &firsts {
        body += &settings(&format!("All settings of {name}"), report);
    }
    page(&format!("wpaxos-load sweep, {}", sweep.started_at), &sweep.headline(), &body)
}

fn verdict(sweep: &SweepReport) -> String {
    let losses: Vec<String> = sweep.losses().into_iter().map(|(whose, why)| format!("{whose}: {why}")).collect();
    let (valid, tried) = sweep
        .points
        .iter()
        .fold((0, 0), |(valid, tried), point| (valid + point.valid_count(), tried + point.tried_count()));
    let mut out = String::new();
    if sweep.interrupted {
        out += &banner(false, "Ended early:", "what was measured until then is shown.", &[]);
    }
    let text = format!("of {} runs are valid. Those that are not are in no median.", grouped(tried as u64));
    out + &banner(losses.is_empty(), &format!("{} ", grouped(valid as u64)), &text, &losses)
}

/// Of each tuning where its knee is, and why.
fn outcomes(sweep: &SweepReport) -> String {
    let outcome = |variant: &String| {
        let best = sweep.best(variant).map_or_else(String::new, |point| {
            let (rate, p99) = (grouped(point.throughput().0.round() as u64), span(point.p99_us().0));
            format!(" – {rate} requests/s, p50 {}, p99 {p99}", span(point.p50_us().0))
        });
        format!(
            "<li><strong>{}</strong>{}; {}</li>",
            escaped(variant),
            escaped(&best),
            escaped(&sweep.outcome(variant))
        )
    };
    format!("<ul>{}</ul>\n", sweep.variants.iter().map(outcome).collect::<String>()) + &note(&sweep.rule)
}

/// Latency against throughput: p99, then p50.
pub(super) fn throughput_figures(sweep: &SweepReport) -> String {
    let beside = if sweep.levels == "in flight" { " Numbers at points are requests in flight." } else { "" };
    let bound = sweep.p99_bound_us.map(|bound| (bound, format!("bound on p99: {}", span(bound))));
    figure(
        "p99 latency against throughput",
        &format!(
            "Medians of the repeats, with bars from the least to the greatest. The ring is the knee: the last level before the \
             rule says stop. Hollow points: too few of their runs were valid.{beside}"
        ),
        &against(sweep, Point::p99_us, "p99 of response time", bound).svg(),
    ) + &figure(
        "Median latency against throughput",
        "The same runs.",
        &against(sweep, Point::p50_us, "p50 of response time", None).svg(),
    )
}

fn against(sweep: &SweepReport, of: Summary, title: &'static str, bound: Option<(f64, String)>) -> Plot {
    let is_closed = sweep.levels == "in flight";
    let series = |(colour, variant): (usize, &String)| {
        let points: Vec<&Point> = sweep.points_of(variant).filter(|point| !point.runs.is_empty()).collect();
        let is_marked = |point: &&Point| sweep.has_knee(variant) && sweep.knees.get(variant) == Some(&point.level);
        let mark = points.iter().position(is_marked);
        let note = |point: &&Point| {
            format!("{}, p50 {}; {} of {} runs valid", point.describe(), span(point.p50_us().0), point.valid_count(), {
                point.tried_count()
            })
        };
        Series {
            name: variant.clone(),
            colour,
            points: points.iter().map(|point| (point.throughput().0, of(point).0)).collect(),
            spread: points.iter().map(|point| [point.throughput().1, of(point).1]).collect(),
            notes: points.iter().map(note).collect(),
            labels: points.iter().filter(|_| is_closed).map(|point| grouped(point.level)).collect(),
            hollow: points.iter().map(|point| !point.is_sound()).collect(),
            mark: mark.map(|at| (at, format!("knee: {}", sweep.level_text(points[at].level)))),
            dots: true,
        }
    };
    // A bound far above everything would press it flat.
    let greatest = sweep.points.iter().map(|point| of(point).1.1).fold(0.0, f64::max);
    Plot {
        x: Axis { title: "requests answered per second", scale: Scale::Linear, unit: Unit::Count },
        y: Axis { title, scale: Scale::Log, unit: Unit::Micros },
        series: sweep.variants.iter().enumerate().map(series).collect(),
        bands: Vec::new(),
        bound: bound.filter(|(bound, _)| *bound <= greatest * 5.0),
    }
}

/// Distributions and single runs, where each tuning is at its best.
fn at_the_knees(knees: &[(String, &Point)]) -> String {
    if knees.is_empty() {
        return String::new();
    }
    let typical = |point: &Point| {
        let group = crate::compare::Group { name: String::new(), reports: point.runs.clone() };
        group.typical().curves.response.clone()
    };
    let curves: Vec<_> = knees.iter().map(|(name, point)| (name.as_str(), typical(point))).collect();
    let curves: Vec<_> = curves.iter().map(|(name, curve)| (*name, curve.as_slice())).collect();
    let runs: Vec<_> = knees.iter().map(|(name, point)| (name.as_str(), point.runs.as_slice())).collect();
    figure(
        "Response time by percentile, at the last level before the knee",
        "Of the run with the median throughput of each tuning.",
        &charts::percentiles("response time", &curves),
    ) + &figure(
        "Every run, at the last level before the knee",
        "Of each tuning from above to below in the order in which they were made; the stroke is the median of the valid runs. \
         Hollow: not valid.",
        &charts::every_run(&runs),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{html::tests::assert_alone, sweep::tests::sample_sweep};

    #[test]
    fn a_page_has_every_tuning_every_level_and_every_rule() {
        let sweep = sample_sweep();
        let page = of_sweep(&sweep);
        for part in [
            "a rule",
            "fast against slow",
            "knee: 64 in flight",
            "bound on p99: 20 ms",
            "p99 latency against throughput",
            "</svg>slow</li>",
            "</svg>fast</li>",
            "fast at 256: ",
            "Mann-Whitney",
            "8 of 10 runs valid",
            "could not start &lt;it&gt;",
            ">Environment<",
        ] {
            assert!(page.contains(part), "no {part} in\n{page}");
        }
        assert_eq!(page.matches("<tr class=\"knee\">").count(), 1);
        assert_alone(&page);
    }

    #[test]
    fn a_sweep_of_which_nothing_was_measured_has_a_page() {
        let sweep = SweepReport { points: Vec::new(), knees: Default::default(), interrupted: true, ..sample_sweep() };
        let page = of_sweep(&sweep);
        assert!(page.contains("Nothing was measured") && page.contains("Ended early:"));
        assert_alone(&page);
    }
}
