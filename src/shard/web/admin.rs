//! What people ask a node beside commands: status, history, owners; faults and stealing.

use std::{future::Future, pin::pin, rc::Rc, task::Poll, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use glommio::timer::Timer;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json as value};

use super::{
    Answer, Question,
    service::{Refused, Reply, json, overloaded, plain, refuse},
    watch::Watch,
};
use crate::{
    api::http::{FaultOrder, Target, ballot_text},
    protocol::{Ownership, Protocol, Taking},
    shard::Shard,
    store::Version,
    topology::{ShardId, shard_of, token_of},
};

/// How often it is looked whether a key was taken.
const TAKING_PAUSE: Duration = Duration::from_millis(2);

/// Answers what is not a command.
pub(super) async fn answer<P: Protocol>(shard: &Rc<Shard<P>>, watch: &Watch, target: Target) -> Result<Reply, Refused> {
    let work = async {
        match target {
            Target::History { key, versions } => history(shard, key, versions).await,
            Target::Fault(order) => inject(shard, order).await,
            Target::Heal => heal(shard).await,
            Target::Status => status(shard).await,
            Target::Owner(key) => owner(shard, key).await,
            Target::Owners { limit, after } => owners(shard, limit, after).await,
            Target::Steal(key) => steal(shard, key).await,
            Target::Key(_) | Target::Body => unreachable!("commands are answered elsewhere"),
        }
    };
    let mut work = pin!(work);
    std::future::poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(reply) => Poll::Ready(reply),
        Poll::Pending => watch.poll_expired(context).map(|()| Err(refuse(504, "no answer in time\n"))),
    })
    .await
}

/// Asks a shard of this node.
async fn ask<P: Protocol>(shard: &Shard<P>, of: ShardId, question: Question) -> Result<Answer, Refused> {
    let answer = shard.node.questions[usize::from(of.0)].ask(question).await;
    answer.ok_or_else(|| overloaded("this replica is stopping\n"))
}

fn shard_of_key<P: Protocol>(shard: &Shard<P>, key: &[u8]) -> ShardId {
    shard_of(token_of(key), shard.node.cluster.shards)
}

fn base64(bytes: &[u8]) -> Value {
    Value::String(BASE64_STANDARD.encode(bytes))
}

async fn history<P: Protocol>(shard: &Shard<P>, key: Vec<u8>, with_versions: bool) -> Result<Reply, Refused> {
    let of = shard_of_key(shard, &key);
    let Answer::History(history) = ask(shard, of, Question::History(key)).await? else {
        unreachable!("an answer is to its question")
    };
    let of_version = |Version { version, value }: &Version| {
        let value = value.as_deref().map_or(Value::Null, base64);
        if with_versions { value!({ "version": version, "value": value }) } else { value }
    };
    let mut reply = json(&history.map(|history| history.iter().map(of_version).collect::<Vec<_>>()));
    // As Paxi has it.
    let id = HeaderValue::from_str(&shard.id().to_string()).expect("digits and a dot");
    reply.headers_mut().insert(HeaderName::from_static("id"), id);
    Ok(reply)
}

/// Has every shard look at the faults, so that they hold when the answer is there.
async fn act_out<P: Protocol>(shard: &Shard<P>) -> Result<(), Refused> {
    for of in (0..shard.node.cluster.shards).map(ShardId) {
        ask(shard, of, Question::Faults).await?;
    }
    Ok(())
}

fn allowed<P: Protocol>(shard: &Shard<P>) -> Result<(), Refused> {
    if shard.node.cluster.faults {
        return Ok(());
    }
    let text = "faults may not be injected into this cluster: its file would have to say [faults] allowed = true\n";
    Err(refuse(403, text))
}

async fn inject<P: Protocol>(shard: &Shard<P>, order: FaultOrder) -> Result<Reply, Refused> {
    allowed(shard)?;
    let node = &shard.node;
    let (name, for_us) = (order.what.to_string(), order.for_us);
    let injected = node.faults.inject(node.now(), node.index, &node.cluster, order);
    injected.map_err(|problem| refuse(400, &format!("{problem}\n")))?;
    let long = for_us.map_or_else(|| "until /heal".to_owned(), |us| format!("for {} s", us as f64 / 1e6));
    tracing::warn!(node = %shard.id(), "fault injected: {name}, {long}");
    act_out(shard).await?;
    Ok(plain(200, &format!("{name}, {long}\n")))
}

