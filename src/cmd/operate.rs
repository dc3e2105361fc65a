//! Commands about nodes, histories and owners: what is asked over HTTP.

use std::{ffi::OsString, fmt::Write as _, os::unix::ffi::OsStrExt};

use comfy_table::{Table, presets::NOTHING};
use serde_json::{Map, Value, json};

use super::{
    exit::{NEGATIVE, OK, REFUSED, code_of_admin, code_of_order},
    report::{Report, put_bytes, quoted},
};
use crate::{
    client::admin::{Admin, AdminError, Answers, Consensus, Held, Owner, Verdict, Version},
    topology::NodeId,
};

const HISTORY_OFF: &str = "keeps no history: set `enabled = true` in [history] of the cluster file";

pub(super) fn failed(error: &AdminError) -> Report {
    let (code, outcome) = code_of_admin(error);
    Report::failed(code, outcome, &error.to_string())
}

/// What the node says that was asked for, or else the first that answers, if only to refuse. If none does, the failure of
/// the first one counts.
fn first_answer<T>(
    admin: &Admin,
    node: Option<NodeId>,
    ask: impl Fn(NodeId) -> Result<T, AdminError>,
) -> Result<(NodeId, T), Report> {
    let nodes = node.map_or_else(|| admin.nodes().iter().map(|(node, _)| *node).collect(), |node| vec![node]);
    let mut report: Option<Report> = None;
    for node in nodes {
        match ask(node) {
            Ok(answer) => return Ok((node, answer)),
            Err(error @ AdminError::Refused { .. }) => return Err(failed(&error)),
            Err(error) => {
                report = Some(match report {
                    None => failed(&error),
                    Some(report) => report.note(format!("error: {error}")),
                });
            }
        }
    }
    Err(report.unwrap_or_else(|| Report::usage("the cluster has no nodes")))
}

pub(super) fn history(admin: &Admin, node: Option<NodeId>, key: &[u8]) -> Report {
    let (node, versions) = match first_answer(admin, node, |node| admin.history(node, key)) {
        Ok(answer) => answer,
        Err(report) => return report,
    };
    let Some(versions) = versions else {
        return Report::failed(REFUSED, "refused", &format!("{node} {HISTORY_OFF}"));
    };
    let rows: Vec<Value> = versions.iter().map(version_json).collect();
    let line = |version: &Version| format!("{:>8}  {}", version.version, shown(version.value.as_deref()));
    let lines: Vec<String> = versions.iter().map(line).collect();
    let (code, outcome) = if rows.is_empty() { (NEGATIVE, "not-found") } else { (OK, "history") };
    let report = Report::new(code, outcome).with("node", node.to_string()).with("versions", rows);
    if lines.is_empty() {
        return report.note(format!("{node} holds no version of it"));
    }
    report.text(lines.join("\n")).note(format!("as {node} keeps it"))
}

fn version_json(version: &Version) -> Value {
    let mut row = Map::new();
    row.insert("version".to_owned(), version.version.into());
    put_value(&mut row, version.value.as_deref());
    Value::Object(row)
}

/// A removed value is `null`.
fn put_value(row: &mut Map<String, Value>, value: Option<&[u8]>) {
    match value {
        Some(value) => put_bytes(row, "value", value),
        None => drop(row.insert("value".to_owned(), Value::Null)),
    }
}

/// A value cannot be taken for the word: it stands in quotation marks.
fn shown(value: Option<&[u8]>) -> String {
    value.map_or_else(|| "removed".to_owned(), quoted)
}

/// Each key is compared by itself; the first that does not agree everywhere counts.
pub(super) fn consensus(admin: &Admin, keys: &[OsString]) -> Report {
    let (mut report, mut text, mut rows) = (Report::new(OK, "agree"), Vec::new(), Vec::new());
    for key in keys {
        let compared = admin.consensus(key.as_bytes());
        let (code, outcome) = consensus_code(&compared);
        if code != OK {
            report = report.failing(code, outcome);
        }
        for (node, held) in &compared.nodes {
            report = match held {
                Held::Versions(_) => report,
                Held::Off => report.note(format!("error: {node} {HISTORY_OFF}")),
                Held::Failed(error) => report.note(format!("error: {error}")),
            };
        }
        text.push(consensus_text(&compared));
        rows.push(consensus_json(&compared));
    }
    report.with("keys", rows).text(text.join("\n"))
}

