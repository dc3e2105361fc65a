//! A line each second on stderr: what is happening now, the warm-up included.

use std::io::{self, IsTerminal, Write};

use crate::{
    measure::Counts,
    report::{grouped, micros},
};

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// One line that is written over.
    Terminal,
    /// One line after another.
    Plain,
    /// Nowhere.
    Quiet,
}

/// Writes the lines.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    measured_s: Option<i64>,
}

impl Progress {
    /// For a run that measures `measured_s` seconds, or until its requests are made. Plain lines unless stderr is a terminal.
    pub fn new(quiet: bool, measured_s: Option<i64>) -> Self {
        let style = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Style::Quiet,
            (false, true) => Style::Terminal,
            (false, false) => Style::Plain,
        };
        Self { style, measured_s }
    }

    /// Shows a second that has ended, as in [`crate::measure::Window::second_of`].
    pub fn show(&self, second: i64, counts: &Counts) {
        let line = match self.style {
            Style::Quiet => return,
            Style::Terminal => format!("\r\x1b[K{}", line(second, self.measured_s, counts)),
            Style::Plain => line(second, self.measured_s, counts) + "\n",
        };
        self.put(&line);
    }

    /// Leaves the line that is written over.
    pub fn end(&self) {
        if self.style == Style::Terminal {
            self.put("\n");
        }
    }

    /// A stderr that is closed is no reason to stop.
    fn put(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    }
}

fn line(second: i64, measured_s: Option<i64>, counts: &Counts) -> String {
    let all = counts.sum(|_, _| true);
    let phase = match (second, measured_s) {
        (..0, _) => "warm-up ".to_owned(),
        (_, None) => format!("{:>6} s", second + 1),
        (_, Some(measured_s)) if second < measured_s => format!("{:>3}/{measured_s} s", second + 1),
        (_, Some(_)) => "draining".to_owned(),
    };
    let at = |quantile| micros(all.times.value_at_quantile(quantile) as f64 / 1000.0);
    let (rate, p50, p99, errors) = (grouped(all.answered), at(0.5), at(0.99), grouped(all.error_count()));
    format!("{phase}  {rate:>10} requests/s  p50 {p50:>8} us  p99 {p99:>8} us  errors {errors}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Kind;

    #[test]
    fn a_line_tells_phase_rate_percentiles_and_errors() {
        let mut counts = Counts::new(1);
        let cell = counts.cell_mut(0, Kind::Read);
        cell.times.saturating_record(2_000);
        cell.answered = 12_345;
        cell.errors[1] = 3;
        let text = line(4, Some(10), &counts);
        for expected in ["5/10 s", "12,345 requests/s", "p50      2.0 us", "errors 3"] {
            assert!(text.contains(expected), "{text}");
        }
        assert!(
            line(-1, Some(10), &counts).starts_with("warm-up") && line(10, Some(10), &counts).starts_with("draining")
        );
    }
}
