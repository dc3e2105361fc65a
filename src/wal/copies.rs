//! Small files of a data directory: JSON for people, with a checksum as its last field, in two copies.
//!
//! A copy counts only if it is, byte for byte, as it was written. One that is not is moved aside and replaced by the other
//! one, with a warning; it is never written over.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    file::{disk_failure, sync_directory, write_atomically},
    format::FORMAT,
};
use crate::failure::Failure;

/// Stands between the fields of a file and its checksum.
const BEFORE_CHECKSUM: &str = ",\n  \"checksum\": \"";
const BEHIND_CHECKSUM: &str = "\"\n}\n";
/// The checksum, in hexadecimal digits.
const CHECKSUM_DIGITS: usize = 8;

/// The names of the two copies of a file.
pub(super) type Names = [&'static str; 2];

/// One copy, as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found<T> {
    /// As it was written.
    Whole(T),
    Missing,
    /// Another format, which the file names.
    OtherFormat(u64),
    /// Not as it was written, and why.
    Broken(String),
}

impl<T> Found<T> {
    /// The contents, if they count.
    pub(super) fn whole(&self) -> Option<&T> {
        match self {
            Self::Whole(contents) => Some(contents),
            _ => None,
        }
    }

    /// The reason for which a copy does not count.
    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Whole(_) => None,
            Self::Missing => Some("is missing".to_owned()),
            Self::OtherFormat(format) => Some(format!("has format {format}; this build reads format {FORMAT}")),
            Self::Broken(why) => Some(format!("is not as it was written ({why})")),
        }
    }
}

/// Contents as they are written: fields first, then the checksum over all bytes before it.
pub(super) fn render(contents: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(contents).expect("plain fields become JSON");
    let end = text.len() - "\n}".len();
    assert_eq!(&text[end..], b"\n}", "an object with fields");
    text.truncate(end);
    let tail = tail(&text);
    text.extend_from_slice(&tail);
    text
}

fn tail(fields: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c(fields);
    format!("{BEFORE_CHECKSUM}{checksum:0CHECKSUM_DIGITS$x}{BEHIND_CHECKSUM}").into_bytes()
}

/// Contents, if `text` is as it was written.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Found<T> {
    let tail_bytes = BEFORE_CHECKSUM.len() + CHECKSUM_DIGITS + BEHIND_CHECKSUM.len();
    let fields = text.len().checked_sub(tail_bytes).map(|end| text.split_at(end));
    let is_whole = fields.is_some_and(|(fields, found)| found == tail(fields));
    let json = serde_json::from_slice::<serde_json::Value>(text);
    let format = json.as_ref().ok().and_then(|json| json.get("format")?.as_u64());
    match (json, format) {
        // Format 1 had no checksum.
        (Ok(json), Some(format)) if format != u64::from(FORMAT) && (is_whole || json.get("checksum").is_none()) => {
            Found::OtherFormat(format)
        }
        (Ok(json), _) if is_whole => serde_json::from_value(json).map_or_else(
            |error| Found::Broken(format!("its fields are not those of this format: {error}")),
            Found::Whole,
        ),
        (Ok(_), _) => Found::Broken("its checksum does not fit".to_owned()),
        (Err(error), _) => Found::Broken(error.to_string()),
    }
}

/// Reads both copies.
///
/// # Errors
/// If the system does not let them be read.
pub(super) fn read<T: DeserializeOwned>(directory: &Path, names: Names) -> Result<[Found<T>; 2], Failure> {
    let read = |name| match fs::read(directory.join(name)) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Missing),
        Err(error) => Err(Failure::DataDirectory(format!(
            "data directory {}: {name} cannot be read: {error}: let this user read and write the directory",
            directory.display()
        ))),
    };
    Ok([read(names[0])?, read(names[1])?])
}

/// Writes both copies, one after the other: at any time at least one is whole.
///
/// # Errors
/// What the system said.
pub(super) fn write(directory: &Path, names: Names, contents: &impl Serialize) -> Result<(), Failure> {
    let text = render(contents);
    names.iter().try_for_each(|name| write_atomically(&directory.join(name), &text))
}

/// Moves a copy that does not count aside, says so, and puts these contents in its place.
///
/// # Errors
/// What the system said.
pub(super) fn repair(directory: &Path, name: &str, problem: &str, contents: &impl Serialize) -> Result<(), Failure> {
    let path = directory.join(name);
    let aside = set_aside(&path)?;
    let kept = aside.map_or(String::new(), |aside| format!("; what was there is now {}", aside.display()));
    tracing::warn!("{}: {name} {problem}. It was made anew from its other copy{kept}", directory.display());
    write_atomically(&path, &render(contents))
}

/// Renames a file to a name that is free; its new name, if it was there.
fn set_aside(path: &Path) -> Result<Option<PathBuf>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
    let aside = (1..).map(|number| path.with_file_name(format!("{name}.damaged-{number}")));
    let aside = aside.into_iter().find(|aside| !aside.exists()).expect("numbers do not end");
    fs::rename(path, &aside).map_err(|error| disk_failure(path, "renaming it", &error))?;
    sync_directory(path.parent().expect("a file is in a directory"))?;
    Ok(Some(aside))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
    struct Contents {
        format: u16,
        name: String,
        numbers: Vec<u64>,
    }

    fn contents() -> Contents {
        Contents { format: FORMAT, name: "a \"name\"".to_owned(), numbers: vec![1, 77] }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let text = render(&contents());
        assert_eq!(parse(&text), Found::Whole(contents()));
        assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok(), "others can read it");
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(parse::<Contents>(&flipped), Found::Broken(_)), "bit {bit}");
        }
        for bytes in 0..text.len() {
            assert!(matches!(parse::<Contents>(&text[..bytes]), Found::Broken(_)), "{bytes} bytes");
        }
        assert!(matches!(parse::<Contents>(&[&text[..], b"\n"].concat()), Found::Broken(_)));
    }

    #[test]
    fn another_format_is_named() {
        assert_eq!(parse::<Contents>(b"{\"format\": 1, \"boot\": 2}"), Found::OtherFormat(1));
        for format in [0, FORMAT + 1] {
            let text = render(&Contents { format, ..contents() });
            assert_eq!(parse::<Contents>(&text), Found::OtherFormat(format.into()));
        }
        let text = render(&serde_json::json!({ "format": FORMAT, "name": 3 }));
        assert!(matches!(parse::<Contents>(&text), Found::Broken(why) if why.contains("fields")));
    }

    #[test]
    fn a_repaired_copy_is_kept_aside() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["a.json", "a.copy.json"];
        write(directory.path(), names, &contents()).unwrap();
        for number in 1..=2 {
            fs::write(directory.path().join("a.json"), format!("damage {number}")).unwrap();
            let found = read::<Contents>(directory.path(), names).unwrap();
            assert!(found[0].problem().unwrap().contains("not as it was written"), "{found:?}");
            let good = found[1].whole().unwrap();
            repair(directory.path(), "a.json", "is damaged", good).unwrap();
            assert_eq!(read(directory.path(), names).unwrap(), [Found::Whole(contents()), Found::Whole(contents())]);
            let aside = fs::read_to_string(directory.path().join(format!("a.json.damaged-{number}"))).unwrap();
            assert_eq!(aside, format!("damage {number}"));
        }
    }
}