fn consensus_code(compared: &Consensus) -> (u8, &'static str) {
    let incomplete = compared.nodes.iter().find_map(|(_, held)| match held {
        Held::Versions(_) => None,
        Held::Off => Some(REFUSED),
        Held::Failed(error) => Some(code_of_admin(error).0),
    });
    match (&compared.verdict, incomplete) {
        (Verdict::Part { .. }, _) => (NEGATIVE, "part"),
        (_, Some(code)) => (code, "incomplete"),
        (Verdict::NoOverlap, None) => (NEGATIVE, "no-overlap"),
        (Verdict::Nothing, None) => (NEGATIVE, "not-found"),
        (Verdict::Agree { .. } | Verdict::TooFew, None) => (OK, "agree"),
    }
}

fn consensus_text(compared: &Consensus) -> String {
    let key = quoted(&compared.key);
    let missing = compared.missing().count();
    let answered = compared.nodes.len() - missing;
    let of = if missing == 0 { format!("all {answered} nodes") } else { format!("the {answered} nodes that answered") };
    let mut text = match &compared.verdict {
        Verdict::Agree { up_to, compared } => {
            format!("{key}: {of} agree, up to version {up_to}; versions compared: {compared}")
        }
        Verdict::Part { version, agreed_to: Some(agreed), .. } => {
            format!("{key}: they part at version {version}; they agree up to version {agreed}")
        }
        Verdict::Part { version, agreed_to: None, .. } => {
            format!("{key}: they part at version {version}; no earlier one is held by two nodes")
        }
        Verdict::NoOverlap => format!("{key}: no version is held by two nodes, so there is nothing to compare"),
        Verdict::Nothing => format!("{key}: no version is held by any of {of}"),
        Verdict::TooFew => format!("{key}: fewer than two nodes gave a history, so there is nothing to compare"),
    };
    for (node, last) in compared.behind() {
        let last = last.map_or_else(|| "no version".to_owned(), |last| format!("version {last}"));
        let _ = write!(text, "\n  {node}  is behind, at {last}");
    }
    if let Verdict::Part { values, .. } = &compared.verdict {
        for (node, value) in values {
            let _ = write!(text, "\n  {node}  {}", shown(value.as_deref()));
        }
    }
    if compared.verdict == Verdict::NoOverlap {
        for (node, held) in &compared.nodes {
            let Held::Versions(versions) = held else { continue };
            let _ = match (versions.first(), versions.last()) {
                (Some(first), Some(last)) => {
                    write!(text, "\n  {node}  {} versions, {} to {}", versions.len(), first.version, last.version)
                }
                _ => write!(text, "\n  {node}  no version"),
            };
        }
    }
    text
}

fn consensus_json(compared: &Consensus) -> Value {
    let mut row = Map::new();
    put_bytes(&mut row, "key", &compared.key);
    let verdict = match &compared.verdict {
        Verdict::Agree { up_to, compared } => json!({"verdict": "agree", "up_to": up_to, "compared": compared}),
        Verdict::Part { version, values, agreed_to } => {
            let value = |(node, value): &(NodeId, Option<Vec<u8>>)| {
                let mut row = Map::new();
                row.insert("node".to_owned(), node.to_string().into());
                put_value(&mut row, value.as_deref());
                Value::Object(row)
            };
            let values: Vec<Value> = values.iter().map(value).collect();
            json!({"verdict": "part", "version": version, "agreed_to": agreed_to, "values": values})
        }
        Verdict::NoOverlap => json!({"verdict": "no-overlap"}),
        Verdict::Nothing => json!({"verdict": "nothing"}),
        Verdict::TooFew => json!({"verdict": "too-few"}),
    };
    row.extend(verdict.as_object().cloned().unwrap_or_default());
    let held = |(node, held): &(NodeId, Held)| match held {
        Held::Versions(versions) => {
            let ends = versions.first().zip(versions.last()).map(|(first, last)| (first.version, last.version));
            let (first, last) = ends.unzip();
            json!({"node": node.to_string(), "versions": versions.len(), "first": first, "last": last})
        }
        Held::Off => json!({"node": node.to_string(), "error": HISTORY_OFF}),
        Held::Failed(error) => json!({"node": node.to_string(), "error": error.to_string()}),
    };
    row.insert("nodes".to_owned(), compared.nodes.iter().map(held).collect());
    Value::Object(row)
}

