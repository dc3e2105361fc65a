//! Configurations as our cluster file.

use std::path::Path;

use super::{exit::OK, report::Report};
use crate::config::{ConfigError, convert as to_toml};

/// The cluster file on standard output, what to know about it on standard error.
pub(super) fn convert(file: &Path) -> Result<Report, ConfigError> {
    let (text, notes) = to_toml(file)?;
    let said: Vec<String> = notes.iter().map(ToString::to_string).collect();
    let report = Report::new(OK, "converted").with("toml", text.as_str()).with("notes", said.clone());
    Ok(said.iter().fold(report.text(text.trim_end()), |report, note| report.note(format!("note: {note}"))))
}
