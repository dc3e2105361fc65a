//! Plots as SVG: points, lines and shaded bands between two axes. Colours are classes; the page says what they are, in light
//! and in dark. Series also differ by the shape of their points or the dashes of their lines, for those who print in black.

use std::fmt::Write as _;

use super::escaped;

mod labels;
mod ruler;
mod strip;

use labels::{Labels, width_of};
use ruler::Ruler;
pub(super) use ruler::{Scale, Unit, count};
pub(super) use strip::{Run, Strip};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 54.0;
/// How many colours there are.
pub(super) const COLOURS: usize = 7;
/// Dashes of lines that have no points drawn on them, by colour.
const DASHES: [&str; COLOURS] = ["", "8 4", "2 3", "10 3 2 3", "5 2", "1 4", "12 4 4 4"];
/// Of series with more points than these, only the line is drawn.
const DOTS_MAX: usize = 64;

/// An axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) title: &'static str,
    pub(super) scale: Scale,
    pub(super) unit: Unit,
}

/// A row of points.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: usize,
    /// Where each is. The line is broken where one has no number.
    pub(super) points: Vec<(f64, f64)>,
    /// From where to where each is spread: x, then y. Empty, or one for each point.
    pub(super) spread: Vec<[(f64, f64); 2]>,
    /// What is said of each when somebody points at it; empty, or one for each point.
    pub(super) notes: Vec<String>,
    /// What is written beside each; empty, or one for each point.
    pub(super) labels: Vec<String>,
    /// Points that are not to be trusted. Empty, or one for each point.
    pub(super) hollow: Vec<bool>,
    /// The point that is ringed, and what is written there.
    pub(super) mark: Option<(usize, String)>,
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
    /// A height that is marked by a dashed line, with what it is.
    pub(super) bound: Option<(f64, String)>,
}

/// Where values lie in the drawing.
struct Frame {
    x: Ruler,
    y: Ruler,
}

impl Frame {
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (LEFT + self.x.at(x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - self.y.at(y) * (HEIGHT - TOP - BOTTOM))
    }
}

impl Plot {
    fn frame(&self) -> Frame {
        let spread = |axis: usize| {
            let ends = self.series.iter().flat_map(move |series| series.spread.iter().map(move |spread| spread[axis]));
            ends.flat_map(|(from, to)| [from, to])
        };
        let points = || self.series.iter().flat_map(|series| series.points.iter());
        let bands = self.bands.iter().flat_map(|(from, to, _)| [*from, *to]);
        let bound = self.bound.iter().map(|(height, _)| *height);
        let xs = points().map(|point| point.0).chain(spread(0)).chain(bands);
        let ys = points().map(|point| point.1).chain(spread(1)).chain(bound);
        Frame { x: Ruler::of(self.x.scale, self.x.unit, 8.0, xs), y: Ruler::of(self.y.scale, self.y.unit, 6.0, ys) }
    }

