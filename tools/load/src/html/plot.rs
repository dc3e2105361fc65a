//! Plots as SVG: points, lines and shaded bands between two axes. Colours are classes; the page says what they are, in light
//! and in dark.

use std::fmt::Write as _;

use super::escaped;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 52.0;

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Evenly, from 0.
    Linear,
    /// By factors.
    Log,
    /// Percentiles: each nine as far from the next as that from the one after. Values are in percent.
    Nines,
}

/// An axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) title: &'static str,
    pub(super) scale: Scale,
}

/// A row of points.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) name: String,
    /// Where each is.
    pub(super) points: Vec<(f64, f64)>,
    /// From where to where each is spread: x, then y. Empty, or one for each point.
    pub(super) spread: Vec<[(f64, f64); 2]>,
    /// What is said of each when somebody points at it; empty, or one for each point.
    pub(super) notes: Vec<String>,
    /// The point that is marked.
    pub(super) mark: Option<usize>,
    /// Whether points are drawn, not only the line.
    pub(super) dots: bool,
}

/// A plot.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// Shaded stretches of x, with what they are.
    pub(super) bands: Vec<(f64, f64, &'static str)>,
}

/// How many colours there are.
pub(super) const COLOURS: usize = 7;

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear => value,
            Self::Log => value.max(1e-9).log10(),
            Self::Nines => -(1.0 - (value / 100.0).min(0.999_999_9)).log10(),
        }
    }
}

