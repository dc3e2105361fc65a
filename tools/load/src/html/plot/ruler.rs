//! Axes: where a value lies on one, and which ticks it has.

use crate::report::{grouped, span};

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::html) enum Scale {
    /// Evenly, with 0 on it.
    Linear,
    /// Evenly, from about the least value to about the greatest.
    Close,
    /// By factors.
    Log,
    /// Percentiles: each nine as far from the next as that from the one after. Values are in percent.
    Nines,
}

/// What an axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::html) enum Unit {
    /// Things.
    Count,
    /// Microseconds; ticks say µs, ms or s.
    Micros,
}

/// Percentiles that have ticks.
const NINES: [(f64, &str); 8] = [
    (0.0, "0"),
    (50.0, "50"),
    (90.0, "90"),
    (99.0, "99"),
    (99.9, "99.9"),
    (99.99, "99.99"),
    (99.999, "99.999"),
    (99.9999, "99.9999"),
];
/// Ticks of a logarithmic axis that are all named; of more only the powers of ten are.
const NAMED_MAX: usize = 9;

/// A line across the plot, and what is written at its end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    /// Empty where the line is only there to be counted by.
    pub(super) name: String,
}

/// The ends of an axis in its own measure, and its ticks.
#[derive(Clone, Debug)]
pub(super) struct Ruler {
    scale: Scale,
    low: f64,
    high: f64,
    pub(super) ticks: Vec<Tick>,
}

impl Ruler {
    /// One that has room for all values, about as many ticks as `steps`, and names in `unit`.
    pub(super) fn of(scale: Scale, unit: Unit, steps: f64, values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match scale {
            _ if values.is_empty() => Self { scale, low: 0.0, high: 1.0, ticks: Vec::new() },
            Scale::Linear => linear(least.min(0.0), greatest, steps, unit),
            Scale::Close => linear(least, greatest, steps, unit),
            Scale::Log => logarithmic(least, greatest, unit),
            Scale::Nines => nines(greatest),
        }
    }

    /// From 0 to 1.
    pub(super) fn at(&self, value: f64) -> f64 {
        ((place(self.scale, value) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

fn place(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear | Scale::Close => value,
        Scale::Log => value.max(1e-9).log10(),
        Scale::Nines => -(1.0 - (value / 100.0).min(0.999_999_99)).log10(),
    }
}

/// Steps of 1, 2 or 5 times a power of ten.
fn linear(least: f64, greatest: f64, steps: f64, unit: Unit) -> Ruler {
    let greatest = if greatest > least { greatest } else { least + least.abs().max(1.0) };
    let span = greatest - least;
    let power = 10f64.powf((span / steps).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| span / step <= steps);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((least / step).floor(), (greatest / step).ceil());
    let last = last.max(first + 1.0);
    let ticks = (first as i64..=last as i64).map(|tick| tick as f64 * step);
    let ticks = ticks.map(|at| Tick { at, name: name(at, unit) }).collect();
    Ruler { scale: Scale::Linear, low: first * step, high: last * step, ticks }
}

/// From and to 1, 2 or 5 times a power of ten; a line at each of these.
fn logarithmic(least: f64, greatest: f64, unit: Unit) -> Ruler {
    let (least, greatest) = (least.max(1e-3), greatest.max(1e-3));
    let powers = least.log10().floor() as i32..=greatest.log10().ceil() as i32;
    let round: Vec<f64> = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power))).collect();
    let nearly = 1.0 + 1e-9;
    let first = round.iter().rposition(|tick| *tick <= least * nearly).unwrap_or(0);
    let last = round.iter().position(|tick| *tick * nearly >= greatest).unwrap_or(round.len() - 1);
    let last = last.max(first + 1).min(round.len() - 1);
    let shown = &round[first.min(last - 1)..=last];
    let is_power = |tick: f64| (tick.log10() - tick.log10().round()).abs() < 1e-6;
    let is_named = |tick: f64| shown.len() <= NAMED_MAX || is_power(tick);
    let named = |at: &f64| Tick { at: *at, name: if is_named(*at) { name(*at, unit) } else { String::new() } };
    let ticks = shown.iter().map(named).collect();
    Ruler { scale: Scale::Log, low: shown[0].log10(), high: shown[shown.len() - 1].log10(), ticks }
}

