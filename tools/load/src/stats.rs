//! What repeats of a measurement say: medians, and whether two sets of them differ.
//!
//! Throughputs and percentiles of a few runs follow no distribution that anybody knows, so the test is one of ranks: the
//! Mann-Whitney test, exact for up to [`EXACT_MAX`] runs in all, two-sided. How large a difference is, is the median of all
//! ratios between a run of the one and a run of the other (Hodges and Lehmann's estimate), and the interval around it holds
//! exactly those ratios that the same test would not reject: it leaves out 1 where the difference is real, and only there.

/// A difference that chance alone makes in fewer than one of twenty comparisons counts as real.
pub const LEVEL: f64 = 0.05;
/// Runs of both sides up to which every order is counted; beyond that the normal distribution stands for them.
pub const EXACT_MAX: usize = 40;

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

/// The least and the greatest; 0 of nothing.
pub fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0);
    (least, values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0))
}

/// What two sets of runs say of each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// How many times the first the second is: the median of all ratios.
    pub ratio: f64,
    /// How often chance alone would make a difference as large as this.
    pub p: f64,
    /// Where the true ratio lies with a confidence of at least 95%; `None` where there are too few runs to say.
    pub interval: Option<(f64, f64)>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Whether a difference is real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is: chance would hardly make it.
    Real,
    /// Chance may have made it.
    Noise,
    /// With so few runs no difference, however large, could be told from chance.
    TooFew,
    /// There is but one run on a side: nobody knows how much it would differ from the next.
    Single,
}

impl Difference {
    /// Between the runs of `from` and those of `to`.
    pub fn between(from: &[f64], to: &[f64]) -> Self {
        let mut ratios: Vec<f64> =
            from.iter().filter(|from| **from != 0.0).flat_map(|from| to.iter().map(move |to| to / from)).collect();
        ratios.sort_by(f64::total_cmp);
        let p = mann_whitney(from, to);
        let verdict = if from.len().min(to.len()) < 2 {
            Verdict::Single
        } else if least_p(from.len(), to.len()) > LEVEL {
            Verdict::TooFew
        } else if p <= LEVEL {
            Verdict::Real
        } else {
            Verdict::Noise
        };
        let whole = ratios.len() == from.len() * to.len();
        let outside = if whole { outside(from.len(), to.len()) } else { 0 };
        let interval = (outside > 0).then(|| (ratios[outside - 1], ratios[ratios.len() - outside]));
        Self { ratio: if ratios.is_empty() { 1.0 } else { median(&ratios) }, p, interval, verdict }
    }

    /// For people: how much more or less, between what and what, and whether that is real.
    pub fn text(&self) -> String {
        format!("{}, {}", self.size(), self.judgement())
    }

    /// How much more or less, in percent, and between what and what.
    pub fn size(&self) -> String {
        let percent = |ratio: f64| format!("{:+.1}%", (ratio - 1.0) * 100.0);
        match self.interval {
            Some((low, high)) => format!("{} [{} to {}]", percent(self.ratio), percent(low), percent(high)),
            None => percent(self.ratio),
        }
    }

    /// Whether it is real.
    pub fn judgement(&self) -> String {
        match self.verdict {
            Verdict::Real => format!("real (p = {})", p_text(self.p)),
            Verdict::Noise => format!("may be chance (p = {})", p_text(self.p)),
            Verdict::TooFew => "too few runs to tell".to_owned(),
            Verdict::Single => "no significance: a single run".to_owned(),
        }
    }
}

fn p_text(p: f64) -> String {
    if p < 0.001 { "less than 0.001".to_owned() } else { format!("{p:.3}") }
}

/// How many of the sorted ratios lie outside of the interval at each end: the number of values of U that the test rejects.
fn outside(from: usize, to: usize) -> usize {
    let pairs = from * to;
    if from + to > EXACT_MAX {
        let deviation = (pairs as f64 * (from + to + 1) as f64 / 12.0).sqrt();
        return (pairs as f64 / 2.0 - 1.96 * deviation).max(0.0) as usize;
    }
    let ranks: Vec<usize> = (1..=from + to).collect();
    let ways = ways(&ranks, from);
    let (all, least) = (ways.iter().sum::<f64>(), from * (from + 1) / 2);
    let mut below = 0.0;
    let rejected = ways[least..].iter().take(pairs).take_while(|ways| {
        below += **ways;
        below / all <= LEVEL / 2.0
    });
    rejected.count()
}

