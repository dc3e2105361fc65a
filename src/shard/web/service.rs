//! One request: what it asks, and its answer.

use std::{convert::Infallible, future::poll_fn, pin::Pin, rc::Rc, task::Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::{Body, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    Outcome, Slot, Ticket, admin,
    watch::{Stage, Watch},
};
use crate::{
    api::http::{self, Target, TargetError, Verdict},
    command::{Action, Op, Status, VALUE_BYTES_MAX},
    protocol::Protocol,
    shard::{Shard, budget::Held, core::Asked},
    topology::Missing,
};

pub(super) type Reply = Response<Full<Bytes>>;
/// An answer that ends the work on a request.
pub(super) type Refused = Box<Reply>;

const ID: HeaderName = HeaderName::from_static("id");
const CID: HeaderName = HeaderName::from_static("cid");
const RETRY: HeaderName = HeaderName::from_static("retry");
const SLOT: HeaderName = HeaderName::from_static("slot");
const BALLOT: HeaderName = HeaderName::from_static("ballot");
const EXECUTE: HeaderName = HeaderName::from_static("execute");
const VERSION: HeaderName = HeaderName::from_static("version");
/// Whoever sends a command again has to say which.
const NAMELESS_RETRY: &str = "Retry without an Id and a Cid that name the command: nobody can tell whether it was executed \
    before. An Id like 1.1 names a replica, not a client\n";

const OUTCOME: HeaderName = HeaderName::from_static("outcome");

/// Answers a request.
pub(super) async fn answer<P: Protocol>(
    shard: Rc<Shard<P>>,
    watch: Rc<Watch>,
    slot: Rc<Slot>,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    watch.enter(Stage::Body, shard.node.now());
    let reply = match route(&shard, &watch, &slot, request).await {
        Ok(reply) => reply,
        Err(refused) => *refused,
    };
    let bytes = reply.body().size_hint().exact().unwrap_or(0) as usize;
    let reply = match watch.hold_answer(bytes) {
        true => reply,
        false => *overloaded("clients hold as much memory as they may (flow.client_memory_bytes_max)\n"),
    };
    watch.enter(Stage::Send, shard.node.now());
    Ok(reply)
}

async fn route<P: Protocol>(
    shard: &Rc<Shard<P>>,
    watch: &Watch,
    slot: &Rc<Slot>,
    request: Request<Incoming>,
) -> Result<Reply, Refused> {
    check_host(&request)?;
    let target = Target::parse(request.uri().path(), request.uri().query()).map_err(|error| target_error(&error))?;
    check_method(request.method(), &target)?;
    let (head, body) = request.into_parts();
    let (body, _held) = receive(shard, watch, body).await?;
    watch.enter(Stage::Answer, shard.node.now());
    let identity = Identity::of(&head.headers)?;
    match target {
        Target::Key(key) => {
            let action = match head.method {
                Method::PUT | Method::POST => Action::Put(&body),
                Method::DELETE => Action::Delete,
                _ => Action::Get,
            };
            command(shard, watch, slot, &identity, &key, action).await
        }
        Target::Body => {
            let asked = http::json_command(&body).map_err(|error| refuse(400, &format!("{error}\n")))?;
            let action = asked.value.as_deref().map_or(Action::Get, Action::Put);
            let identity = Identity::of_json(identity, &asked)?;
            command(shard, watch, slot, &identity, &asked.key, action).await
        }
        other => admin::answer(shard, watch, other).await,
    }
}

/// HTTP/1.1 has exactly one Host; two of them are a way past a proxy.
fn check_host(request: &Request<Incoming>) -> Result<(), Refused> {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    match (request.version(), hosts) {
        (_, 1) | (Version::HTTP_10 | Version::HTTP_09, 0) => Ok(()),
        _ => Err(closing(refuse(400, &format!("{hosts} Host headers; a request has one\n")))),
    }
}

fn check_method(method: &Method, target: &Target) -> Result<(), Refused> {
    let allowed = target.methods();
    if allowed.split(", ").any(|allowed| allowed == method.as_str()) {
        return Ok(());
    }
    let mut reply = refuse(405, &format!("{method} is not for this; it takes {allowed}\n"));
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    // Whatever body comes with it is not read.
    Err(closing(reply))
}

fn target_error(error: &TargetError) -> Refused {
    let code = match error {
        TargetError::Unknown(_) => 404,
        TargetError::LongKey(_) => 414,
        TargetError::Encoding(_) | TargetError::Query(_) => 400,
    };
    closing(refuse(code, &format!("{error}\n")))
}

/// The whole body, if it is not too long and comes in time, and the memory that it holds.
async fn receive<P: Protocol>(shard: &Shard<P>, watch: &Watch, mut body: Incoming) -> Result<(Bytes, Held), Refused> {
    let bytes_max = shard.node.cluster.http.body_bytes_max;
    let too_long =
        || closing(refuse(413, &format!("the body has more than {bytes_max} bytes (http.body_bytes_max)\n")));
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_long());
    }
    let held = Held::new(Some(Rc::clone(&shard.budget)), 0);
    let (mut first, mut whole, mut received) = (Bytes::new(), BytesMut::new(), 0);
    loop {
        let frame = poll_fn(|context| match Pin::new(&mut body).poll_frame(context) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => watch.poll_expired(context).map(Err),
        });
        let data = match frame.await {
            Err(()) => return Err(closing(refuse(408, "the request was not whole in time\n"))),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(closing(refuse(400, &format!("the body cannot be read: {error}\n")))),
            // Trailers say nothing here.
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        received += data.len();
        if received > bytes_max {
            return Err(too_long());
        }
        if shard.budget.is_spent() && !data.is_empty() {
            let text = "clients hold as much memory as they may (flow.client_memory_bytes_max); it has not happened\n";
            return Err(closing(overloaded(text)));
        }
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
        held.set(received.max(whole.capacity()));
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, held))
}

