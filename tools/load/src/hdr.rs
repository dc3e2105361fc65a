//! The interval log: one line per second and tag, in the format that HdrHistogram's own tools read.
//!
//! Values are nanoseconds, which is what `HistogramLogProcessor` takes them for. Lines without a tag hold all
//! operations, because that is what the tools process unless they are asked for a tag; lines with `Tag=read`, `Tag=write` and
//! so on hold the parts. In an open loop `Tag=service` and `Tag=lag` say what all response times consist of.

use std::{
    fs::File,
    io::{self, LineWriter, Write},
    path::Path,
    time::{Duration, SystemTime},
};

use hdrhistogram::serialization::{
    V2DeflateSerializer,
    interval_log::{IntervalLogWriter, IntervalLogWriterBuilder, IntervalLogWriterError, Tag},
};

use crate::measure::{Counts, Kind, Times};

const LEGEND: &str = r#""StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram""#;
/// What the maximum in a line is divided by: it is for people, and in milliseconds.
const MAX_DIVISOR: f64 = 1e6;

/// Where an interval log goes.
pub struct HdrFile<W: Write> {
    sink: W,
    serializer: V2DeflateSerializer,
}

impl HdrFile<LineWriter<File>> {
    /// Creates the file; whole lines are on disk at once, so that a run that is killed leaves what it had.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self::new(LineWriter::new(File::create(path)?)))
    }
}

impl<W: Write> HdrFile<W> {
    /// Writes to `sink`.
    pub fn new(sink: W) -> Self {
        Self { sink, serializer: V2DeflateSerializer::new() }
    }

    /// Writes the head: what is measured began at `start`, to which all timestamps are relative.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(&mut self, start: SystemTime, comments: &[String]) -> io::Result<HdrLog<'_, W>> {
        let mut head = IntervalLogWriterBuilder::new();
        for comment in comments {
            head.add_comment(comment);
        }
        head.add_comment("[Histogram log format version 1.3]").with_base_time(start).with_start_time(start);
        head.begin_log_with(&mut self.sink, &mut self.serializer)?;
        writeln!(self.sink, "{LEGEND}")?;
        let mut body = IntervalLogWriterBuilder::new();
        body.with_max_value_divisor(MAX_DIVISOR);
        Ok(HdrLog { writer: body.begin_log_with(&mut self.sink, &mut self.serializer)? })
    }
}

/// An interval log whose head is written.
pub struct HdrLog<'a, W: Write> {
    writer: IntervalLogWriter<'a, 'a, W, V2DeflateSerializer>,
}

impl<W: Write> HdrLog<'_, W> {
    /// Writes what was counted in an interval that began `start` after the measured time did.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, start: Duration, length: Duration, counts: &Counts) -> io::Result<()> {
        let all = counts.sum(|_, _| true);
        self.line(start, length, None, &all.times)?;
        for kind in Kind::ALL.into_iter().filter(|kind| counts.has(*kind)) {
            let times = counts.sum(|_, of| of == kind).times;
            self.line(start, length, Tag::new(kind.name()), &times)?;
        }
        if let Some(parts) = &all.parts {
            self.line(start, length, Tag::new("service"), &parts.service)?;
            self.line(start, length, Tag::new("lag"), &parts.lag)?;
        }
        Ok(())
    }

    fn line(&mut self, start: Duration, length: Duration, tag: Option<Tag<'_>>, times: &Times) -> io::Result<()> {
        match self.writer.write_histogram(times, start, length, tag) {
            Ok(()) => Ok(()),
            Err(IntervalLogWriterError::IoError(error)) => Err(error),
            Err(IntervalLogWriterError::SerializeError(error)) => Err(io::Error::other(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use hdrhistogram::serialization::{
        Deserializer,
        interval_log::{IntervalLogIterator, LogEntry},
    };

    use super::*;

    fn log() -> String {
        let mut file = HdrFile::new(Vec::new());
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let mut log = file.begin(start, &["wpaxos-load 0.1.0".to_owned()]).unwrap();
        for second in 0..3u64 {
            let mut counts = Counts::new(2);
            for n in 0..100 {
                counts.cell_mut(0, Kind::Read).times.saturating_record(1_000_000 * (second + 1));
                counts.cell_mut(n % 2, Kind::Write).times.saturating_record(5_000_000 * (second + 1));
            }
            log.write(Duration::from_secs(second), Duration::from_secs(1), &counts).unwrap();
        }
        drop(log);
        String::from_utf8(file.sink).unwrap()
    }

    #[test]
    fn the_log_reads_back_as_it_was_written() {
        let text = log();
        let (mut starts, mut lines) = (0, Vec::new());
        for entry in IntervalLogIterator::new(text.as_bytes()) {
            match entry.unwrap() {
                LogEntry::StartTime(at) | LogEntry::BaseTime(at) => {
                    assert_eq!(at, Duration::from_millis(1_700_000_000_250));
                    starts += 1;
                }
                LogEntry::Interval(interval) => {
                    let bytes = base64::engine::general_purpose::STANDARD.decode(interval.encoded_histogram()).unwrap();
                    let times: Times = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
                    let tag = interval.tag().map(|tag| tag.as_str().to_owned());
                    assert_eq!(interval.duration(), Duration::from_secs(1));
                    assert!((interval.max() - times.max() as f64 / 1e6).abs() < 0.001, "milliseconds");
                    lines.push((interval.start_timestamp().as_secs(), tag, times.len(), times.max() / 1_000_000));
                }
            }
        }
        assert_eq!(starts, 2);
        let tag = |name: &str| Some(name.to_owned());
        let expected = |second| {
            [
                (second, None, 200, 5 * (second + 1)),
                (second, tag("read"), 100, second + 1),
                (second, tag("write"), 100, 5 * (second + 1)),
            ]
        };
        assert_eq!(lines, [expected(0), expected(1), expected(2)].concat());
    }

    /// What `HistogramLogReader` (Java) looks for: tokens split at blanks and commas, lines told by their first token.
    #[test]
    fn the_head_is_what_the_public_tools_expect() {
        let text = log();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "#[Histogram log format version 1.3]");
        assert!(lines.contains(&"#[StartTime: 1700000000.250 (seconds since epoch)]"));
        assert!(lines.contains(&"#[BaseTime: 1700000000.250 (seconds since epoch)]"));
        assert!(lines.contains(&LEGEND));
        let body: Vec<&str> = lines.iter().copied().filter(|line| !line.starts_with(['#', '"'])).collect();
        assert_eq!(body.len(), 9);
        let first = lines.iter().position(|line| *line == body[0]).unwrap();
        assert!(lines[..first].iter().all(|line| line.starts_with(['#', '"'])), "the head comes first");
        for line in body {
            let line = line.strip_prefix("Tag=read,").or(line.strip_prefix("Tag=write,")).unwrap_or(line);
            let fields: Vec<&str> = line.split(',').collect();
            assert_eq!(fields.len(), 4, "{line}");
            assert!(fields[..3].iter().all(|number| number.parse::<f64>().is_ok()), "{line}");
            assert!(fields[3].starts_with("HISTFAAA"), "V2, compressed: {line}");
        }
    }
}
