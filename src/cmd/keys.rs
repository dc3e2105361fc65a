//! Commands about keys and counters: what the native protocol does.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use serde_json::{Map, Value, json};

use super::{
    exit::{NEGATIVE, OK, code_of_request},
    report::{Report, put_bytes},
    verbs::ExpectArgs,
};
use crate::{
    client::{Client, RequestError, Swap},
    command::Expect,
    topology::NodeId,
};

type Ended = Result<Report, RequestError>;

pub(super) fn get(client: &mut Client, key: &[u8]) -> Ended {
    Ok(match client.get(key)? {
        None => not_found(key),
        Some((value, version)) => {
            Report::new(OK, "value").with("version", version).with_bytes("value", &value).text(value)
        }
    })
}

pub(super) fn put(client: &mut Client, key: &[u8], value: &[u8]) -> Ended {
    match client.put(key, value) {
        Err(RequestError::Duplicate) => {
            Ok(Report::new(OK, "done").note("done, by an earlier attempt; the version is unknown"))
        }
        other => Ok(done(other?)),
    }
}

pub(super) fn delete(client: &mut Client, key: &[u8]) -> Ended {
    Ok(client.delete(key)?.map_or_else(|| not_found(key), done))
}

pub(super) fn cas(client: &mut Client, key: &[u8], expect: &ExpectArgs, value: &[u8]) -> Ended {
    let expect = match (&expect.expect, expect.version) {
        (Some(value), _) => Expect::Value(value.as_bytes()),
        (None, Some(version)) => Expect::Version(version),
        (None, None) => Expect::Absent,
    };
    Ok(match client.compare_and_swap(key, expect, value)? {
        Swap::Swapped { version } => done(version),
        Swap::Failed { version } => Report::new(NEGATIVE, "cas-failed")
            .with("version", version)
            .note(format!("not swapped: the key is not as expected, but at version {version}")),
    })
}

/// Values to standard output, what is missing or failed to standard error; the first error counts, then what is missing.
pub(super) fn get_many(client: &mut Client, keys: &[OsString]) -> Ended {
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    let answers = client.get_many(&keys)?;
    let (mut report, mut text, mut rows, mut missing) = (Report::new(OK, "values"), Vec::new(), Vec::new(), false);
    for (key, answer) in keys.into_iter().zip(answers) {
        let mut row = Map::new();
        put_bytes(&mut row, "key", key);
        let outcome = match answer {
            Ok(Some((value, version))) => {
                text.push([key, b"\t", &value].concat());
                put_bytes(&mut row, "value", &value);
                row.insert("version".to_owned(), version.into());
                "value"
            }
            Ok(None) => {
                missing = true;
                report = report.note(format!("{}: not found", key.escape_ascii()));
                "not-found"
            }
            Err(error) => {
                let (code, outcome) = code_of_request(&error);
                row.insert("error".to_owned(), error.to_string().into());
                report = report.failing(code, "incomplete").note(format!("error: {}: {error}", key.escape_ascii()));
                outcome
            }
        };
        row.insert("outcome".to_owned(), outcome.into());
        rows.push(Value::Object(row));
    }
    let report = if missing { report.failing(NEGATIVE, "not-found") } else { report };
    let report = report.with("keys", rows);
    Ok(if text.is_empty() { report } else { report.text(text.join(&b'\n')) })
}

fn done(version: u64) -> Report {
    Report::new(OK, "done").with("version", version).text(format!("done, version {version}"))
}

fn not_found(key: &[u8]) -> Report {
    Report::new(NEGATIVE, "not-found").note(format!("{}: not found", key.escape_ascii()))
}

/// Of all shards that are asked for, even if some cannot be reached.
pub(super) fn stats(client: &Client, node: Option<NodeId>, shard: Option<u16>) -> Report {
    let nodes = node.map_or_else(|| client.nodes().to_vec(), |node| vec![node]);
    let shards = shard.map_or_else(|| (0..client.shards()).collect::<Vec<_>>(), |shard| vec![shard]);
    let (mut report, mut rows, mut text) = (Report::new(OK, "stats"), Vec::new(), String::new());
    for (node, shard) in nodes.iter().flat_map(|node| shards.iter().map(move |shard| (*node, *shard))) {
        match client.stats(node, shard) {
            Ok(stats) => {
                text.push_str(&stats_text(node, shard, &stats));
                rows.push(json!({"node": node.to_string(), "shard": shard, "stats": stats}));
            }
            Err(error) => {
                report = report.failing(code_of_request(&error).0, "incomplete").note(format!("error: {error}"));
                rows.push(json!({"node": node.to_string(), "shard": shard, "error": error.to_string()}));
            }
        }
    }
    let report = report.with("shards", rows);
    if text.is_empty() { report } else { report.text(text.trim_end()) }
}

fn stats_text(node: NodeId, shard: u16, stats: &Value) -> String {
    let mut text = format!("{node} shard {shard}\n");
    match stats.as_object() {
        Some(fields) => fields.iter().for_each(|(name, value)| text.push_str(&format!("  {name:<32} {value}\n"))),
        None => text.push_str(&format!("  {stats}\n")),
    }
    text
}