    /// The drawing, and above it what is what.
    pub(super) fn svg(&self) -> String {
        let frame = self.frame();
        let mut out = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} against {}\">\n",
            self.y.title, self.x.title
        );
        let mut labels = Labels::inside(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM);
        self.put_bands(&mut out, &frame, &mut labels);
        self.put_axes(&mut out, &frame);
        self.put_bound(&mut out, &frame, &mut labels);
        for series in &self.series {
            put_line(&mut out, series, &frame);
        }
        for series in &self.series {
            put_points(&mut out, series, &frame, &mut labels);
        }
        self.put_labels(&mut out, &frame, &mut labels);
        for series in &self.series {
            put_notes(&mut out, series, &frame);
        }
        legend(&self.series) + &out + "</svg>\n"
    }

    fn put_bands(&self, out: &mut String, frame: &Frame, labels: &mut Labels) {
        for (from, to, name) in &self.bands {
            let (left, right) = (frame.place((*from, 0.0)).0, frame.place((*to, 0.0)).0);
            let (wide, high) = (right - left, HEIGHT - TOP - BOTTOM);
            let _ =
                write!(out, "<rect class=\"band\" x=\"{left:.1}\" y=\"{TOP}\" width=\"{wide:.1}\" height=\"{high}\"/>");
            // A name that is wider than its band begins or ends where the band does.
            let at = ((left + right) / 2.0)
                .max(LEFT + width_of(name) / 2.0 + 4.0)
                .min(WIDTH - RIGHT - width_of(name) / 2.0 - 4.0);
            let _ = writeln!(
                out,
                "<text class=\"small\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
                TOP + 14.0
            );
            labels.take(at - width_of(name) / 2.0, TOP + 4.0, at + width_of(name) / 2.0, TOP + 18.0);
        }
    }

    fn put_axes(&self, out: &mut String, frame: &Frame) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut taken_to = f64::NEG_INFINITY;
        for tick in &frame.x.ticks {
            let at = LEFT + frame.x.at(tick.at) * (right - LEFT);
            let _ = write!(out, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{bottom}\"/>");
            let half = width_of(&tick.name) / 2.0;
            // Names that would touch are left out.
            if !tick.name.is_empty() && at - half > taken_to + 6.0 {
                put_text(out, "", (at, bottom + 18.0), "middle", &tick.name);
                taken_to = at + half;
            }
        }
        let mut free_below = f64::INFINITY;
        for tick in &frame.y.ticks {
            let at = bottom - frame.y.at(tick.at) * (bottom - TOP);
            let _ = write!(out, "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>");
            if !tick.name.is_empty() && at < free_below - 14.0 {
                put_text(out, "", (LEFT - 8.0, at + 4.0), "end", &tick.name);
                free_below = at;
            }
        }
        let _ = writeln!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
        put_text(out, "title", ((LEFT + right) / 2.0, HEIGHT - 12.0), "middle", self.x.title);
        let _ = writeln!(
            out,
            "<text class=\"title\" transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (TOP + bottom) / 2.0,
            self.y.title
        );
    }

    fn put_bound(&self, out: &mut String, frame: &Frame, labels: &mut Labels) {
        let Some((height, name)) = &self.bound else { return };
        let (at, right) = (frame.place((0.0, *height)).1, WIDTH - RIGHT);
        let _ = writeln!(out, "<path class=\"bound\" d=\"M{LEFT} {at:.1}H{right}\"/>");
        // Above the line, or below where there is no room.
        let base = if at - TOP > 20.0 { at - 6.0 } else { at + 15.0 };
        put_text(out, "small", (LEFT + 8.0, base), "start", name);
        labels.take(LEFT, base - 12.0, LEFT + 8.0 + width_of(name), base + 4.0);
    }

    /// Marks come first, because they matter more; what finds no room is not written.
    fn put_labels(&self, out: &mut String, frame: &Frame, labels: &mut Labels) {
        for series in &self.series {
            let Some((point, text)) = &series.mark else { continue };
            let Some(point) = series.points.get(*point) else { continue };
            let (x, y) = frame.place(*point);
            let colour = series.colour % COLOURS;
            let _ = writeln!(out, "<circle class=\"mark c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"9\"/>");
            if let Some((at, anchor)) = labels.place((x, y), 12.0, text) {
                put_text(out, &format!("strong c{colour}"), at, anchor, text);
            }
        }
        for series in &self.series {
            let marked = series.mark.as_ref().map(|(point, _)| *point);
            let unmarked = series.points.iter().zip(&series.labels).enumerate();
            for (_, (point, text)) in unmarked.filter(|(number, _)| Some(*number) != marked) {
                if let Some((at, anchor)) = labels.place(frame.place(*point), 7.0, text) {
                    put_text(out, "small", at, anchor, text);
                }
            }
        }
    }
}