/// How the nodes are that were named, or all; those that do not answer have a row too.
pub(super) fn status(admin: &Admin, nodes: &[NodeId]) -> Report {
    let answers = match nodes {
        [] => admin.status_of_all(),
        nodes => nodes.iter().map(|node| (*node, admin.status(*node))).collect(),
    };
    let (mut report, mut rows) = (Report::new(OK, "status"), Vec::new());
    let header =
        ["node", "state", "version", "config", "vote", "durability", "objects", "waiting", "links down", "faults"];
    let mut table = table(&header);
    for (node, answer) in answers {
        match answer {
            Ok(status) => {
                table.add_row(status_row(node, &status));
                rows.push(json!({"node": node.to_string(), "status": status}));
            }
            Err(error) => {
                table.add_row([node.to_string(), "no answer".to_owned()]);
                rows.push(json!({"node": node.to_string(), "error": error.to_string()}));
                report = report.failing(code_of_admin(&error).0, "incomplete").note(format!("error: {error}"));
            }
        }
    }
    report.with("nodes", rows).text(plain(&table))
}

/// What is missing in the answer, as of a node of another version, is shown as nothing.
fn status_row(node: NodeId, status: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let shards = list(&status["shards"]);
    let sum = |name: &str| shards.iter().filter_map(|shard| shard[name].as_u64()).sum::<u64>().to_string();
    let mut down: Vec<String> = Vec::new();
    for (peer, up) in shards.iter().filter_map(|shard| shard["links"].as_object()).flatten() {
        if up == &Value::Bool(false) && !down.contains(peer) {
            down.push(peer.clone());
        }
    }
    let fault = |fault: &Value| {
        let name = fault["fault"].as_str().unwrap_or("?").to_owned();
        fault["seconds_left"].as_f64().map_or_else(|| name.clone(), |left| format!("{name} for {left:.0} s"))
    };
    let faults: Vec<String> = list(&status["faults"]).iter().map(fault).collect();
    let or_none = |names: Vec<String>| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let (config, vote) = least_membership(&shards);
    // The mode; what is behind it is how the log is written.
    let durability = text(&status["facts"]["durability"]).split(' ').next().unwrap_or_default().to_owned();
    let (objects, waiting) = (sum("objects"), sum("waiting"));
    let mut row = vec![node.to_string(), "up".to_owned(), text(&status["version"]), config, vote, durability];
    row.extend([objects, waiting, or_none(down), or_none(faults)]);
    row
}

/// The lowest configuration version of a node's shards, and the vote of the shard that is farthest from voting.
fn least_membership(shards: &[Value]) -> (String, String) {
    let memberships = || shards.iter().map(|shard| &shard["membership"]).filter(|membership| membership.is_object());
    let version = memberships().filter_map(|membership| membership["version"].as_u64()).min();
    let least = memberships().map(vote_of).min_by_key(|(rank, _)| *rank);
    (
        version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
        least.map_or("-".to_owned(), |(_, text)| text),
    )
}

/// What a shard may do, after how far it is from voting.
fn vote_of(membership: &Value) -> ((u8, usize), String) {
    let learner = &membership["learner"];
    let learned_from = learner["learned_from"].as_array().map_or(0, Vec::len);
    match membership["vote"].as_str().unwrap_or("-") {
        "learner" if learner["may_end"] == Value::Bool(false) => ((2, 0), "learner, no quorum".to_owned()),
        "learner" => ((3, learned_from), format!("learner {learned_from}/{}", learner["others"])),
        "new" => ((1, 0), "new".to_owned()),
        "votes" => ((4, 0), "votes".to_owned()),
        other => ((0, 0), other.to_owned()),
    }
}

