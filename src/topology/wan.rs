//! Distances between zones.

use std::{collections::HashMap, fmt};

use super::ZoneIndex;

/// Round-trip times between zones, symmetric, in microseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WanMatrix {
    zones: usize,
    /// Row by row.
    rtt_us: Vec<u64>,
}

/// Why there is no matrix of distances.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WanError {
    /// A line of the table that is not `a,b,ms`.
    #[error("line {line}: '{text}' is not A,B,MS: two regions and their round-trip time, as in eu-west-1,us-east-1,67")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// As it stands there.
        text: String,
    },
    /// A time that is no time.
    #[error("line {line}: '{text}' is not a round-trip time in milliseconds, from 0 to {max}", max = RTT_US_MAX / 1000)]
    Time {
        /// The line's number, from 1.
        line: usize,
        /// As it stands there.
        text: String,
    },
    /// A pair that is given twice in the same direction.
    #[error("line {line}: the pair {a},{b} was given before: keep one of the two lines")]
    Twice {
        /// The second line's number, from 1.
        line: usize,
        /// Its first region.
        a: String,
        /// Its second region.
        b: String,
    },
    /// A zone whose name is no region of the table.
    #[error("there is no region '{region}' in it; it has {}", .known.join(", "))]
    Region {
        /// As named by the cluster.
        region: String,
        /// The regions of the table.
        known: Vec<String>,
    },
    /// A pair that is not in the table.
    #[error("the pair {a},{b} is missing: add a line {a},{b},MS")]
    Pair {
        /// One region.
        a: String,
        /// The other.
        b: String,
    },
    /// Rows that are not a square of one row per zone.
    #[error("row {row} has {columns} of {rows} columns: expected one row and one column per zone")]
    Shape {
        /// The row's number, from 1.
        row: usize,
        /// Its columns.
        columns: usize,
        /// How many rows there are.
        rows: usize,
    },
    /// Rows that differ from their columns.
    #[error(
        "row {a} column {b} is {there} ms but row {b} column {a} is {back} ms: a round trip is the same either way"
    )]
    Asymmetric {
        /// One zone's row, from 1.
        a: usize,
        /// The other's, from 1.
        b: usize,
        /// Milliseconds, as text.
        there: String,
        /// Milliseconds, as text.
        back: String,
    },
}

/// The longest round-trip time that is taken for one, in microseconds: a minute.
pub const RTT_US_MAX: u64 = 60_000_000;

impl WanMatrix {
    /// Where every two different zones are `rtt_us` microseconds apart, and 0 within a zone.
    pub fn uniform(zones: usize, rtt_us: u64) -> Self {
        let pair = |index: usize| if index / zones == index % zones { 0 } else { rtt_us };
        Self { zones, rtt_us: (0..zones * zones).map(pair).collect() }
    }

    /// From one row per zone, in the order of the zones, in microseconds.
    ///
    /// # Errors
    /// If the rows are not a square, or not symmetric: they are written by hand, so a difference is a slip.
    pub fn from_rows(rows: &[Vec<u64>]) -> Result<Self, WanError> {
        if let Some(row) = rows.iter().position(|row| row.len() != rows.len()) {
            return Err(WanError::Shape { row: row + 1, columns: rows[row].len(), rows: rows.len() });
        }
        for (a, row) in rows.iter().enumerate() {
            if let Some(b) = (0..a).find(|b| row[*b] != rows[*b][a]) {
                let millis = |rtt_us| Thousandths(rtt_us).to_string();
                let (there, back) = (millis(rows[b][a]), millis(row[b]));
                return Err(WanError::Asymmetric { a: b + 1, b: a + 1, there, back });
            }
        }
        Ok(Self { zones: rows.len(), rtt_us: rows.concat() })
    }