/// The smallest p that so many runs can have: that of two sets of which each run of one is above every run of the other.
fn least_p(from: usize, to: usize) -> f64 {
    // 2 of (from + to choose from) orders.
    let orders = (1..=from).fold(1.0, |orders, k| orders * (to + k) as f64 / k as f64);
    (2.0 / orders).min(1.0)
}

/// The two-sided p of the Mann-Whitney test. Equal values share their ranks.
pub fn mann_whitney(from: &[f64], to: &[f64]) -> f64 {
    if from.is_empty() || to.is_empty() {
        return 1.0;
    }
    // Twice each rank, so that shared ones are whole.
    let mut all: Vec<(f64, bool)> = from.iter().map(|value| (*value, true)).collect();
    all.extend(to.iter().map(|value| (*value, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut ranks = vec![0usize; all.len()];
    let mut start = 0;
    while start < all.len() {
        let end = start + all[start..].iter().take_while(|(value, _)| *value == all[start].0).count();
        ranks[start..end].fill(start + end + 1);
        start = end;
    }
    let observed: usize = all.iter().zip(&ranks).filter(|((_, is_from), _)| *is_from).map(|(_, rank)| rank).sum();
    let mean = (from.len() * (all.len() + 1)) as f64;
    let far = (observed as f64 - mean).abs();
    if all.len() <= EXACT_MAX { exact(&ranks, from.len(), mean, far) } else { approximate(&ranks, from.len(), far) }
}

/// The share of all choices of `count` ranks whose sum is at least so far from the mean.
fn exact(ranks: &[usize], count: usize, mean: f64, far: f64) -> f64 {
    let ways = ways(ranks, count);
    let all: f64 = ways.iter().sum();
    let extreme = ways.iter().enumerate().filter(|(sum, _)| (*sum as f64 - mean).abs() >= far - 1e-9);
    extreme.map(|(_, ways)| ways).sum::<f64>() / all
}

/// How many choices of `count` ranks have each sum.
fn ways(ranks: &[usize], count: usize) -> Vec<f64> {
    let most: usize = ranks.iter().sum();
    let mut ways = vec![vec![0.0f64; most + 1]; count + 1];
    ways[0][0] = 1.0;
    for rank in ranks {
        for chosen in (1..=count).rev() {
            for sum in (*rank..=most).rev() {
                ways[chosen][sum] += ways[chosen - 1][sum - rank];
            }
        }
    }
    ways.swap_remove(count)
}

fn approximate(ranks: &[usize], count: usize, far: f64) -> f64 {
    let (n, mean) = (ranks.len() as f64, ranks.iter().sum::<usize>() as f64 / ranks.len() as f64);
    let spread: f64 = ranks.iter().map(|rank| (*rank as f64 - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let deviation = (spread * count as f64 * (n - count as f64) / n).sqrt();
    // Two tails of the normal distribution (Abramowitz and Stegun 7.1.26, good to 1e-7).
    let x = (far - 1.0).max(0.0) / deviation / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    (poly * (-x * x).exp()).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0]), median(&[])), (2.0, 2.5, 0.0));
        assert_eq!(range(&[3.0, 1.0, 2.0]), (1.0, 3.0));
    }

    /// Tables of the exact test: all of one below all of the other, and one step less.
    #[test]
    fn the_exact_test_has_the_ps_of_the_tables() {
        let low = [1.0, 2.0, 3.0, 4.0, 5.0];
        for (count, p) in [(3, 2.0 / 20.0), (4, 2.0 / 70.0), (5, 2.0 / 252.0)] {
            let high: Vec<f64> = low[..count].iter().map(|value| value + 10.0).collect();
            assert!((mann_whitney(&low[..count], &high) - p).abs() < 1e-12, "{count}");
            assert!((mann_whitney(&high, &low[..count]) - p).abs() < 1e-12, "two-sided");
            assert!((least_p(count, count) - p).abs() < 1e-12);
        }
        // U = 1 of 5 and 5: P = 4/252; U = 2: 8/252, as in every table of it.
        assert!((mann_whitney(&[1.0, 2.0, 3.0, 4.0, 6.0], &[5.0, 7.0, 8.0, 9.0, 10.0]) - 4.0 / 252.0).abs() < 1e-12);
        assert!((mann_whitney(&[1.0, 2.0, 3.0, 4.0, 7.0], &[5.0, 6.0, 8.0, 9.0, 10.0]) - 8.0 / 252.0).abs() < 1e-12);
        assert_eq!(mann_whitney(&[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0]), 1.0, "ties all the way");
        assert!(mann_whitney(&[1.0, 4.0, 5.0, 8.0], &[2.0, 3.0, 6.0, 7.0]) > 0.9);
    }

    #[test]
    fn many_runs_are_judged_as_few_are() {
        let from: Vec<f64> = (0..20).map(|n| f64::from(n * 7 % 20)).collect();
        let to: Vec<f64> = from.iter().map(|value| value + 4.5).collect();
        let exactly = mann_whitney(&from, &to);
        let (from, to) = ([from.clone(), vec![9.0]].concat(), [to.clone(), vec![13.5]].concat());
        let nearly = mann_whitney(&from, &to);
        assert!((exactly / nearly - 1.0).abs() < 0.35 && (0.002..0.05).contains(&nearly), "{exactly} {nearly}");
    }

    #[test]
    fn a_difference_is_told_from_noise_and_from_nothing_to_tell() {
        let from = [100.0, 102.0, 98.0, 101.0, 99.0];
        let faster = from.map(|value| value * 1.5);
        let told = Difference::between(&from, &faster);
        assert_eq!(told.verdict, Verdict::Real);
        assert!((told.ratio - 1.5).abs() < 0.02 && told.text().starts_with("+5") && told.text().contains("real"));
        assert_eq!(Difference::between(&from, &[101.0, 100.5, 98.5, 99.5, 102.5]).verdict, Verdict::Noise);
        assert_eq!(Difference::between(&from[..3], &faster[..3]).verdict, Verdict::TooFew);
        assert_eq!(Difference::between(&from[..1], &faster).verdict, Verdict::Single);
        assert_eq!(Difference::between(&[0.0], &[1.0]).ratio, 1.0, "nothing is a multiple of 0");
    }

    /// Critical values of U at 5%, two-sided, as in every table of the test: so many and fewer are rejected.
    #[test]
    fn as_many_ratios_lie_outside_as_the_tables_say() {
        for (from, to, critical) in
            [(4, 4, 0), (4, 5, 1), (5, 5, 2), (5, 6, 3), (6, 6, 5), (7, 7, 8), (8, 8, 13), (10, 10, 23), (20, 20, 127)]
        {
            assert_eq!((outside(from, to), outside(to, from)), (critical + 1, critical + 1), "{from} and {to}");
        }
        assert_eq!((outside(3, 3), outside(1, 20), outside(1, 1), outside(0, 5)), (0, 0, 0, 0), "no U is rejected");
        assert_eq!(
            outside(21, 21),
            142,
            "the exact count is 143: many runs are judged as few are, or a little stricter"
        );
    }

    /// The test and the interval are two sides of the same thing.
    #[test]
    fn the_interval_leaves_out_1_where_the_difference_is_real_and_only_there() {
        let from = [100.0, 104.0, 98.0, 101.0, 99.0];
        let (mut real, mut noise) = (0, 0);
        for step in 0..60 {
            let to = from.map(|value| value * 1.003 + f64::from(step) * 0.173 - 4.07);
            let told = Difference::between(&from, &to);
            let (low, high) = told.interval.unwrap();
            assert!(low <= told.ratio && told.ratio <= high, "{told:?}");
            let outside = low > 1.0 || high < 1.0;
            assert_eq!(outside, told.verdict == Verdict::Real, "{told:?}");
            if outside { real += 1 } else { noise += 1 }
        }
        assert!(real > 5 && noise > 5, "both occur: {real} {noise}");
        assert_eq!(Difference::between(&from[..3], &from[..3]).interval, None);
    }
}