/// The ends of an axis in its own measure, and its ticks with their labels.
struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Ruler {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match scale {
            _ if values.is_empty() => Self { scale, low: 0.0, high: 1.0, ticks: Vec::new() },
            Scale::Linear => linear(least.min(0.0), greatest),
            Scale::Log => logarithmic(least, greatest),
            Scale::Nines => nines(greatest),
        }
    }

    /// From 0 to 1.
    fn at(&self, value: f64) -> f64 {
        ((self.scale.place(value) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// About five steps of 1, 2 or 5 times a power of ten.
fn linear(least: f64, greatest: f64) -> Ruler {
    let greatest = if greatest > least { greatest } else { least + 1.0 };
    let span = greatest - least;
    let power = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| span / step <= 6.0);
    let step = step.unwrap_or(10.0 * power);
    let (low, high) = ((least / step).floor() * step, (greatest / step).ceil() * step);
    let high = if high > low { high } else { low + step };
    let count = ((high - low) / step).round() as usize;
    let ticks = (0..=count).map(|tick| low + tick as f64 * step).map(|tick| (tick, label(tick))).collect();
    Ruler { scale: Scale::Linear, low, high, ticks }
}

/// Every power of ten, and 2 and 5 between them where these are few.
fn logarithmic(least: f64, greatest: f64) -> Ruler {
    let (least, greatest) = (least.max(1e-3), greatest.max(1e-3));
    let (low, high) = (least.log10().floor() as i32, greatest.log10().ceil() as i32 + 1);
    let factors: &[f64] = if high - low <= 5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let all = (low..=high).flat_map(|power| factors.iter().map(move |factor| 10f64.powi(power) * factor));
    let all: Vec<f64> = all.collect();
    // From the last that is not above the least to the first that is above the greatest.
    let first = all.iter().rposition(|tick| *tick <= least * 1.000_001).unwrap_or(0);
    let last = all.iter().position(|tick| *tick > greatest * 0.999_999).unwrap_or(all.len() - 1).max(first + 1);
    let ticks: Vec<(f64, String)> = all[first..=last].iter().map(|tick| (*tick, label(*tick))).collect();
    Ruler { scale: Scale::Log, low: all[first].log10(), high: all[last].log10(), ticks }
}

fn nines(greatest: f64) -> Ruler {
    let names =
        [(0.0, "0"), (50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999")];
    let high = Scale::Nines.place(greatest.clamp(99.0, 99.999));
    let shown = names.into_iter().filter(|(value, _)| Scale::Nines.place(*value) <= high + 1e-9);
    Ruler { scale: Scale::Nines, low: 0.0, high, ticks: shown.map(|(value, name)| (value, name.to_owned())).collect() }
}

/// A number at a tick: thousands as k, millions as M.
pub(super) fn label(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        1e6.. => (value / 1e6, "M"),
        1e3.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

impl Plot {
    /// The drawing.
    pub(super) fn svg(&self) -> String {
        let spread = |axis: usize| {
            let ends = self.series.iter().flat_map(move |series| series.spread.iter().map(move |spread| spread[axis]));
            ends.flat_map(|(from, to)| [from, to])
        };
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let bands = self.bands.iter().flat_map(|(from, to, _)| [*from, *to]);
        let x = Ruler::of(self.x.scale, points().map(|point| point.0).chain(spread(0)).chain(bands));
        let y = Ruler::of(self.y.scale, points().map(|point| point.1).chain(spread(1)));
        let place = |(px, py): (f64, f64)| {
            let (across, up) = (x.at(px), y.at(py));
            (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
        };
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} against {}\">\n",
            self.y.title, self.x.title
        );
        for (from, to, name) in &self.bands {
            let (left, right) = (place((*from, 0.0)).0, place((*to, 0.0)).0);
            let _ = writeln!(
                out,
                "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                right - left,
                HEIGHT - TOP - BOTTOM,
                (left + right) / 2.0,
                TOP + 14.0
            );
        }
        self.put_axes(&mut out, &x, &y);
        for (number, series) in self.series.iter().enumerate() {
            put_series(&mut out, number % COLOURS, series, place);
        }
        out + "</svg>\n" + &self.legend()
    }

    fn put_axes(&self, out: &mut String, x: &Ruler, y: &Ruler) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut last = f64::NEG_INFINITY;
        for (tick, name) in &x.ticks {
            let at = LEFT + x.at(*tick) * (right - LEFT);
            let _ = write!(out, "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>");
            // Labels that would touch are left out.
            if at - last > 14.0 + 6.0 * name.len() as f64 {
                let _ = writeln!(
                    out,
                    "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                    bottom + 18.0
                );
                last = at;
            }
        }
        let mut last = f64::INFINITY;
        for (tick, name) in &y.ticks {
            let at = bottom - y.at(*tick) * (bottom - TOP);
            let _ = write!(out, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>");
            if last - at > 14.0 {
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                    LEFT - 8.0,
                    at + 4.0
                );
                last = at;
            }
        }
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
             <text class=\"title\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"title\" transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 10.0,
            self.x.title,
            (TOP + bottom) / 2.0,
            self.y.title
        );
    }

    fn legend(&self) -> String {
        if self.series.len() < 2 {
            return String::new();
        }
        let entry = |(number, series): (usize, &Series)| {
            format!("<li><span class=\"key c{}\"></span>{}</li>", number % COLOURS, escaped(&series.name))
        };
        format!("<ul class=\"legend\">{}</ul>\n", self.series.iter().enumerate().map(entry).collect::<String>())
    }
}

fn put_series(out: &mut String, colour: usize, series: &Series, place: impl Fn((f64, f64)) -> (f64, f64)) {
    let mut path = String::new();
    for (number, point) in series.points.iter().enumerate() {
        let (x, y) = place(*point);
        let _ = write!(path, "{}{x:.1} {y:.1}", if number == 0 { "M" } else { "L" });
    }
    let _ = writeln!(out, "<path class=\"line c{colour}\" d=\"{path}\"/>");
    for (point, [across, up]) in series.points.iter().zip(&series.spread) {
        for (from, to) in [((across.0, point.1), (across.1, point.1)), ((point.0, up.0), (point.0, up.1))] {
            let ((x1, y1), (x2, y2)) = (place(from), place(to));
            let _ = write!(out, "<path class=\"spread c{colour}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>");
        }
    }
    for (number, point) in series.points.iter().enumerate().filter(|_| series.dots) {
        let (x, y) = place(*point);
        let note = series.notes.get(number).map(|note| format!("<title>{}</title>", escaped(note))).unwrap_or_default();
        let _ = write!(out, "<circle class=\"dot c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\">{note}</circle>");
    }
    if let Some(point) = series.mark.and_then(|mark| series.points.get(mark)) {
        let (x, y) = place(*point);
        let _ = writeln!(
            out,
            "<circle class=\"mark c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"9\"/>\
             <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">knee</text>",
            x,
            y - 13.0 - 11.0 * colour as f64
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let names = |ruler: Ruler| ruler.ticks.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(" ");
        assert_eq!(names(linear(0.0, 48_000.0)), "0 10k 20k 30k 40k 50k");
        assert_eq!(names(linear(0.0, 1.1e6)), "0 200k 400k 600k 800k 1M 1.2M");
        assert_eq!(names(logarithmic(30.0, 900.0)), "20 50 100 200 500 1k");
        assert_eq!(names(logarithmic(2.0, 3e6)), "1 10 100 1k 10k 100k 1M 10M");
        assert_eq!(names(nines(99.95)), "0 50 90 99 99.9");
        assert_eq!(names(linear(0.0, 0.0)), names(linear(0.0, 1.0)), "nothing but zeros has an axis too");
        assert_eq!([0.25, 1000.0, 1234.0, 2.5e6].map(label).join(" "), "0.25 1k 1.234k 2.5M");
    }

    #[test]
    fn everything_that_is_to_be_seen_is_drawn_inside() {
        let series = Series {
            name: "a <b>".to_owned(),
            points: vec![(1.0, 10.0), (100.0, 2000.0)],
            spread: vec![[(1.0, 1.0), (5.0, 20.0)], [(90.0, 110.0), (1500.0, 2500.0)]],
            notes: vec!["first".to_owned(), "second".to_owned()],
            mark: Some(1),
            dots: true,
        };
        let axis = |title| Axis { title, scale: Scale::Log };
        let other = Series { points: vec![(f64::NAN, 1.0)], ..Series::default() };
        let plot = Plot { x: axis("x"), y: axis("y"), series: vec![series, other], bands: vec![(1.0, 2.0, "warm-up")] };
        let svg = plot.svg();
        for part in ["knee", "first", "second", "warm-up", "a &lt;b&gt;", ">x<", ">y<", "line c0", "spread c0"] {
            assert!(svg.contains(part), "no {part} in\n{svg}");
        }
        let circles = svg.split("cx=\"").skip(1).map(|rest| rest.split('"').next().unwrap().parse::<f64>().unwrap());
        assert!(circles.filter(|x| !x.is_nan()).all(|x| (LEFT..=WIDTH - RIGHT).contains(&x)));
    }
}
