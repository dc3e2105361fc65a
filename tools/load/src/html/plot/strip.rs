//! Every run as a point: a row for each configuration, its runs from above to below in the order in which they were made, its
//! median as a stroke. How much runs scatter, and whether they drift, is seen at a glance.

use std::fmt::Write as _;

use super::{Axis, COLOURS, WIDTH, put_dot, put_text, ruler::Ruler, width_of};
use crate::{html::escaped, stats::median};

const LEFT: f64 = 190.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 46.0;
/// Between two runs of a row.
const STEP: f64 = 9.0;
/// Between two rows.
const GAP: f64 = 16.0;
/// Characters of a name that have room.
const NAME_MAX: usize = 26;

/// A run.
#[derive(Clone, Debug)]
pub(in crate::html) struct Run {
    pub(in crate::html) value: f64,
    pub(in crate::html) is_valid: bool,
    pub(in crate::html) note: String,
}

/// The runs of some configurations.
#[derive(Clone, Debug)]
pub(in crate::html) struct Strip {
    pub(in crate::html) x: Axis,
    /// By name.
    pub(in crate::html) rows: Vec<(String, Vec<Run>)>,
}

impl Strip {
    /// The drawing.
    pub(in crate::html) fn svg(&self) -> String {
        let height_of = |runs: &[Run]| runs.len().max(2) as f64 * STEP + GAP;
        let height = TOP + BOTTOM + self.rows.iter().map(|(_, runs)| height_of(runs)).sum::<f64>();
        let values = self.rows.iter().flat_map(|(_, runs)| runs.iter().map(|run| run.value));
        let ruler = Ruler::of(self.x.scale, self.x.unit, 8.0, values);
        let (right, bottom) = (WIDTH - RIGHT, height - BOTTOM);
        let across = |value: f64| LEFT + ruler.at(value) * (right - LEFT);
        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{} of every run\">\n",
            self.x.title
        );
        let mut taken_to = f64::NEG_INFINITY;
        for tick in &ruler.ticks {
            let (at, half) = (across(tick.at), width_of(&tick.name) / 2.0);
            let _ = write!(out, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/>");
            if !tick.name.is_empty() && at - half > taken_to + 6.0 {
                put_text(&mut out, "", (at, bottom + 18.0), "middle", &tick.name);
                taken_to = at + half;
            }
        }
        let mut top = TOP;
        for (number, (name, runs)) in self.rows.iter().enumerate() {
            let high = height_of(runs);
            if number > 0 {
                let _ = write!(out, "<path class=\"grid\" d=\"M{LEFT} {top:.1}H{right}\"/>");
            }
            put_row(&mut out, number % COLOURS, (name, runs), (top, high), &across);
            top += high;
        }
        let _ = writeln!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
        put_text(&mut out, "title", ((LEFT + right) / 2.0, height - 8.0), "middle", self.x.title);
        out + "</svg>\n"
    }
}

fn put_row(
    out: &mut String,
    colour: usize,
    (name, runs): (&str, &[Run]),
    (top, high): (f64, f64),
    across: &impl Fn(f64) -> f64,
) {
    put_text(out, "title", (LEFT - 10.0, top + high / 2.0 + 4.0), "end", &shortened(name));
    let middle = median(&values_of(runs));
    if !runs.is_empty() {
        let at = across(middle);
        let _ = write!(out, "<path class=\"median c{colour}\" d=\"M{at:.1} {:.1}v{:.1}\"/>", top + 4.0, high - 8.0);
    }
    let first = top + high / 2.0 - (runs.len().max(1) - 1) as f64 * STEP / 2.0;
    for (number, run) in runs.iter().enumerate() {
        let (x, y) = (across(run.value), first + number as f64 * STEP);
        put_dot(out, colour, !run.is_valid, (x, y));
        let note = escaped(&run.note);
        let _ =
            writeln!(out, "<circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{note}</title></circle>");
    }
}

/// Of the valid runs, or of all if none is.
fn values_of(runs: &[Run]) -> Vec<f64> {
    let valid: Vec<f64> = runs.iter().filter(|run| run.is_valid).map(|run| run.value).collect();
    if valid.is_empty() { runs.iter().map(|run| run.value).collect() } else { valid }
}

/// A name that has room: its end says more than its start, which is a path as often as not.
fn shortened(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME_MAX {
        return name.to_owned();
    }
    "…".chars().chain(name.chars().skip(length - NAME_MAX + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::html::plot::{Scale, Unit};

    #[test]
    fn every_run_is_drawn_and_the_median_is_that_of_the_valid_ones() {
        let run = |value, is_valid| Run { value, is_valid, note: format!("<{value}>") };
        let rows = vec![
            ("first".to_owned(), vec![run(10.0, true), run(30.0, true), run(20.0, true), run(90.0, false)]),
            ("a/very/long/path/to/the/second.json".to_owned(), vec![run(50.0, false)]),
            ("nothing".to_owned(), Vec::new()),
        ];
        let strip = Strip { x: Axis { title: "value", scale: Scale::Close, unit: Unit::Count }, rows };
        let svg = strip.svg();
        assert_eq!((svg.matches("class=\"dot").count(), svg.matches("dot hollow").count()), (5, 2));
        assert!(svg.contains("<title>&lt;20&gt;</title>") && svg.contains(">…g/path/to/the/second.json<"), "{svg}");
        let at = |part: &str| {
            let rest = svg.split(part).nth(1).unwrap_or_else(|| panic!("no {part}"));
            rest.split(['"', ' ']).next().unwrap().parse::<f64>().unwrap()
        };
        // 20 lies an eighth of the way from 10 to 90.
        let expected = LEFT + (WIDTH - LEFT - RIGHT) / 8.0;
        assert!((at("class=\"median c0\" d=\"M") - expected).abs() < 1.0, "{expected}");
        assert_eq!(svg.matches("class=\"median").count(), 2, "a row without runs has none");
    }
}
