//! JSON as Paxi's files have it: keys in any case, and nothing that is written twice goes by unnoticed.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{FieldError, Note, suggest};

/// A JSON value whose objects keep every entry: what is written twice is there twice.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List,
    Object(Vec<(String, Json)>),
}

impl Json {
    fn kind(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("\"{text}\""),
            Self::List => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        // No key of Paxi's takes a list: that it is one is all that a message will say.
        while list.next_element::<Json>()?.is_some() {}
        Ok(Json::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}

/// An object of a file whose keys are known, each in any case.
pub(super) struct Fields {
    /// What stands before the names of keys in messages.
    place: &'static str,
    /// By the known name: as it was written, and its value.
    entries: Vec<(&'static str, String, Json)>,
}

impl Fields {
    /// Sorts `entries` by the keys that are `known`; `aliases` are other spellings that are understood, with a note.
    pub(super) fn new(
        place: &'static str,
        entries: Vec<(String, Json)>,
        known: &'static [&'static str],
        aliases: &'static [(&'static str, &'static str)],
        notes: &mut Vec<Note>,
    ) -> Result<Self, FieldError> {
        let mut fields = Self { place, entries: Vec::with_capacity(entries.len()) };
        for (written, value) in entries {
            let same = |name: &str| name.eq_ignore_ascii_case(&written);
            let alias = aliases.iter().find(|(alias, _)| same(alias)).map(|(_, name)| *name);
            let Some(name) = known.iter().copied().find(|name| same(name)).or(alias) else {
                let near = nearest(&written, known);
                let problem = format!("is not a key of Paxi's configuration{near}; its keys are {}", known.join(", "));
                return Err(FieldError::new(format!("{place}{written}"), problem));
            };
            if alias.is_some() {
                let text = format!("is taken as `{name}`; Paxi itself ignores this spelling");
                notes.push(Note::new(format!("{place}{written}"), text));
            }
            if let Some((_, before, _)) = fields.entries.iter().find(|(known, ..)| *known == name) {
                let problem = if *before == written {
                    "is written twice: one of the two is meant".to_owned()
                } else {
                    format!("is written twice, the other time as `{before}`: one of the two is meant")
                };
                return Err(FieldError::new(format!("{place}{written}"), problem));
            }
            fields.entries.push((name, written, value));
        }
        Ok(fields)
    }

    /// An error about a key, under the name by which it was written.
    pub(super) fn wrong(&self, name: &str, problem: impl Into<String>) -> FieldError {
        let written = self.entries.iter().find(|(known, ..)| *known == name).map_or(name, |(_, written, _)| written);
        FieldError::new(format!("{}{written}", self.place), problem)
    }

    /// The value of a key; `None` if it is not there, or `null`, which leaves Paxi's default as it is.
    pub(super) fn value(&self, name: &str) -> Option<&Json> {
        let found = self.entries.iter().find(|(known, ..)| *known == name).map(|(.., value)| value);
        found.filter(|value| **value != Json::Null)
    }

    /// Whether a key is there, even as `null`.
    pub(super) fn is_written(&self, name: &str) -> bool {
        self.entries.iter().any(|(known, ..)| *known == name)
    }

    fn expected(&self, name: &str, found: &Json, what: &str) -> FieldError {
        self.wrong(name, format!("{} is not {what}", found.kind()))
    }

    pub(super) fn bool(&self, name: &str, default: bool) -> Result<bool, FieldError> {
        match self.value(name) {
            None => Ok(default),
            Some(Json::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.expected(name, other, "true or false")),
        }
    }

    pub(super) fn text(&self, name: &str, default: &str) -> Result<String, FieldError> {
        match self.value(name) {
            None => Ok(default.to_owned()),
            Some(Json::Text(text)) => Ok(text.clone()),
            Some(other) => Err(self.expected(name, other, "a text in quotes")),
        }
    }

    pub(super) fn number(&self, name: &str, default: f64, min: f64, max: f64) -> Result<f64, FieldError> {
        match self.value(name) {
            None => Ok(default),
            Some(Json::Number(number)) if (min..=max).contains(number) => Ok(*number),
            Some(Json::Number(number)) => Err(self.wrong(name, format!("{number} must be from {min} to {max}"))),
            Some(other) => Err(self.expected(name, other, &format!("a number from {min} to {max}"))),
        }
    }

    /// A whole number. `max` must be exact as a float, that is at most 2^53.
    pub(super) fn integer(&self, name: &str, default: u64, min: u64, max: u64) -> Result<u64, FieldError> {
        let number = self.number(name, default as f64, min as f64, max as f64)?;
        if number.fract() == 0.0 {
            return Ok(number as u64);
        }
        Err(self.wrong(name, format!("{number} must be a whole number, from {min} to {max}")))
    }

    /// An object's entries; none if it is not there.
    pub(super) fn object(&self, name: &str) -> Result<Vec<(String, Json)>, FieldError> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Json::Object(entries)) => Ok(entries.clone()),
            Some(other) => Err(self.expected(name, other, "an object, as in {\"1.1\": …}")),
        }
    }
}

/// "; did you mean `name`?", whatever the case of what was written.
fn nearest(written: &str, known: &'static [&'static str]) -> String {
    let lower = written.to_ascii_lowercase();
    let names: Vec<String> = known.iter().map(|name| name.to_ascii_lowercase()).collect();
    let near = suggest(&lower, names.iter().map(String::as_str));
    let name = near.split('`').nth(1).and_then(|near| known.iter().find(|name| name.eq_ignore_ascii_case(near)));
    name.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