    /// From a table of measured round-trip times, a line `a,b,ms` per pair, for zones in these regions. Empty lines and
    /// those that begin with `#` are skipped.
    ///
    /// A pair measured from both ends gets the mean of the two times; one direction is enough. A region's distance to
    /// itself is 0 if there is no line for it, and is what two zones in the same region have between them.
    ///
    /// # Errors
    /// If a line is wrong, or a region or a pair that is needed is missing.
    pub fn from_csv(text: &str, regions: &[&str]) -> Result<Self, WanError> {
        let table = read_pairs(text)?;
        let mut rtt_us = Vec::with_capacity(regions.len() * regions.len());
        for a in regions {
            if !table.keys().any(|(from, to)| from == a || to == a) {
                let mut known: Vec<String> = table.keys().flat_map(|(a, b)| [a, b]).map(ToString::to_string).collect();
                known.sort();
                known.dedup();
                return Err(WanError::Region { region: (*a).to_owned(), known });
            }
        }
        for a in regions {
            for b in regions {
                rtt_us.push(match (table.get(&(*a, *b)), table.get(&(*b, *a))) {
                    (Some(there), Some(back)) => (there + back) / 2,
                    (Some(one), None) | (None, Some(one)) => *one,
                    (None, None) if a == b => 0,
                    (None, None) => return Err(WanError::Pair { a: (*a).to_owned(), b: (*b).to_owned() }),
                });
            }
        }
        Ok(Self { zones: regions.len(), rtt_us })
    }

    /// The round-trip time between two zones, in microseconds: between nodes of one zone if they are the same.
    ///
    /// # Panics
    /// If a zone is out of range.
    pub fn rtt_us(&self, a: ZoneIndex, b: ZoneIndex) -> u64 {
        assert!(a.index() < self.zones && b.index() < self.zones, "{a:?} or {b:?} is not one of {} zones", self.zones);
        self.rtt_us[a.index() * self.zones + b.index()]
    }

    /// How many zones it covers.
    pub fn zones(&self) -> usize {
        self.zones
    }

    /// The rows in milliseconds, as TOML.
    pub(super) fn to_toml_rows(&self) -> String {
        let row = |row: &[u64]| row.iter().map(|us| Thousandths(*us).to_string()).collect::<Vec<_>>().join(", ");
        let rows: Vec<String> = self.rtt_us.chunks(self.zones.max(1)).map(|us| format!("[{}]", row(us))).collect();
        format!("[{}]", rows.join(", "))
    }
}

/// The table's pairs, in the direction in which they are given, in microseconds.
fn read_pairs(text: &str) -> Result<HashMap<(&str, &str), u64>, WanError> {
    let mut table = HashMap::new();
    for (index, text) in text.lines().map(str::trim).enumerate() {
        let line = index + 1;
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = text.split(',').map(str::trim).collect();
        let [a, b, ms] = fields[..] else { return Err(WanError::Line { line, text: text.to_owned() }) };
        if a.is_empty() || b.is_empty() {
            return Err(WanError::Line { line, text: text.to_owned() });
        }
        let rtt_us = ms.parse().ok().and_then(|ms| thousandths(ms, 0, RTT_US_MAX));
        let rtt_us = rtt_us.ok_or_else(|| WanError::Time { line, text: ms.to_owned() })?;
        if table.insert((a, b), rtt_us).is_some() {
            return Err(WanError::Twice { line, a: a.to_owned(), b: b.to_owned() });
        }
    }
    Ok(table)
}

/// A number in thousandths (milliseconds as microseconds, a share as permille), if it lies within these bounds, which
/// are in thousandths too.
pub(crate) fn thousandths(value: f64, min: u64, max: u64) -> Option<u64> {
    let scaled = (value * 1000.0).round();
    (scaled >= min as f64 && scaled <= max as f64).then_some(scaled as u64)
}

