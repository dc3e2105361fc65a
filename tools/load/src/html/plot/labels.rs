//! Where words go so that they cover neither each other nor what is drawn.

/// How wide a character is taken to be: a little more than most are, in the size of small text.
const CHARACTER: f64 = 6.4;
/// How high a line is.
const LINE: f64 = 12.0;

/// About how wide a text will be.
pub(super) fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

/// A rectangle: left, top, right, bottom.
type Box = [f64; 4];

/// What is taken already.
pub(super) struct Labels {
    inside: Box,
    taken: Vec<Box>,
    lines: Vec<[(f64, f64); 2]>,
}

impl Labels {
    /// Words stay inside of this rectangle.
    pub(super) fn inside(left: f64, top: f64, right: f64, bottom: f64) -> Self {
        Self { inside: [left, top, right, bottom], taken: Vec::new(), lines: Vec::new() }
    }

    /// Something is drawn there.
    pub(super) fn take(&mut self, left: f64, top: f64, right: f64, bottom: f64) {
        self.taken.push([left, top, right, bottom]);
    }

    /// A line is drawn there.
    pub(super) fn take_line(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.lines.push([from, to]);
    }

    /// Where a text can stand near a point, at least `away` from it: its start on the base line, and its anchor. On lines only
    /// where there is no room elsewhere; `None` if there is none at all.
    pub(super) fn place(&mut self, (x, y): (f64, f64), away: f64, text: &str) -> Option<((f64, f64), &'static str)> {
        let (wide, near) = (width_of(text), away * 0.75);
        let candidates = [
            (x + near, y + near + LINE - 2.0, "start"),
            (x - near, y - near, "end"),
            (x + away, y + 4.0, "start"),
            (x - away, y + 4.0, "end"),
            (x, y - away, "middle"),
            (x, y + away + LINE - 2.0, "middle"),
            (x + near, y - near, "start"),
            (x - near, y + near + LINE - 2.0, "end"),
        ];
        let area = |(x, base, anchor): &(f64, f64, &str)| -> Box {
            let left = match *anchor {
                "start" => *x,
                "end" => x - wide,
                _ => x - wide / 2.0,
            };
            [left, base - LINE + 2.0, left + wide, base + 2.0]
        };
        let is_free = |of: &Box| contains(&self.inside, of) && !self.taken.iter().any(|taken| overlaps(taken, of));
        let is_clear = |of: &Box| !self.lines.iter().any(|line| crosses(line, of));
        let free: Vec<_> = candidates.iter().filter(|candidate| is_free(&area(candidate))).collect();
        let chosen = free.iter().find(|candidate| is_clear(&area(candidate))).or(free.first())?;
        let (x, base, anchor) = **chosen;
        self.taken.push(area(chosen));
        Some(((x, base), anchor))
    }
}

fn overlaps(a: &Box, b: &Box) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

fn contains(outer: &Box, inner: &Box) -> bool {
    outer[0] <= inner[0] && outer[1] <= inner[1] && outer[2] >= inner[2] && outer[3] >= inner[3]
}

/// Whether a line goes through a rectangle: it is cut off at each side in turn, and something is left.
fn crosses([from, to]: &[(f64, f64); 2], area: &Box) -> bool {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut start, mut end) = (0.0f64, 1.0f64);
    for (step, room) in
        [(-dx, from.0 - area[0]), (dx, area[2] - from.0), (-dy, from.1 - area[1]), (dy, area[3] - from.1)]
    {
        if step == 0.0 && room < 0.0 {
            return false;
        }
        if step < 0.0 {
            start = start.max(room / step);
        } else if step > 0.0 {
            end = end.min(room / step);
        }
    }
    start < end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_cover_neither_each_other_nor_points_nor_lines() {
        let mut labels = Labels::inside(0.0, 0.0, 400.0, 400.0);
        labels.take(196.0, 196.0, 204.0, 204.0);
        labels.take_line((200.0, 200.0), (400.0, 230.0));
        let first = labels.place((200.0, 200.0), 7.0, "a point").unwrap();
        assert_eq!(first.1, "end", "the line goes where it would stand else");
        for _ in 0..7 {
            labels.place((200.0, 200.0), 7.0, "a point");
        }
        assert_eq!(labels.place((200.0, 200.0), 7.0, "a point"), None, "no room is left");
        for (number, one) in labels.taken.iter().enumerate() {
            assert!(labels.taken[..number].iter().all(|other| !overlaps(one, other)), "{:?}", labels.taken);
        }
    }

    #[test]
    fn words_stay_inside() {
        let mut labels = Labels::inside(0.0, 0.0, 100.0, 100.0);
        let ((x, _), anchor) = labels.place((99.0, 50.0), 7.0, "long words").unwrap();
        assert!(anchor == "end" && x < 99.0);
        assert_eq!(labels.place((50.0, 50.0), 7.0, "words that are much longer than there is room for"), None);
    }

    #[test]
    fn a_line_crosses_what_it_goes_through() {
        let area = [10.0, 10.0, 20.0, 20.0];
        assert!(crosses(&[(0.0, 0.0), (30.0, 30.0)], &area) && crosses(&[(15.0, 0.0), (15.0, 30.0)], &area));
        assert!(crosses(&[(12.0, 12.0), (13.0, 13.0)], &area), "inside of it");
        assert!(!crosses(&[(0.0, 0.0), (30.0, 5.0)], &area) && !crosses(&[(0.0, 0.0), (9.0, 9.0)], &area));
        assert!(!crosses(&[(25.0, 0.0), (25.0, 30.0)], &area));
    }
}