/// Who asks, as the headers say.
#[derive(Clone, Default)]
struct Identity {
    /// As it came, for the answer.
    id: Option<HeaderValue>,
    cid: Option<HeaderValue>,
    pair: Option<(u64, u64)>,
    retry: bool,
}

impl Identity {
    fn of(headers: &HeaderMap) -> Result<Self, Refused> {
        let once = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            match (values.next(), values.next()) {
                (first, None) => Ok(first.cloned()),
                _ => Err(refuse(400, &format!("the header {name} is there twice\n"))),
            }
        };
        let (id, cid) = (once(&ID)?, once(&CID)?);
        let bytes = |value: &Option<HeaderValue>| value.as_ref().map(|value| value.as_bytes().to_vec());
        let pair = http::identity(bytes(&id).as_deref(), bytes(&cid).as_deref());
        let pair = pair.map_err(|error| refuse(400, &format!("{error}\n")))?;
        Ok(Self { id, cid, pair, retry: headers.contains_key(RETRY) })
    }

    /// What the body says stands in for headers that are not there.
    fn of_json(headers: Self, command: &http::JsonCommand) -> Result<Self, Refused> {
        if headers.id.is_some() || headers.cid.is_some() {
            return Ok(headers);
        }
        let cid = command.command.map(|number| number.to_string());
        let pair = http::identity(Some(command.client.as_bytes()), cid.as_ref().map(String::as_bytes));
        let pair = pair.map_err(|error| refuse(400, &format!("{error}\n")))?;
        let value = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
        Ok(Self { id: value(&command.client), cid: cid.and_then(|cid| value(&cid)), pair, ..headers })
    }
}

