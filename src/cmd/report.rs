//! What became of a command, and how it is printed.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde_json::{Map, Value};

use super::exit::{OK, USAGE};

/// Where reports go.
pub(super) struct Output<'a> {
    /// What commands give.
    pub(super) out: &'a mut dyn Write,
    /// One line of JSON for each command.
    pub(super) json: bool,
    /// Whether it is a terminal, which must not take bytes of a value for orders.
    pub(super) terminal: bool,
}

/// What became of a command.
#[derive(Debug)]
pub(super) struct Report {
    /// For the process to end with.
    pub(super) code: u8,
    outcome: &'static str,
    /// What there is to say, for `--json`.
    fields: Map<String, Value>,
    /// For standard output.
    text: Option<Vec<u8>>,
    /// For standard error, a line or more each.
    notes: Vec<String>,
}

impl Report {
    pub(super) fn new(code: u8, outcome: &'static str) -> Self {
        Self { code, outcome, fields: Map::new(), text: None, notes: Vec::new() }
    }

    pub(super) fn failed(code: u8, outcome: &'static str, why: &str) -> Self {
        Self::new(code, outcome).note(format!("error: {why}")).with("error", why)
    }

    pub(super) fn usage(why: &str) -> Self {
        Self::failed(USAGE, "usage", why)
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// With bytes as text where they are UTF-8, and as `NAME_hex` where they are not.
    pub(super) fn with_bytes(mut self, name: &str, bytes: &[u8]) -> Self {
        put_bytes(&mut self.fields, name, bytes);
        self
    }

    pub(super) fn text(self, text: impl Into<Vec<u8>>) -> Self {
        Self { text: Some(text.into()), ..self }
    }

    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Takes the first failure's code and outcome, if this has none of its own.
    pub(super) fn failing(self, code: u8, outcome: &'static str) -> Self {
        if self.code == OK { Self { code, outcome, ..self } } else { self }
    }

    /// Prints it and gives its code.
    pub(super) fn print(mut self, to: &mut Output<'_>) -> io::Result<u8> {
        if to.json {
            self.fields.insert("outcome".to_owned(), self.outcome.into());
            writeln!(to.out, "{}", Value::Object(self.fields))?;
        } else {
            if let Some(text) = self.text {
                let shown = if to.terminal { printable(&text) } else { Cow::Borrowed(text.as_slice()) };
                to.out.write_all(&shown)?;
                to.out.write_all(b"\n")?;
                if matches!(shown, Cow::Owned(_)) {
                    self.notes
                        .push("(some bytes are shown escaped; --json or a pipe gives them as they are)".to_owned());
                }
            }
            for note in &self.notes {
                crate::complain!("{}", String::from_utf8_lossy(&printable(note.as_bytes())));
            }
        }
        to.out.flush()?;
        Ok(self.code)
    }
}

/// Bytes under a name: as text, or as `NAME_hex` if they are none.
pub(super) fn put_bytes(fields: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => fields.insert(name.to_owned(), text.into()),
        Err(_) => fields.insert(format!("{name}_hex"), hex(bytes).into()),
    };
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes as one readable word: in quotation marks, what is not printable escaped.
pub(super) fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}

/// What a terminal can be shown: control characters (but for line ends and tabs) and what is no text are escaped.
fn printable(bytes: &[u8]) -> Cow<'_, [u8]> {
    let harmless = |letter: char| !letter.is_control() || matches!(letter, '\n' | '\t');
    if std::str::from_utf8(bytes).is_ok_and(|text| text.chars().all(harmless)) {
        return Cow::Borrowed(bytes);
    }
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                letter if harmless(letter) => shown.push(letter),
                letter => shown.extend(letter.escape_default()),
            }
        }
        shown.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    Cow::Owned(shown.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(report: Report, json: bool, terminal: bool) -> String {
        let mut out = Vec::new();
        report.print(&mut Output { out: &mut out, json, terminal }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_is_given_no_orders() {
        let value = "grüße\t1\n\u{1b}[2J\u{9b}".as_bytes();
        let report = || Report::new(OK, "value").text([value, b"\xff"].concat());
        assert_eq!(print(report(), false, true), "grüße\t1\n\\u{1b}[2J\\u{9b}\\xff\n");
        assert_eq!(print(Report::new(OK, "value").text(value), false, false).as_bytes(), [value, b"\n"].concat());
    }

    #[test]
    fn bytes_that_are_no_text_are_written_in_hexadecimal() {
        let report = Report::new(OK, "value").with_bytes("key", b"k").with_bytes("value", b"\xff\x00");
        assert_eq!(print(report, true, true), "{\"key\":\"k\",\"outcome\":\"value\",\"value_hex\":\"ff00\"}\n");
        assert_eq!((quoted(b"a\"b\n"), quoted(b"\xff\n")), (r#""a\"b\n""#.to_owned(), r#""\xff\n""#.to_owned()));
    }

    #[test]
    fn the_first_failure_counts() {
        let report = Report::new(OK, "values").failing(3, "refused").failing(5, "unreachable");
        assert_eq!((report.code, report.outcome), (3, "refused"));
    }
}
