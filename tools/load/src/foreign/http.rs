//! Paxi's REST interface, which wpaxos has too: `PUT /KEY` with the value as the body, `GET /KEY`. Keys are numbers.

use std::io::Write;

use wpaxos::command::Status;

use super::Dialect;
use crate::{
    cluster::number_of,
    target::{Answer, ErrorKind, Operation, Request, Seen},
};

/// Headers of an answer that are read.
const HEADERS_MAX: usize = 64;
/// The longest head of an answer, and the longest body: what is longer is no answer to what is asked here.
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 16 << 20;

/// One connection's worth.
#[derive(Debug)]
pub(super) struct Http {
    host: String,
    /// Bytes of a body that arrives in chunks.
    body: Vec<u8>,
    complaint: Option<String>,
}

impl Http {
    pub(super) fn new(host: &str) -> Self {
        Self { host: host.to_owned(), body: Vec::new(), complaint: None }
    }
}

impl Dialect for Http {
    fn ask(&mut self, request: &Request<'_>, out: &mut Vec<u8>) {
        let (number, host) = (request.number, &self.host);
        // A vector takes everything.
        let _ = match request.operation {
            Operation::Read => write!(out, "GET /{number} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            Operation::Write(value) => {
                let length = value.len();
                write!(out, "PUT /{number} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n")
                    .and_then(|()| out.write_all(value))
            }
        };
    }

    fn hear(&mut self, received: &[u8], answered: &mut dyn FnMut(Answer)) -> Result<usize, String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(received) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) if received.len() <= HEAD_BYTES_MAX => return Ok(0),
            Ok(httparse::Status::Partial) | Err(_) => return Err(nonsense(received)),
        };
        let code = response.code.unwrap_or(0);
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.and_then(|header| std::str::from_utf8(header.value).ok())
        };
        let rest = &received[head..];
        if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            self.body.clear();
            let Some(bytes) = dechunk(rest, &mut self.body)? else { return Ok(0) };
            complain(&mut self.complaint, code, &self.body);
            answered(answer_of(code, &self.body));
            return Ok(head + bytes);
        }
        let length = match header("content-length").map(str::parse::<usize>) {
            None if matches!(code, 204 | 304) => 0,
            Some(Ok(length)) if length <= BODY_BYTES_MAX => length,
            _ => return Err(nonsense(received)),
        };
        let Some(body) = rest.get(..length) else { return Ok(0) };
        complain(&mut self.complaint, code, body);
        answered(answer_of(code, body));
        Ok(head + length)
    }

    fn start_over(&mut self) {}

    fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

/// Keeps what was said with a code that is no success.
fn complain(kept: &mut Option<String>, code: u16, body: &[u8]) {
    if matches!(answer_of(code, body), Answer::Failed(_)) {
        super::keep_complaint(kept, || format!("{code} {}", String::from_utf8_lossy(body).trim()).trim().to_owned());
    }
}

/// Collects a body that comes in chunks; its length with all that is around them, `None` if it is not complete.
fn dechunk(bytes: &[u8], body: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let (skip, length) = match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete((skip, length))) if length <= BODY_BYTES_MAX as u64 => {
                (skip, length as usize)
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            _ => return Err(nonsense(bytes)),
        };
        let Some(chunk) = bytes.get(at + skip..at + skip + length + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err(nonsense(bytes));
        }
        body.extend_from_slice(&chunk[..length]);
        at += skip + length + 2;
        if length == 0 {
            return Ok(Some(at));
        }
    }
}

fn answer_of(code: u16, body: &[u8]) -> Answer {
    match code {
        200 if body.is_empty() => Answer::Done(Seen::only(Status::Ok)),
        200..=299 => Answer::Done(Seen { status: Status::Ok, version: 0, value: number_of(body) }),
        404 => Answer::Done(Seen::only(Status::NotFound)),
        429 | 503 => Answer::Failed(ErrorKind::Overloaded),
        504 => Answer::Failed(ErrorKind::TimeoutMaybeDone),
        500..=599 => Answer::Failed(ErrorKind::OutcomeUnknown),
        _ => Answer::Failed(ErrorKind::BadRequest),
    }
}

fn nonsense(received: &[u8]) -> String {
    let start = String::from_utf8_lossy(&received[..received.len().min(40)]).into_owned();
    format!("this is no answer in HTTP/1.1: {start:?}: does a server with Paxi's REST interface listen there?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(bytes: &[u8], piece: usize) -> Result<Vec<Answer>, String> {
        let (mut http, mut received, mut answers) = (Http::new("h:1"), Vec::new(), Vec::new());
        for bytes in bytes.chunks(piece) {
            received.extend_from_slice(bytes);
            loop {
                let taken = http.hear(&received, &mut |answer| answers.push(answer))?;
                if taken == 0 {
                    break;
                }
                received.drain(..taken);
            }
        }
        Ok(answers)
    }

    #[test]
    fn requests_are_paxis() {
        let (mut http, mut out) = (Http::new("h:1"), Vec::new());
        http.ask(&Request { key: b"k7", number: 7, operation: Operation::Write(b"abc") }, &mut out);
        http.ask(&Request { key: b"k7", number: 7, operation: Operation::Read }, &mut out);
        let expected =
            "PUT /7 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 3\r\n\r\nabcGET /7 HTTP/1.1\r\nHost: h:1\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn answers_come_in_any_pieces_with_either_kind_of_body() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 10\r\nId: 1.1\r\n\r\n\
            \x09\0\0\0\0\0\0\0xyHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\x05\0\0\0\r\n4\r\n\0\0\0\0\r\n0\r\n\r\n\
            HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnoneHTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
        for piece in [1, 5, 33, 4096] {
            let answers = heard(bytes, piece).unwrap();
            let [Answer::Done(put), Answer::Done(got), Answer::Done(chunked), Answer::Done(none), busy] = answers[..]
            else {
                panic!("{answers:?}")
            };
            assert_eq!((put.status, got.value, chunked.value), (Status::Ok, 9, 5));
            assert_eq!((none.status, busy), (Status::NotFound, Answer::Failed(ErrorKind::Overloaded)));
        }
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for bytes in [
            &b"-ERR unknown command\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        ] {
            assert!(heard(bytes, 4096).unwrap_err().contains("HTTP/1.1"));
        }
    }
}