/// Of keys as every node sees them, or of all keys as one node sees them.
pub(super) fn owners(
    admin: &Admin,
    keys: &[OsString],
    node: Option<NodeId>,
    limit: usize,
    after: Option<&[u8]>,
) -> Report {
    if keys.is_empty() {
        let (node, owners) = match first_answer(admin, node, |node| admin.owners(node, limit, after)) {
            Ok(answer) => answer,
            Err(report) => return report,
        };
        let next = owners.last().filter(|_| owners.len() >= limit).map(|owner| owner.key.clone());
        let seen = owners.into_iter().map(|owner| (node, owner.key.clone(), Some(owner))).collect();
        let report = owners_report(Report::new(OK, "owners"), seen);
        return match next {
            Some(key) => {
                let word = shlex::bytes::try_quote(&key).unwrap_or_default();
                let note = format!("more: owners --after {}", String::from_utf8_lossy(&word));
                report.with_bytes("next", &key).note(note)
            }
            None => report,
        };
    }
    let (mut report, mut seen) = (Report::new(OK, "owners"), Vec::new());
    for key in keys.iter().map(|key| key.as_bytes()) {
        let answers = match node {
            Some(node) => vec![(node, admin.owner(node, key))],
            None => admin.owner_at_all(key),
        };
        for (node, answer) in answers {
            match answer {
                Ok(owner) => seen.push((node, key.to_vec(), owner)),
                Err(error) => {
                    report = report.failing(code_of_admin(&error).0, "incomplete").note(format!("error: {error}"));
                }
            }
        }
    }
    owners_report(report, seen)
}

/// Which node sees which owner of a key; `None` if it has never heard of the key.
fn owners_report(report: Report, seen: Vec<(NodeId, Vec<u8>, Option<Owner>)>) -> Report {
    let mut table = table(&["key", "seen by", "owner", "ballot", "leads", "applied", "steals"]);
    let mut rows = Vec::new();
    for (node, key, owner) in seen {
        let mut row = Map::new();
        put_bytes(&mut row, "key", &key);
        row.insert("node".to_owned(), node.to_string().into());
        let id = owner.as_ref().and_then(|owner| owner.owner).map(|id| id.to_string());
        row.insert("owner".to_owned(), id.clone().into());
        let mut cells = vec![quoted(&key), node.to_string(), id.unwrap_or_else(|| "-".to_owned())];
        if let Some(Owner { ballot, leads, applied, steals, .. }) = owner {
            let known = json!({"ballot": ballot, "leads": leads, "applied": applied, "steals": steals});
            row.extend(known.as_object().cloned().unwrap_or_default());
            let leads = if leads { "yes" } else { "no" };
            cells.extend([ballot, leads.to_owned(), applied.to_string(), steals.to_string()]);
        }
        table.add_row(cells);
        rows.push(Value::Object(row));
    }
    let empty = rows.is_empty();
    let report = report.with("owners", rows);
    if empty { report.note("no keys") } else { report.text(plain(&table)) }
}

pub(super) fn steal(admin: &Admin, node: NodeId, key: &[u8]) -> Report {
    match admin.steal(node, key) {
        Ok(Owner { ballot, steals, .. }) => Report::new(OK, "done")
            .with("ballot", ballot.as_str())
            .with("steals", steals)
            .text(format!("done: {node} leads {} at ballot {ballot}", quoted(key))),
        Err(error) => {
            let (code, outcome) = code_of_order(&error);
            Report::failed(code, outcome, &error.to_string())
        }
    }
}

/// Of the nodes that were named, or of all.
pub(super) fn heal(admin: &Admin, nodes: &[NodeId]) -> Report {
    faults(match nodes {
        [] => admin.heal_all(),
        nodes => nodes.iter().map(|node| (*node, admin.heal(*node))).collect(),
    })
}

/// What became of faults that were injected or ended.
pub(super) fn faults(answers: Answers<()>) -> Report {
    let (mut report, mut rows, mut done) = (Report::new(OK, "done"), Vec::new(), Vec::new());
    for (node, answer) in answers {
        match answer {
            Ok(()) => {
                done.push(node.to_string());
                rows.push(json!({"node": node.to_string(), "outcome": "done"}));
            }
            Err(error) => {
                let (code, outcome) = code_of_order(&error);
                rows.push(json!({"node": node.to_string(), "outcome": outcome, "error": error.to_string()}));
                report = report.failing(code, outcome).note(format!("error: {error}"));
            }
        }
    }
    let report = report.with("nodes", rows);
    if done.is_empty() { report } else { report.text(format!("done, on {}", done.join(", "))) }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table
}

fn plain(table: &Table) -> String {
    table.trim_fmt()
}