async fn heal<P: Protocol>(shard: &Shard<P>) -> Result<Reply, Refused> {
    allowed(shard)?;
    shard.node.faults.heal();
    tracing::warn!(node = %shard.id(), "all injected faults are healed");
    act_out(shard).await?;
    Ok(plain(200, "no faults\n"))
}

async fn status<P: Protocol>(shard: &Shard<P>) -> Result<Reply, Refused> {
    let node = &shard.node;
    let mut shards = Vec::new();
    for of in (0..node.cluster.shards).map(ShardId) {
        let Answer::Status(status) = ask(shard, of, Question::Status).await? else {
            unreachable!("an answer is to its question")
        };
        let mut status = serde_json::to_value(&status).expect("names and numbers become JSON");
        status["objects"] = status["counters"]["objects"].clone();
        shards.push(status);
    }
    let now = node.now();
    let left = |until: crate::protocol::Micros| until.since(now) as f64 / 1e6;
    let faults = node.faults.active(now);
    let faults: Vec<Value> = faults
        .iter()
        .map(|fault| value!({ "fault": fault.what.to_string(), "seconds_left": fault.until.map(left) }))
        .collect();
    Ok(json(&value!({
        "cluster": node.cluster.name,
        "node": shard.id().to_string(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": now.0 as f64 / 1e6,
        "facts": node.facts,
        "http_connections": node.admission.web(),
        "faults_allowed": node.cluster.faults,
        "faults": faults,
        "shards": shards,
    })))
}

fn ownership(owner: &Ownership) -> Value {
    value!({
        "key": base64(&owner.key),
        "owner": owner.owner.map(|owner| owner.to_string()),
        "ballot": ballot_text(owner.ballot),
        "leads": owner.leads,
        "applied": owner.applied,
        "steals": owner.steals,
    })
}

async fn owner<P: Protocol>(shard: &Shard<P>, key: Vec<u8>) -> Result<Reply, Refused> {
    Ok(json(&look_up(shard, key).await?.iter().map(ownership).collect::<Vec<_>>()))
}

async fn look_up<P: Protocol>(shard: &Shard<P>, key: Vec<u8>) -> Result<Option<Ownership>, Refused> {
    let of = shard_of_key(shard, &key);
    match ask(shard, of, Question::Owner(key)).await? {
        Answer::Owners(owners) => Ok(owners.into_iter().next()),
        _ => unreachable!("an answer is to its question"),
    }
}

async fn owners<P: Protocol>(shard: &Shard<P>, limit: usize, after: Option<Vec<u8>>) -> Result<Reply, Refused> {
    let first = after.as_ref().map_or(0, |key| shard_of_key(shard, key).0);
    if let Some(key) = &after
        && look_up(shard, key.clone()).await?.is_none()
    {
        return Err(refuse(400, "after: this node has not met that key; begin with the last one of the page before\n"));
    }
    let (mut after, mut all) = (after, Vec::new());
    for of in (first..shard.node.cluster.shards).map(ShardId) {
        let question = Question::Owners { after: after.take(), limit: limit - all.len() };
        let Answer::Owners(owners) = ask(shard, of, question).await? else {
            unreachable!("an answer is to its question")
        };
        all.extend(owners.iter().map(ownership));
        if all.len() >= limit {
            break;
        }
    }
    Ok(json(&all))
}

/// Has this node take a key, and says how that ended.
async fn steal<P: Protocol>(shard: &Shard<P>, key: Vec<u8>) -> Result<Reply, Refused> {
    let of = shard_of_key(shard, &key);
    let Answer::Taking(taking) = ask(shard, of, Question::Take(key.clone())).await? else {
        unreachable!("an answer is to its question")
    };
    if let Taking::Refused(why) = taking {
        return Err(overloaded(&format!("{why}\n")));
    }
    loop {
        let owner = look_up(shard, key.clone()).await?;
        match owner {
            Some(owner) if owner.leads => return Ok(json(&ownership(&owner))),
            Some(owner) if owner.owner != Some(shard.id()) => {
                let winner = owner.owner.map_or_else(|| "nobody".to_owned(), |owner| owner.to_string());
                return Err(refuse(409, &format!("{winner} took it at the same time\n")));
            }
            _ => Timer::new(TAKING_PAUSE).await,
        };
    }
}
