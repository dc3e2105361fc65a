//! The Redis protocol (RESP2, and the null of RESP3): `SET`, `GET`, and `WAIT` behind each batch of writes if replicas
//! must have them.

use std::collections::VecDeque;

use wpaxos::command::Status;

use super::Dialect;
use crate::{
    cluster::number_of,
    target::{Answer, ErrorKind, Operation, Request, Seen},
};

/// How long `WAIT` waits, in milliseconds.
const WAIT_MS: u32 = 1000;

/// What the answers that come are to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asked {
    Get,
    Set,
    Wait,
}

/// One connection's worth.
#[derive(Debug)]
pub(super) struct Resp {
    /// Replicas that must have a write.
    wait: u32,
    asked: VecDeque<Asked>,
    /// Whether there was a write since the last `WAIT`.
    wrote: bool,
    /// Answers to writes that wait for their `WAIT`, and those that come behind them: they are told in the order of asking.
    held: Vec<Held>,
    complaint: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    answer: Answer,
    is_write: bool,
}

impl Resp {
    pub(super) fn new(wait: u32) -> Self {
        Self { wait, asked: VecDeque::new(), wrote: false, held: Vec::new(), complaint: None }
    }

    fn take(&mut self, reply: Reply<'_>, answered: &mut dyn FnMut(Answer)) -> Result<(), String> {
        let asked = self.asked.pop_front().ok_or("it answers more often than it is asked")?;
        if let Reply::Error(text) = reply {
            super::keep_complaint(&mut self.complaint, || text.to_owned());
        }
        let answer = match (asked, reply) {
            (_, Reply::Error(text)) if asked != Asked::Wait => Answer::Failed(kind_of(text)),
            (Asked::Get, Reply::Bulk(value)) => {
                Answer::Done(Seen { status: Status::Ok, version: 0, value: number_of(value) })
            }
            (Asked::Get, Reply::Null) => Answer::Done(Seen::only(Status::NotFound)),
            (Asked::Set, Reply::Simple(_)) => Answer::Done(Seen::only(Status::Ok)),
            (Asked::Wait, Reply::Integer(_) | Reply::Error(_)) => {
                let enough = matches!(reply, Reply::Integer(count) if count >= i64::from(self.wait));
                for Held { answer, is_write } in self.held.drain(..) {
                    let failed = is_write && !enough && matches!(answer, Answer::Done(_));
                    answered(if failed { Answer::Failed(ErrorKind::TimeoutMaybeDone) } else { answer });
                }
                return Ok(());
            }
            (asked, reply) => return Err(format!("it answers a {asked:?} with {reply:?}")),
        };
        let is_write = asked == Asked::Set;
        if self.wait == 0 || (!is_write && self.held.is_empty()) {
            answered(answer);
        } else {
            self.held.push(Held { answer, is_write });
        }
        Ok(())
    }
}

impl Dialect for Resp {
    fn ask(&mut self, request: &Request<'_>, out: &mut Vec<u8>) {
        match request.operation {
            Operation::Read => {
                out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
                put_bulk(out, request.key);
                self.asked.push_back(Asked::Get);
            }
            Operation::Write(value) => {
                out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
                put_bulk(out, request.key);
                put_bulk(out, value);
                self.asked.push_back(Asked::Set);
                self.wrote = true;
            }
        }
    }

    fn end_batch(&mut self, out: &mut Vec<u8>) {
        if self.wait > 0 && std::mem::take(&mut self.wrote) {
            out.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n");
            put_bulk(out, self.wait.to_string().as_bytes());
            put_bulk(out, WAIT_MS.to_string().as_bytes());
            self.asked.push_back(Asked::Wait);
        }
    }

    fn hear(&mut self, received: &[u8], answered: &mut dyn FnMut(Answer)) -> Result<usize, String> {
        let Some((reply, bytes)) = parse(received)? else { return Ok(0) };
        self.take(reply, answered)?;
        Ok(bytes)
    }

    fn start_over(&mut self) {
        self.asked.clear();
        self.held.clear();
        self.wrote = false;
    }

    fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

fn put_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    put_number(out, bytes.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    let (mut digits, mut rest, mut at) = ([0; 20], number, 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What a server says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reply<'a> {
    Simple(&'a str),
    Error(&'a str),
    Integer(i64),
    Bulk(&'a [u8]),
    Null,
}

/// The longest line, and the longest value: what is longer is no answer to what is asked here.
const LINE_BYTES_MAX: usize = 1024;
const BULK_BYTES_MAX: usize = 16 << 20;

/// The reply at the front and its length; `None` if it is not complete.
fn parse(received: &[u8]) -> Result<Option<(Reply<'_>, usize)>, String> {
    let Some(end) = received.windows(2).take(LINE_BYTES_MAX).position(|pair| pair == b"\r\n") else {
        return match received.len() > LINE_BYTES_MAX {
            true => Err(nonsense(received)),
            // What cannot become a reply is told at once: the server may wait for something that never comes.
            false if !received.is_empty() && !b"+-:$_".contains(&received[0]) => Err(nonsense(received)),
            false => Ok(None),
        };
    };
    let (line, behind) = (&received[1..end.max(1)], end + 2);
    let text = std::str::from_utf8(line).map_err(|_| nonsense(received))?;
    let number = || text.parse::<i64>().map_err(|_| nonsense(received));
    let reply = match received[0] {
        b'+' => Reply::Simple(text),
        b'-' => Reply::Error(text),
        b':' => Reply::Integer(number()?),
        b'_' => Reply::Null,
        b'$' => match number()? {
            -1 => Reply::Null,
            bytes if (0..=BULK_BYTES_MAX as i64).contains(&bytes) => {
                let bytes = bytes as usize;
                return match received.get(behind..behind + bytes + 2) {
                    None => Ok(None),
                    Some(rest) if rest.ends_with(b"\r\n") => {
                        Ok(Some((Reply::Bulk(&rest[..bytes]), behind + bytes + 2)))
                    }
                    Some(_) => Err(nonsense(received)),
                };
            }
            _ => return Err(nonsense(received)),
        },
        _ => return Err(nonsense(received)),
    };
    Ok(Some((reply, behind)))
}

fn nonsense(received: &[u8]) -> String {
    let start = String::from_utf8_lossy(&received[..received.len().min(40)]).into_owned();
    format!("this is no answer of the Redis protocol: {start:?}: does a Redis server listen there?")
}

/// What an error counts as, by its first word.
fn kind_of(text: &str) -> ErrorKind {
    match text.split(' ').next().unwrap_or_default() {
        "LOADING" | "BUSY" | "OOM" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" | "NOREPLICAS" => ErrorKind::Overloaded,
        _ => ErrorKind::BadRequest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: &[u8]) -> Request<'_> {
        Request { key: b"k1", number: 1, operation: Operation::Write(value) }
    }

    const READ: Request<'_> = Request { key: b"k1", number: 1, operation: Operation::Read };

    /// Everything that is told, whatever pieces it comes in.
    fn heard(resp: &mut Resp, bytes: &[u8], piece: usize) -> Result<Vec<Answer>, String> {
        let (mut received, mut answers) = (Vec::new(), Vec::new());
        for bytes in bytes.chunks(piece) {
            received.extend_from_slice(bytes);
            loop {
                let taken = resp.hear(&received, &mut |answer| answers.push(answer))?;
                if taken == 0 {
                    break;
                }
                received.drain(..taken);
            }
        }
        Ok(answers)
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let (mut resp, mut out) = (Resp::new(2), Vec::new());
        resp.ask(&write(b"0123456789"), &mut out);
        resp.ask(&READ, &mut out);
        resp.end_batch(&mut out);
        resp.end_batch(&mut out);
        let expected = "*3\r\n$3\r\nSET\r\n$2\r\nk1\r\n$10\r\n0123456789\r\n*2\r\n$3\r\nGET\r\n$2\r\nk1\r\n\
                        *3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$4\r\n1000\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected, "one WAIT for both");
    }

    #[test]
    fn answers_come_in_any_pieces() {
        let bytes =
            b"+OK\r\n$10\r\n\x07\0\0\0\0\0\0\0\r\n\r\n$-1\r\n_\r\n-ERR unknown command\r\n-LOADING wait\r\n$0\r\n\r\n";
        for piece in [1, 3, 7, 1000] {
            let (mut resp, mut out) = (Resp::new(0), Vec::new());
            resp.ask(&write(b"v"), &mut out);
            for _ in 0..6 {
                resp.ask(&READ, &mut out);
            }
            let answers = heard(&mut resp, bytes, piece).unwrap();
            let [
                Answer::Done(set),
                Answer::Done(got),
                Answer::Done(none),
                Answer::Done(null),
                bad,
                busy,
                Answer::Done(empty),
            ] = answers[..]
            else {
                panic!("{answers:?}")
            };
            assert_eq!((set.status, got.value, none.status), (Status::Ok, 7, Status::NotFound));
            assert_eq!((null.status, empty.status), (Status::NotFound, Status::Ok));
            assert_eq!((bad, busy), (Answer::Failed(ErrorKind::BadRequest), Answer::Failed(ErrorKind::Overloaded)));
        }
    }

    #[test]
    fn writes_wait_for_their_replicas() {
        for (count, enough) in [(2, true), (1, false)] {
            let (mut resp, mut out) = (Resp::new(2), Vec::new());
            resp.ask(&write(b"v"), &mut out);
            resp.ask(&READ, &mut out);
            resp.end_batch(&mut out);
            assert_eq!(heard(&mut resp, b"+OK\r\n$-1\r\n", 1000), Ok(vec![]), "nothing is told before");
            let answers = heard(&mut resp, format!(":{count}\r\n").as_bytes(), 1000).unwrap();
            assert_eq!(matches!(answers[0], Answer::Done(_)), enough);
            assert!(matches!(answers[1], Answer::Done(seen) if seen.status == Status::NotFound), "a read is a read");
        }
        let (mut resp, mut out) = (Resp::new(2), Vec::new());
        resp.ask(&READ, &mut out);
        resp.end_batch(&mut out);
        assert!(!out.windows(4).any(|word| word == b"WAIT"), "there is nothing to wait for");
        assert_eq!(heard(&mut resp, b"$-1\r\n", 1000).unwrap().len(), 1);
    }

    #[test]
    fn what_a_server_says_when_it_refuses_is_kept() {
        let (mut resp, mut out) = (Resp::new(0), Vec::new());
        resp.ask(&READ, &mut out);
        resp.ask(&READ, &mut out);
        heard(&mut resp, b"-NOAUTH Authentication required.\r\n-ERR other\r\n", 1000).unwrap();
        assert_eq!(resp.complaint(), Some("NOAUTH Authentication required."));
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for bytes in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"WPAX", b"$x\r\n", b"$3\r\nabcde", &[b'+'; 2000]] {
            let (mut resp, mut out) = (Resp::new(0), Vec::new());
            resp.ask(&READ, &mut out);
            let error = heard(&mut resp, bytes, 4096).unwrap_err();
            assert!(error.contains("Redis"), "{error}");
        }
        let mut resp = Resp::new(0);
        assert!(heard(&mut resp, b"+OK\r\n", 10).unwrap_err().contains("more often"));
    }
}
