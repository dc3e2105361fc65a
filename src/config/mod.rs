//! The files that operators write, the cluster file and the tuning file, and Paxi's configuration: reading and checking
//! them.
//!
//! Their types are in [`crate::topology`] and [`crate::tuning`]; this module stands above them because it asks
//! [`crate::quorum`] whether a cluster is sound. Every error names the file, the field and what would be right.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

mod cluster;
mod load;
pub mod paxi;
mod settings;
mod tuning;

pub use load::{Configuration, Template, convert};

/// Why a file that an operator wrote is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not TOML, or has a key or a type of value that does not belong there.
    #[error("{}: line {line} (`{text}`): {problem}", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// As it stands there.
        text: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A value that cannot be, by itself or next to another.
    #[error("{}: {wrong}", .file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// Which value, and what would be right.
        #[source]
        wrong: FieldError,
    },
}

/// A value that cannot be, by itself or next to another.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// Which value, as in `quorum.node_failures`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl FieldError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    fn in_file(self, file: &Path) -> ConfigError {
        ConfigError::Field { file: file.to_owned(), wrong: self }
    }
}

/// The text of a file.
fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })
}

/// TOML as a value; `file` is for messages.
fn parse<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        ConfigError::Syntax {
            file: file.to_owned(),
            line: line + 1,
            text: text.lines().nth(line).unwrap_or_default().trim().to_owned(),
            problem: with_suggestion(error.message()),
        }
    })
}

/// A deserializer's message "unknown field `a`, expected one of `b`, `c`", with the likeliest of them pointed out.
fn with_suggestion(message: &str) -> String {
    let message = message.trim().replace('\n', " ");
    let mut names = message.split('`').skip(1).step_by(2);
    match names.next() {
        Some(unknown) if message.starts_with("unknown field") => {
            let suggestion = suggest(unknown, names);
            message + &suggestion
        }
        _ => message,
    }
}

/// "; did you mean `name`?", if one of `known` is close to what was written.
fn suggest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let likeness = |name: &&str| (strsim::jaro_winkler(written, name) * 1000.0) as u32;
    match known.into_iter().max_by_key(likeness).filter(|name| likeness(name) >= 800) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_close_or_absent() {
        for (written, suggestion) in [
            ("nmae", "; did you mean `name`?"),
            ("suspect_silence_us", "; did you mean `suspect_silent_us`?"),
            ("colour", ""),
        ] {
            assert_eq!(suggest(written, ["name", "shards", "suspect_down_us", "suspect_silent_us"]), suggestion);
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("no/such.toml")).unwrap_err().to_string();
        assert!(error.starts_with("no/such.toml: cannot be read: "), "{error}");
    }
}