/// Hands a command to the protocol and waits for its outcome.
async fn command<P: Protocol>(
    shard: &Rc<Shard<P>>,
    watch: &Watch,
    slot: &Rc<Slot>,
    identity: &Identity,
    key: &[u8],
    action: Action<'_>,
) -> Result<Reply, Refused> {
    let op = match action {
        Action::Put(value) if value.len() > VALUE_BYTES_MAX => {
            return Err(refuse(413, &format!("a value has at most {VALUE_BYTES_MAX} bytes; it has {}\n", value.len())));
        }
        Action::Put(_) => Op::Put,
        Action::Delete => Op::Delete,
        _ => Op::Get,
    };
    if identity.retry && identity.pair.is_none() && op.is_write() {
        return Err(refuse(400, NAMELESS_RETRY));
    }
    let mut asked = Asked { identity: identity.pair, retry: identity.retry, key, action };
    let mut ended = outcome_of(shard, watch, slot, &asked).await?;
    if matches!(&ended, Ok(outcome) if outcome.status == Status::IdStale) {
        // It is certain that this copy was not executed, and its client says that there was no other: it is a command of its
        // own, whatever its number.
        asked.identity = None;
        ended = outcome_of(shard, watch, slot, &asked).await?;
    }
    let settings = &shard.node.cluster.http;
    match ended {
        Ok(outcome) => Ok(tell(op, outcome, identity, settings.missing)),
        Err(()) if op == Op::Get => Err(closing(gave_up("not-done", "no answer in time; a read changes nothing\n"))),
        Err(()) => Err(closing(gave_up("unknown", "no answer in time; it may have happened, or may still\n"))),
    }
}

/// Hands a command to the protocol; its outcome, or the end of the time for it.
async fn outcome_of<P: Protocol>(
    shard: &Rc<Shard<P>>,
    watch: &Watch,
    slot: &Rc<Slot>,
    asked: &Asked<'_>,
) -> Result<Result<Outcome, ()>, Refused> {
    let ticket = Ticket::next(slot);
    let taken = shard.core.borrow_mut().web_request(asked, ticket.clone());
    taken.map_err(|error| refuse(if asked.key.is_empty() { 400 } else { 414 }, &format!("{error}\n")))?;
    shard.wake.notify();
    let outcome = poll_fn(|context| match ticket.poll(context) {
        Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
        Poll::Pending => watch.poll_expired(context).map(Err),
    });
    Ok(outcome.await)
}

fn gave_up(outcome: &'static str, text: &str) -> Refused {
    let mut reply = refuse(504, text);
    reply.headers_mut().insert(OUTCOME, HeaderValue::from_static(outcome));
    reply
}

/// A command's outcome as an answer.
fn tell(op: Op, outcome: Outcome, identity: &Identity, missing: Missing) -> Reply {
    let Verdict { code, outcome: ended, text, retry_after } =
        http::verdict(op, outcome.status, outcome.repeated, missing);
    let mut reply = if code == 200 {
        let mut reply = Response::new(Full::new(outcome.value));
        if op == Op::Get {
            let bytes = HeaderValue::from_static("application/octet-stream");
            reply.headers_mut().insert(header::CONTENT_TYPE, bytes);
        }
        reply
    } else {
        plain(code, text)
    };
    let headers = reply.headers_mut();
    if outcome.ballot != 0 {
        headers.insert(SLOT, outcome.slot.into());
        headers.insert(EXECUTE, outcome.slot.into());
        headers.insert(VERSION, outcome.version.into());
        let ballot = HeaderValue::from_maybe_shared(Bytes::from(http::ballot_text(outcome.ballot)));
        headers.insert(BALLOT, ballot.expect("digits and dots"));
    }
    if let Some(id) = &identity.id {
        headers.insert(ID, id.clone());
    }
    if let Some(cid) = &identity.cid {
        headers.insert(CID, cid.clone());
    }
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if ended != "done" {
        headers.insert(OUTCOME, HeaderValue::from_static(ended));
    }
    reply
}

/// An answer in words.
pub(super) fn plain(code: u16, text: &str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *reply.status_mut() = StatusCode::from_u16(code).expect("the codes here are codes");
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    reply
}

/// The same, to end the work on a request.
pub(super) fn refuse(code: u16, text: &str) -> Refused {
    Box::new(plain(code, text))
}

/// An answer for programs.
pub(super) fn json(value: &impl serde::Serialize) -> Reply {
    let text = serde_json::to_vec(value).expect("names, numbers and lists become JSON");
    let mut reply = Response::new(Full::new(Bytes::from(text)));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// It is not possible now.
pub(super) fn overloaded(text: &str) -> Refused {
    let mut reply = refuse(503, text);
    reply.headers_mut().insert(header::RETRY_AFTER, 1.into());
    reply
}

/// The connection ends with this answer: what follows on it is not read.
fn closing(mut reply: Refused) -> Refused {
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}