fn put_text(out: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let text = escaped(text);
    let _ = writeln!(out, "<text{class} x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

/// What each series looks like; nothing where there is but one.
fn legend(series: &[Series]) -> String {
    if series.len() < 2 {
        return String::new();
    }
    let entry = |series: &Series| {
        let colour = series.colour % COLOURS;
        let mut key = format!("<path class=\"line c{colour}\"{} d=\"M1 7H33\"/>", dashes(series));
        if has_dots(series) {
            put_dot(&mut key, colour, false, (17.0, 7.0));
        }
        let key = format!("<svg class=\"key\" viewBox=\"0 0 34 14\" aria-hidden=\"true\">{key}</svg>");
        format!("<li>{key}{}</li>", escaped(&series.name))
    };
    format!("<ul class=\"legend\">{}</ul>\n", series.iter().map(entry).collect::<String>())
}

fn has_dots(series: &Series) -> bool {
    series.dots && series.points.len() <= DOTS_MAX
}

fn dashes(series: &Series) -> String {
    match DASHES[series.colour % COLOURS] {
        "" => String::new(),
        _ if has_dots(series) => String::new(),
        dashes => format!(" stroke-dasharray=\"{dashes}\""),
    }
}

fn is_number((x, y): &(f64, f64)) -> bool {
    x.is_finite() && y.is_finite()
}

fn put_line(out: &mut String, series: &Series, frame: &Frame) {
    let colour = series.colour % COLOURS;
    let (mut path, mut begins) = (String::new(), true);
    for point in &series.points {
        if is_number(point) {
            let (x, y) = frame.place(*point);
            let _ = write!(path, "{}{x:.1} {y:.1}", if begins { "M" } else { "L" });
        }
        begins = !is_number(point);
    }
    for (point, [across, up]) in series.points.iter().zip(&series.spread) {
        for (from, to) in [((across.0, point.1), (across.1, point.1)), ((point.0, up.0), (point.0, up.1))] {
            let ((x1, y1), (x2, y2)) = (frame.place(from), frame.place(to));
            // Bars end in a stroke across, so that short ones are seen.
            let (dx, dy) = if from.0 == to.0 { (4.0, 0.0) } else { (0.0, 4.0) };
            let _ = write!(out, "<path class=\"spread c{colour}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}");
            for (x, y) in [(x1, y1), (x2, y2)] {
                let _ = write!(out, "M{:.1} {:.1}L{:.1} {:.1}", x - dx, y - dy, x + dx, y + dy);
            }
            out.push_str("\"/>");
        }
    }
    let _ = writeln!(out, "<path class=\"line c{colour}\"{} d=\"{path}\"/>", dashes(series));
}

fn put_points(out: &mut String, series: &Series, frame: &Frame, labels: &mut Labels) {
    for (number, point) in series.points.iter().enumerate().filter(|(_, point)| is_number(point)) {
        let (x, y) = frame.place(*point);
        // Labels keep clear of lines as well, where they can.
        if let Some(next) = series.points.get(number + 1).filter(|next| is_number(next)) {
            labels.take_line((x, y), frame.place(*next));
        }
        if has_dots(series) {
            let is_hollow = series.hollow.get(number).copied().unwrap_or(false);
            put_dot(out, series.colour % COLOURS, is_hollow, (x, y));
            labels.take(x - 4.0, y - 4.0, x + 4.0, y + 4.0);
        }
    }
}

/// A point: a disc, a square, a diamond or a triangle, by colour.
fn put_dot(out: &mut String, colour: usize, is_hollow: bool, (x, y): (f64, f64)) {
    let class = if is_hollow { "dot hollow" } else { "dot" };
    let path = match colour % 4 {
        0 => {
            let _ = write!(out, "<circle class=\"{class} c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>");
            return;
        }
        1 => format!("M{:.1} {:.1}h8v8h-8z", x - 4.0, y - 4.0),
        2 => format!("M{x:.1} {:.1}l5.5 5.5l-5.5 5.5l-5.5 -5.5z", y - 5.5),
        _ => format!("M{x:.1} {:.1}l5.5 9h-11z", y - 5.5),
    };
    let _ = write!(out, "<path class=\"{class} c{colour}\" d=\"{path}\"/>");
}

/// What a reader who points at a point is told, with a script and without.
fn put_notes(out: &mut String, series: &Series, frame: &Frame) {
    for (point, note) in series.points.iter().zip(&series.notes).filter(|(point, _)| is_number(point)) {
        let (x, y) = frame.place(*point);
        let _ = writeln!(
            out,
            "<circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"7\"><title>{}</title></circle>",
            escaped(note)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers_behind(svg: &str, name: &str) -> Vec<f64> {
        let parts = svg.split(name).skip(1);
        parts.map(|rest| rest.split(['"', ' ', 'H', 'V']).next().unwrap().parse().unwrap()).collect()
    }

    fn axis(title: &'static str, unit: Unit) -> Axis {
        Axis { title, scale: Scale::Log, unit }
    }

    fn sample() -> Plot {
        let series = Series {
            name: "a <b>".to_owned(),
            points: vec![(1.0, 10.0), (100.0, 2000.0), (120.0, 4000.0)],
            spread: vec![[(1.0, 1.0), (5.0, 20.0)], [(90.0, 110.0), (1500.0, 2500.0)], [(120.0, 120.0), (4e3, 4e3)]],
            notes: vec!["first".to_owned(), "second".to_owned(), "third".to_owned()],
            labels: vec!["1".to_owned(), "16".to_owned(), "64".to_owned()],
            hollow: vec![false, false, true],
            mark: Some((1, "knee & more".to_owned())),
            dots: true,
            ..Series::default()
        };
        let other = Series { name: "other".to_owned(), colour: 1, points: vec![(2.0, 30.0)], ..Series::default() };
        Plot {
            x: axis("across", Unit::Count),
            y: axis("upwards", Unit::Micros),
            series: vec![series, other],
            bands: vec![(1.0, 2.0, "warm-up")],
            bound: Some((5000.0, "the bound".to_owned())),
        }
    }

    #[test]
    fn everything_that_is_to_be_seen_is_drawn_inside() {
        let svg = sample().svg();
        for part in [
            "knee &amp; more",
            "<title>first<",
            "<title>second<",
            ">warm-up<",
            "</svg>a &lt;b&gt;</li>",
            ">across<",
            ">upwards<",
            "line c0",
            "line c1",
            "spread c0",
            ">the bound<",
            ">64<",
            "dot hollow c0",
        ] {
            assert!(svg.contains(part), "no {part} in\n{svg}");
        }
        assert!(!svg.contains(">16<"), "the marked point has the mark's words");
        assert!(numbers_behind(&svg, "cx=\"").into_iter().all(|x| (0.0..=WIDTH - RIGHT).contains(&x)));
        assert!(numbers_behind(&svg, "cy=\"").into_iter().all(|y| (0.0..=HEIGHT - BOTTOM).contains(&y)));
    }

    #[test]
    fn a_line_is_broken_where_there_is_no_number() {
        let points = vec![(1.0, 10.0), (2.0, f64::NAN), (3.0, 10.0), (4.0, 20.0)];
        let notes = ["one", "two", "three", "four"].map(str::to_owned).to_vec();
        let series = Series { points, notes, ..Series::default() };
        let plot = Plot { series: vec![series], bands: Vec::new(), bound: None, ..sample() };
        let svg = plot.svg();
        let line = svg.split("class=\"line c0\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert!(svg.contains("<title>one<") && !svg.contains("<title>two<") && !svg.contains("NaN"));
        assert!(!svg.contains("legend"), "one series needs none");
    }

    #[test]
    fn series_differ_without_their_colours() {
        let looks = (0..4).map(|colour| {
            let mut dot = String::new();
            put_dot(&mut dot, colour, false, (10.0, 10.0));
            dot.replace(&format!("c{colour}"), "")
        });
        let looks: std::collections::BTreeSet<String> = looks.collect();
        assert_eq!(looks.len(), 4);
        assert_eq!(DASHES.into_iter().collect::<std::collections::BTreeSet<_>>().len(), COLOURS);
    }
}