/// A number of thousandths, shown without loss: 1500 is "1.500", 2000 is "2".
pub(crate) struct Thousandths(pub(crate) u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 1000 {
            0 => write!(f, "{}", self.0 / 1000),
            rest => write!(f, "{}.{rest:03}", self.0 / 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt(matrix: &WanMatrix, a: u8, b: u8) -> u64 {
        matrix.rtt_us(ZoneIndex(a), ZoneIndex(b))
    }

    #[test]
    fn a_table_is_read_for_the_regions_of_the_zones() {
        let text = "# measured\n\nx,y,10\ny,x,13.001\nz,x, 0.25 \nz,y,7\nz,z,1\nunused,x,5\n";
        let matrix = WanMatrix::from_csv(text, &["y", "x", "z"]).unwrap();
        assert_eq!(matrix.zones(), 3);
        assert_eq!((rtt(&matrix, 0, 1), rtt(&matrix, 1, 0)), (11_500, 11_500), "the mean of both directions");
        assert_eq!((rtt(&matrix, 1, 2), rtt(&matrix, 2, 1)), (250, 250), "one direction is enough");
        assert_eq!((rtt(&matrix, 0, 0), rtt(&matrix, 2, 2)), (0, 1000), "0 within a region unless given");

        let same = WanMatrix::from_csv(text, &["z", "z"]).unwrap();
        assert_eq!(rtt(&same, 0, 1), 1000, "two zones of one region have its inner distance");
    }

    #[test]
    fn wrong_tables_name_the_line_or_the_pair() {
        let table: &[(&str, &str)] = &[
            ("x,y", "line 1: 'x,y' is not A,B,MS"),
            ("x,y,1\n,y,2", "line 2: ',y,2' is not A,B,MS"),
            ("x,y,1,2", "line 1: 'x,y,1,2' is not A,B,MS"),
            ("x,y,fast", "line 1: 'fast' is not a round-trip time in milliseconds, from 0 to 60000"),
            ("x,y,-1", "line 1: '-1' is not"),
            ("x,y,NaN", "line 1: 'NaN' is not"),
            ("x,y,inf", "line 1: 'inf' is not"),
            ("x,y,60001", "line 1: '60001' is not"),
            ("x,y,1\nx,z,1\nx,y,2", "line 3: the pair x,y was given before"),
            ("x,z,1\nx,w,1", "there is no region 'y' in it; it has w, x, z"),
            ("x,z,1\nz,y,1", "the pair x,y is missing: add a line x,y,MS"),
        ];
        for (text, message) in table {
            let error = WanMatrix::from_csv(text, &["x", "y"]).unwrap_err().to_string();
            assert!(error.contains(message), "{error:?} does not say {message:?}");
        }
    }

    #[test]
    fn rows_are_a_symmetric_square() {
        let matrix = WanMatrix::from_rows(&[vec![0, 1500], vec![1500, 7]]).unwrap();
        assert_eq!((rtt(&matrix, 0, 1), rtt(&matrix, 1, 1)), (1500, 7));
        assert_eq!(matrix.to_toml_rows(), "[[0, 1.500], [1.500, 0.007]]");
        assert_eq!(WanMatrix::from_rows(&[vec![0, 1], vec![1]]), Err(WanError::Shape { row: 2, columns: 1, rows: 2 }));
        let error = WanMatrix::from_rows(&[vec![0, 1000], vec![1200, 0]]).unwrap_err().to_string();
        assert!(error.starts_with("row 1 column 2 is 1 ms but row 2 column 1 is 1.200 ms"), "{error}");
    }

    #[test]
    fn uniform_distances_are_between_zones_only() {
        let matrix = WanMatrix::uniform(3, 9);
        assert_eq!((rtt(&matrix, 0, 2), rtt(&matrix, 2, 1), rtt(&matrix, 1, 1)), (9, 9, 0));
    }

    #[test]
    fn the_table_of_regions_that_comes_with_us_covers_all_pairs() {
        let text = include_str!("../../tuning/wan-aws13.csv");
        let regions: std::collections::BTreeSet<&str> =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(',').next()).collect();
        assert_eq!(regions.len(), 13);
        let matrix = WanMatrix::from_csv(text, &regions.into_iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(matrix.zones(), 13);
    }

    #[test]
    fn thousandths_keep_their_bounds() {
        assert_eq!(thousandths(0.3, 1, 1000), Some(300));
        for wrong in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1.1] {
            assert_eq!(thousandths(wrong, 1, 1000), None);
        }
        assert_eq!(format!("{} {} {}", Thousandths(2000), Thousandths(1500), Thousandths(7)), "2 1.500 0.007");
    }
}
