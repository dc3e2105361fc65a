//! A shorter schedule for a run that fails: fewer faults and fewer operations with which it still breaks the same rule.

use std::collections::BTreeSet;

use super::run::{Failure, Options, run};

/// Leaves out faults, larger groups of them first, then operations, as long as the run breaks the same rule. Makes at most so
/// many runs.
pub fn shrink(failure: Box<Failure>, runs_max: usize) -> Box<Failure> {
    let mut shrinking = Shrinking { best: failure, runs_left: runs_max };
    shrinking.leave_out_faults();
    shrinking.leave_out_operations();
    // With fewer operations some faults may be for nothing.
    shrinking.leave_out_faults();
    shrinking.best
}

struct Shrinking {
    best: Box<Failure>,
    runs_left: usize,
}

impl Shrinking {
    /// Whether the run still fails so; keeps it if it does.
    fn still_fails(&mut self, options: &Options) -> bool {
        if self.runs_left == 0 {
            return false;
        }
        self.runs_left -= 1;
        match run(options) {
            Err(failure) if failure.violation.rule == self.best.violation.rule => {
                self.best = failure;
                true
            }
            _ => false,
        }
    }

    fn leave_out_faults(&mut self) {
        let mut group = self.best.faults.len().div_ceil(2);
        while group > 0 {
            let mut at = 0;
            while at < self.best.faults.len() {
                let left_out = self.best.faults.iter().skip(at).take(group).map(|(number, _)| *number);
                let without: BTreeSet<usize> = self.best.options.without.iter().copied().chain(left_out).collect();
                let options = Options { without, ..self.best.options.clone() };
                if !self.still_fails(&options) {
                    at += group;
                }
            }
            group = if group == 1 { 0 } else { group.div_ceil(2) };
        }
    }

    fn leave_out_operations(&mut self) {
        let (mut enough, mut too_few) = (self.best.summary.operations, 0);
        while enough - too_few > 1 && self.runs_left > 0 {
            let operations_max = too_few + (enough - too_few) / 2;
            let options = Options { operations_max, ..self.best.options.clone() };
            if self.still_fails(&options) {
                enough = operations_max;
            } else {
                too_few = operations_max;
            }
        }
    }
}