fn nines(greatest: f64) -> Ruler {
    let high = place(Scale::Nines, greatest.clamp(99.0, 99.9999));
    let shown = NINES.into_iter().filter(|(value, _)| place(Scale::Nines, *value) <= high + 1e-9);
    let ticks = shown.map(|(at, name)| Tick { at, name: name.to_owned() }).collect();
    Ruler { scale: Scale::Nines, low: 0.0, high, ticks }
}

/// What stands at a tick.
fn name(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Micros => span(value),
        Unit::Count => count(value),
    }
}

/// A number with its thousands set apart, and decimals only where it is small.
pub(in crate::html) fn count(value: f64) -> String {
    if value.abs() >= 100.0 || value.fract() == 0.0 {
        let sign = if value < 0.0 { "−" } else { "" };
        return format!("{sign}{}", grouped(value.abs().round() as u64));
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ruler: &Ruler) -> String {
        let named = ruler.ticks.iter().map(|tick| if tick.name.is_empty() { "." } else { &tick.name });
        named.collect::<Vec<_>>().join(" | ")
    }

    fn counts(scale: Scale, values: &[f64]) -> String {
        names(&Ruler::of(scale, Unit::Count, 6.0, values.iter().copied()))
    }

    #[test]
    fn linear_ticks_are_round_and_few() {
        assert_eq!(counts(Scale::Linear, &[48_000.0]), "0 | 10,000 | 20,000 | 30,000 | 40,000 | 50,000");
        assert_eq!(
            counts(Scale::Linear, &[1.1e6, 3.0]),
            "0 | 200,000 | 400,000 | 600,000 | 800,000 | 1,000,000 | 1,200,000"
        );
        assert_eq!(counts(Scale::Linear, &[-2.0, 9.5]), "−2 | 0 | 2 | 4 | 6 | 8 | 10");
        assert_eq!(counts(Scale::Linear, &[0.9]), "0 | 0.2 | 0.4 | 0.6 | 0.8 | 1");
        assert_eq!(counts(Scale::Close, &[10_100.0, 10_500.0]), "10,100 | 10,200 | 10,300 | 10,400 | 10,500");
        assert_eq!(counts(Scale::Linear, &[0.0]), counts(Scale::Linear, &[1.0]), "nothing but zeros has an axis too");
        assert_eq!(counts(Scale::Linear, &[f64::NAN]), "", "and nothing at all has none");
    }

    #[test]
    fn logarithmic_ticks_are_1_2_and_5_and_say_their_unit() {
        let micros = |values: &[f64]| names(&Ruler::of(Scale::Log, Unit::Micros, 6.0, values.iter().copied()));
        assert_eq!(micros(&[30.0, 900.0]), "20 µs | 50 µs | 100 µs | 200 µs | 500 µs | 1 ms");
        assert_eq!(micros(&[100.0, 100.0]), "100 µs | 200 µs", "one value has an axis too");
        assert_eq!(micros(&[2000.0, 5000.0]), "2 ms | 5 ms");
        let wide = micros(&[3.0, 2_000_000.0]);
        assert!(wide.starts_with(". | . | 10 µs | . | . | 100 µs | ") && wide.ends_with("1 s | ."), "{wide}");
    }

    #[test]
    fn each_nine_has_the_same_room() {
        let ruler = Ruler::of(Scale::Nines, Unit::Count, 6.0, [50.0, 99.99].into_iter());
        assert_eq!(names(&ruler), "0 | 50 | 90 | 99 | 99.9 | 99.99");
        let [a, b, c, d] = [90.0, 99.0, 99.9, 99.99].map(|value| ruler.at(value));
        assert!((b - a - (c - b)).abs() < 1e-6 && (d - 1.0).abs() < 1e-6, "{a} {b} {c} {d}");
        assert_eq!((ruler.at(0.0), ruler.at(100.0)), (0.0, 1.0));
    }
}
