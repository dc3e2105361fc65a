//! HTTP at the replicas of real clusters, over sockets: what is asked rightly, wrongly and with ill will.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;
use wpaxos::{
    local::{LocalCluster, LocalHttp, LocalOptions},
    store::OPEN_SLOTS_MAX,
    topology::{HistoryBounds, HttpSettings, Missing, NodeId, StealPolicy},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// One zone of three nodes, where faults may be injected and history is kept.
fn options() -> LocalOptions {
    LocalOptions {
        name: "test".to_owned(),
        zones: 1,
        nodes: 3,
        http: LocalHttp::AnyPorts,
        faults: true,
        history: Some(HistoryBounds::default()),
        ..LocalOptions::default()
    }
}

fn start(options: LocalOptions) -> (LocalCluster, Vec<SocketAddr>) {
    let local = LocalCluster::start(options).unwrap();
    let http = local.http();
    (local, http)
}

#[derive(Debug)]
struct Answer {
    code: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

/// A connection that sends what it is told, byte for byte.
struct Raw {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { socket, received: Vec::new() }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends as far as the other side takes it.
    fn send_as_far(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes);
    }

    /// The next answer; `None` if the connection was closed first. `bodiless` for an answer to HEAD.
    fn next(&mut self, bodiless: bool) -> Option<Answer> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.fill()?;
        };
        let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let code = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let headers: Vec<_> = lines.filter_map(header).collect();
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(0, |(_, length)| length.parse().unwrap());
        let whole = end + if bodiless { 0 } else { length };
        while self.received.len() < whole {
            self.fill()?;
        }
        let body = self.received[end..whole].to_vec();
        self.received.drain(..whole);
        Some(Answer { code, headers, body })
    }

    fn fill(&mut self) -> Option<()> {
        let mut buffer = [0; 65_536];
        let bytes = match self.socket.read(&mut buffer) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("no answer within {PATIENCE:?}: {error}"),
        };
        self.received.extend_from_slice(&buffer[..bytes]);
        (bytes > 0).then_some(())
    }

    fn answer(&mut self) -> Answer {
        self.next(false).expect("an answer")
    }

    fn is_closed(&mut self) -> bool {
        self.received.is_empty() && self.fill().is_none()
    }

    fn ask(&mut self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let length = body.len();
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {length}\r\n\r\n"));
        self.send(body);
        self.next(method == "HEAD").expect("an answer")
    }
}

fn ask(address: SocketAddr, method: &str, target: &str, body: &[u8]) -> Answer {
    Raw::connect(address).ask(method, target, "", body)
}

fn get(address: SocketAddr, target: &str) -> Answer {
    ask(address, "GET", target, b"")
}

fn put(address: SocketAddr, target: &str, body: &[u8]) -> Answer {
    ask(address, "PUT", target, body)
}

/// That the replica serves others as before.
fn still_serves(address: SocketAddr) {
    assert_eq!(put(address, "/alive", b"yes").code, 200);
    assert_eq!(get(address, "/alive").text(), "yes");
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn keys_are_written_read_and_deleted() {
    let (local, http) = start(options());
    let mut raw = Raw::connect(http[0]);
    let put = raw.ask("PUT", "/42", "", b"one");
    assert_eq!((put.code, put.header("version"), put.header("slot")), (200, Some("1"), Some("1")));
    assert_eq!((put.header("ballot"), put.header("execute")), (Some("1.1.1"), Some("1")));
    assert_eq!(raw.ask("POST", "/42", "", b"two").header("version"), Some("2"));
    let read = raw.ask("GET", "/42", "", b"");
    assert_eq!((read.code, read.text().as_str(), read.header("version")), (200, "two", Some("2")));
    let head = raw.ask("HEAD", "/42", "", b"");
    assert_eq!((head.code, head.header("content-length"), head.body.len()), (200, Some("3"), 0));
    assert_eq!(raw.ask("PUT", "/42", "", b"").code, 200);
    assert_eq!(raw.ask("GET", "/42", "", b"").text(), "", "an empty value is a value");
    assert_eq!(raw.ask("DELETE", "/42", "", b"").code, 200);
    assert_eq!(raw.ask("DELETE", "/42", "", b"").code, 404);
    let missing = raw.ask("GET", "/42", "", b"");
    assert_eq!((missing.code, missing.text().as_str()), (404, "there is no such key\n"));
    assert_eq!(raw.ask("HEAD", "/42", "", b"").code, 404);
    // Names that other things have are keys when a character of theirs is encoded, and any bytes are a key.
    for key in ["/%68istory", "/%5F/status", "/a/b%20c", "/%00%FF%25", "/-7", "/%2F"] {
        assert_eq!(raw.ask("PUT", key, "", key.as_bytes()).code, 200, "{key}");
        assert_eq!(get(http[1], key).text(), key, "another node forwards it");
    }
    assert_eq!(get(http[2], "/a%2fb%20c").text(), "/a/b%20c", "it is the bytes that count");
    let wrong = raw.ask("PATCH", "/42", "", b"");
    assert_eq!((wrong.code, wrong.header("allow")), (405, Some("GET, HEAD, PUT, POST, DELETE")));
    assert_eq!(ask(http[0], "GET", "/_/steal?key=a", b"").header("allow"), Some("POST"));
    for (target, code) in [("/a%2", 400), ("/a?b=1", 400), ("/_/nothing", 404), ("/history", 400)] {
        assert_eq!(get(http[0], target).code, code, "{target}");
    }
    assert_eq!(get(http[0], &format!("/{}", "k".repeat(4097))).code, 414);
    assert_eq!(get(http[0], &format!("/{}", "%6b".repeat(4096))).code, 404, "the longest key there is");
    local.stop().unwrap();
}

#[test]
fn paxis_clients_find_what_they_expect() {
    let settings = HttpSettings { missing: Missing::Empty, ..HttpSettings::default() };
    let (local, http) = start(LocalOptions { http_settings: settings, ..options() });
    let mut raw = Raw::connect(http[0]);
    // As Go's net/http sends what Paxi's client asks for, on one connection.
    let common = "Host: 127.0.0.1:8080\r\nUser-Agent: Go-http-client/1.1\r\n";
    let ids = "Cid: 1\r\nId: \r\nAccept-Encoding: gzip\r\n";
    raw.send(format!("GET /5 HTTP/1.1\r\n{common}{ids}\r\n"));
    let missing = raw.answer();
    assert_eq!((missing.code, missing.body.len()), (200, 0), "no value is an empty body");
    for value in ["hello", "again"] {
        // Each run of its command begins to count anew, with an empty Id: these are two writes.
        raw.send(format!("PUT /5 HTTP/1.1\r\n{common}Content-Length: 5\r\n{ids}\r\n{value}"));
        let written = raw.answer();
        assert_eq!((written.code, written.header("cid"), written.header("id")), (200, Some("1"), Some("")));
        raw.send(format!("GET /5 HTTP/1.1\r\n{common}{ids}\r\n"));
        assert_eq!(raw.answer().text(), value);
    }
    let body = r#"{"Key":5,"Value":"d29ybGQ=","ClientID":"1.1","CommandID":7}"#;
    let json = format!("Content-Length: {}\r\nContent-Type: json\r\nAccept-Encoding: gzip\r\n\r\n{body}", body.len());
    raw.send(format!("POST / HTTP/1.1\r\n{common}{json}"));
    let written = raw.answer();
    assert_eq!((written.code, written.header("id"), written.header("cid")), (200, Some("1.1"), Some("7")));
    let read = r#"{"Key":5,"Value":null,"ClientID":"1.1","CommandID":8}"#;
    assert_eq!(raw.ask("POST", "/", "", read.as_bytes()).text(), "world");
    let repeated = raw.ask("PUT", "/", "", body.as_bytes());
    assert_eq!((repeated.code, repeated.header("version")), (200, Some("4")), "a ClientID like 1.1 is a replica's");
    let named = body.replace("1.1", "me");
    let versions = [(); 2].map(|()| raw.ask("PUT", "/", "", named.as_bytes()).header("version").map(str::to_owned));
    assert_eq!(versions, [Some("5".to_owned()), Some("5".to_owned())], "it was executed once");
    for target in ["/history?key=5", "/crash?t=1", "/drop?id=1.2&t=1"] {
        raw.send(format!("GET {target} HTTP/1.1\r\n{common}Accept-Encoding: gzip\r\n\r\n"));
        assert_eq!(raw.answer().code, 200, "{target}");
    }
    for (body, says) in [("{", "not JSON"), (r#"{"Value":"YQ=="}"#, "Key is missing"), ("", "not JSON")] {
        let wrong = raw.ask("POST", "/", "", body.as_bytes());
        assert_eq!(wrong.code, 400);
        assert!(wrong.text().contains(says), "{}", wrong.text());
    }
    local.stop().unwrap();
}

#[test]
fn requests_in_one_piece_or_in_many_are_answered_in_their_order() {
    let (local, http) = start(options());
    let mut raw = Raw::connect(http[0]);
    let mut text = String::new();
    for number in 0..50 {
        let body = format!("value {number}");
        let length = body.len();
        text.push_str(&format!("PUT /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}"));
        text.push_str(&format!("GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n"));
    }
    raw.send(&text);
    for number in 0..50 {
        assert_eq!(raw.answer().code, 200);
        assert_eq!(raw.answer().text(), format!("value {number}"));
    }
    for piece in text.as_bytes()[..400].chunks(3) {
        raw.send(piece);
    }
    raw.send(&text.as_bytes()[400..]);
    for _ in 0..100 {
        assert_eq!(raw.answer().code, 200);
    }
    let chunked = "PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nT: x\r\n\r\n";
    raw.send(chunked);
    assert_eq!(raw.answer().code, 200);
    raw.send("PUT /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(raw.answer().code, 100);
    raw.send("yes");
    assert_eq!(raw.answer().code, 200);
    raw.send("GET http://elsewhere/c HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(raw.answer().text(), "abcde", "chunks are put together");
    raw.send("GET /e HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(raw.answer().text(), "yes");
    assert!(raw.is_closed(), "as it was asked");
    let mut half = Raw::connect(http[0]);
    half.send("PUT /half HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx");
    half.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.answer().code, 200, "who asks no more is still answered");
    assert!(half.is_closed());
    let mut old = Raw::connect(http[0]);
    old.send("GET /c HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().text(), "abcde");
    assert!(old.is_closed(), "HTTP/1.0 keeps no connection");
    local.stop().unwrap();
}

#[test]
fn a_command_with_the_same_id_is_executed_once_wherever_it_is_sent() {
    let (local, http) = start(options());
    let with = |node: usize, id: &str, cid: &str, retry: &str, body: &str| {
        let headers = format!("Id: {id}\r\nCid: {cid}\r\n{retry}");
        Raw::connect(http[node]).ask("PUT", "/once", &headers, body.as_bytes())
    };
    let first = with(0, "a", "1", "", "first");
    assert_eq!((first.code, first.header("id"), first.header("cid")), (200, Some("a"), Some("1")));
    for node in [0, 1, 2, 0] {
        for retry in ["", "Retry: 1\r\n"] {
            let again = with(node, "a", "1", retry, "first");
            let is = (again.code, again.header("version"), again.header("outcome"));
            assert_eq!(is, (200, Some("1"), Some("repeated")), "node {node}, {retry:?}");
            let other = with(node, "a", "1", retry, "another value");
            assert_eq!((other.code, other.header("outcome")), (422, Some("not-done")), "node {node}: {}", other.text());
        }
    }
    assert_eq!(get(http[1], "/once").text(), "first");
    assert_eq!(with(1, "b", "1", "", "another client").header("version"), Some("2"));
    assert_eq!(with(1, "a", "2", "", "another command").header("version"), Some("3"));
    let older = with(2, "a", "1", "Retry: 1\r\n", "again");
    assert_eq!((older.code, older.header("outcome")), (200, Some("repeated")), "its outcome is not kept");
    let claimed = with(2, "a", "1", "", "new, it says");
    assert_eq!((claimed.code, claimed.header("outcome")), (409, Some("repeated")), "{}", claimed.text());
    for (count, version) in (4..8).zip(4..) {
        let headers = ["", "Id: a\r\n", "Cid: 1\r\n", "Id: \r\nCid: 1\r\n"][count - 4];
        let each = Raw::connect(http[0]).ask("PUT", "/once", headers, b"each");
        assert_eq!(each.header("version"), Some(version.to_string().as_str()), "{headers:?} names no command");
        let retry = Raw::connect(http[0]).ask("PUT", "/once", &format!("{headers}Retry: 1\r\n"), b"each");
        assert_eq!(retry.code, 400, "nobody knows what is sent again: {}", retry.text());
    }
    for headers in ["Id: a\r\nCid: x\r\n", "Id: a\r\nCid: -1\r\n", "Cid: 1\r\nCid: 2\r\n", "Id: a\r\nId: b\r\n"] {
        assert_eq!(Raw::connect(http[0]).ask("PUT", "/once", headers, b"x").code, 400, "{headers:?}");
    }
    // So many writers later nobody knows the first any more: a retry of his is not executed.
    let writers = OPEN_SLOTS_MAX + 1;
    for writer in 0..writers {
        assert_eq!(with(0, &format!("writer {writer}"), "1", "", "new").code, 200);
    }
    let forgotten = with(0, "a", "2", "Retry: 1\r\n", "another command");
    assert_eq!((forgotten.code, forgotten.header("outcome")), (409, Some("unknown")), "{}", forgotten.text());
    let version = (7 + writers).to_string();
    assert_eq!(get(http[1], "/once").header("version"), Some(version.as_str()));
    local.stop().unwrap();
}

/// Paxi's tools count from 1 in every process, and with `-id` they all send the same Id.
#[test]
fn what_paxis_tools_write_under_a_replicas_name_is_always_written() {
    let (local, http) = start(options());
    let put = |cid: u64, key: &str, value: &str| {
        Raw::connect(http[0]).ask("PUT", key, &format!("Id: 1.1\r\nCid: {cid}\r\n"), value.as_bytes())
    };
    let (first, second) = (put(1, "/9", "first"), put(1, "/9", "second"));
    assert_eq!((first.code, second.code, second.header("outcome")), (200, 200, None));
    assert_eq!(get(http[1], "/9").text(), "second");
    // Another run of its client, on the same keys; and one whose threads race for their counter.
    for run in 0..3 {
        for (number, cid) in (0..100).zip((1..=50).cycle()) {
            assert_eq!(put(cid, "/10", &format!("{run} {number}")).code, 200);
        }
    }
    assert_eq!(get(http[1], "/10").header("version"), Some("300"));
    let json = r#"{"Key":11,"Value":"eA==","ClientID":"1.1","CommandID":1}"#;
    for version in ["1", "2"] {
        assert_eq!(ask(http[0], "POST", "/", json.as_bytes()).header("version"), Some(version));
    }
    local.stop().unwrap();
}

#[test]
fn a_cid_that_was_never_sent_is_executed_however_low_it_is() {
    let (local, http) = start(options());
    let put = |cid: u64| {
        let headers = format!("Id: me\r\nCid: {cid}\r\n");
        Raw::connect(http[0]).ask("PUT", "/late", &headers, cid.to_string().as_bytes())
    };
    // Far more than are remembered, all but one.
    for cid in (1..=300).filter(|cid| *cid != 7) {
        assert_eq!(put(cid).code, 200);
    }
    let late = put(7);
    assert_eq!((late.code, late.header("outcome"), late.header("cid")), (200, None, Some("7")), "{}", late.text());
    assert_eq!(get(http[1], "/late").text(), "7");
    let retry = Raw::connect(http[0]).ask("PUT", "/late", "Id: me\r\nCid: 7\r\nRetry: 1\r\n", b"7");
    assert_eq!((retry.code, retry.header("outcome")), (409, Some("unknown")), "{}", retry.text());
    local.stop().unwrap();
}

#[test]
fn what_is_too_long_is_refused_and_costs_nobody_else() {
    let settings = HttpSettings { body_bytes_max: 100_000, ..HttpSettings::default() };
    let (local, http) = start(LocalOptions { http_settings: settings, ..options() });
    let mut raw = Raw::connect(http[0]);
    assert_eq!(raw.ask("PUT", "/a", "", &vec![b'x'; 100_000]).code, 200);
    assert_eq!(raw.ask("GET", "/a", "", b"").body.len(), 100_000);
    let long = raw.ask("PUT", "/a", "", &vec![b'x'; 100_001]);
    assert_eq!((long.code, long.closes()), (413, true));
    assert!(long.text().contains("http.body_bytes_max"), "{}", long.text());
    assert!(raw.is_closed());
    // Nobody has to send a body to hear that it is too long.
    let mut raw = Raw::connect(http[0]);
    raw.send("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551614\r\n\r\n");
    assert!(matches!(raw.answer().code, 400 | 413 | 431), "hyper takes the largest lengths for an overlong head");
    let mut raw = Raw::connect(http[0]);
    raw.send("PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..30 {
        raw.send_as_far(format!("2710\r\n{}\r\n", "x".repeat(10_000)).as_bytes());
    }
    assert_eq!(raw.answer().code, 413, "chunks have no length beforehand");
    let mut raw = Raw::connect(http[0]);
    raw.send_as_far(b"GET /a HTTP/1.1\r\nHost: h\r\n");
    for number in 0..60 {
        raw.send_as_far(format!("X-{number}: {}\r\n", "y".repeat(1000)).as_bytes());
    }
    assert_eq!(raw.next(false).map(|answer| answer.code), Some(431));
    let many: String = (0..200).map(|number| format!("X-{number}: 1\r\n")).collect();
    let mut raw = Raw::connect(http[0]);
    raw.send_as_far(format!("GET /a HTTP/1.1\r\nHost: h\r\n{many}\r\n").as_bytes());
    assert_eq!(raw.next(false).map(|answer| answer.code), Some(431));
    let mut raw = Raw::connect(http[0]);
    raw.send_as_far(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(70_000)).as_bytes());
    assert!(raw.next(false).is_none_or(|answer| matches!(answer.code, 414 | 431)));
    assert_eq!(get(http[0], "/a").body.len(), 100_000, "nothing was written");
    still_serves(http[0]);
    local.stop().unwrap();
}

#[test]
fn a_value_has_a_longest_length_whatever_a_body_may_have() {
    let settings = HttpSettings { body_bytes_max: 4 << 20, ..HttpSettings::default() };
    let (local, http) = start(LocalOptions { http_settings: settings, ..options() });
    assert_eq!(put(http[0], "/a", &vec![b'x'; 1 << 20]).code, 200);
    let long = put(http[0], "/a", &vec![b'x'; (1 << 20) + 1]);
    assert_eq!(long.code, 413);
    assert!(long.text().contains("a value has at most 1048576 bytes"), "{}", long.text());
    assert_eq!(get(http[1], "/a").body.len(), 1 << 20);
    local.stop().unwrap();
}

#[test]
fn smuggled_requests_are_not_found() {
    let (local, http) = start(options());
    let smuggled = "PUT /smuggled HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";
    let chunked = format!("0\r\n\r\n{smuggled}");
    let length = chunked.len();
    let both = [
        format!(
            "PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}"
        ),
        format!(
            "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n{chunked}"
        ),
    ];
    for text in &both {
        let mut raw = Raw::connect(http[0]);
        raw.send_as_far(text.as_bytes());
        let answer = raw.answer();
        assert!(answer.code == 400 || answer.closes(), "{answer:?} to {text:?}");
        assert!(raw.next(false).is_none(), "nothing behind it is read: {text:?}");
    }
    let wrong = [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length : 5\r\n",
        "Content-Length: 5 5\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "X: 1\r\n Y: folded\r\n",
        "X\0: 1\r\n",
        "Host: other\r\n",
        "no colon\r\n",
    ];
    for header in wrong {
        let mut raw = Raw::connect(http[0]);
        raw.send_as_far(format!("PUT /a HTTP/1.1\r\nHost: h\r\n{header}\r\n{smuggled}").as_bytes());
        let answer = raw.answer();
        assert_eq!(answer.code, 400, "{header:?}");
        assert!(raw.next(false).is_none(), "nothing behind it is read: {header:?}");
    }
    for text in [
        "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        "PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        "PUT /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET  /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a HTTP/9.9\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\u{7c}\x03\x03 a TLS hello \r\n\r\n",
    ] {
        let mut raw = Raw::connect(http[0]);
        raw.send_as_far(text.as_bytes());
        let _ = raw.socket.shutdown(Shutdown::Write);
        let code = raw.next(false).map(|answer| answer.code);
        assert!(matches!(code, None | Some(400 | 505)), "{code:?} to {text:?}");
        assert!(raw.next(false).is_none(), "{text:?}");
    }
    assert_eq!(get(http[0], "/smuggled").code, 404);
    still_serves(http[0]);
    local.stop().unwrap();
}

#[test]
fn any_bytes_cost_their_connection_only() {
    let (local, http) = start(options());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let good =
        b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nId: a\r\nCid: 1\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for round in 0..300 {
        let mut bytes = good.to_vec();
        match round % 3 {
            0 => bytes = (0..next() % 200).map(|_| next() as u8).collect(),
            1 => {
                for _ in 0..1 + next() % 4 {
                    let place = next() as usize % bytes.len();
                    bytes[place] = next() as u8;
                }
            }
            _ => bytes.truncate(next() as usize % bytes.len()),
        }
        let mut raw = Raw::connect(http[0]);
        raw.send_as_far(&bytes);
        let _ = raw.socket.shutdown(Shutdown::Write);
        while raw.next(false).is_some() {}
    }
    still_serves(http[0]);
    local.stop().unwrap();
}

#[test]
fn the_slow_and_the_silent_are_cut_off() {
    let settings = HttpSettings { idle_timeout_us: 400_000, request_timeout_us: 300_000, ..HttpSettings::default() };
    let (local, http) = start(LocalOptions { http_settings: settings, ..options() });
    let mut silent = Raw::connect(http[0]);
    let mut used = Raw::connect(http[0]);
    assert_eq!(used.ask("PUT", "/a", "", b"x").code, 200);
    let mut head = Raw::connect(http[0]);
    head.send("GET /a HTTP/1.1\r\nHos");
    let mut body = Raw::connect(http[0]);
    body.send("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nbeginning");
    // A byte now and then is not enough: the time runs from the first one.
    let mut dripping = Raw::connect(http[0]);
    dripping.send("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n");
    let drip = dripping.socket.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while (&drip).write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(dripping.answer().code, 408);
    assert_eq!(head.answer().code, 408);
    let late = body.answer();
    assert_eq!((late.code, late.closes()), (408, true));
    for (name, raw) in [("silent", &mut silent), ("used", &mut used), ("head", &mut head), ("body", &mut body)] {
        assert!(raw.is_closed(), "{name}: {:?}", String::from_utf8_lossy(&raw.received));
    }
    drop(dripping);
    drip.join().unwrap();
    // Somebody who asks for much and reads nothing.
    assert_eq!(put(http[0], "/large", &vec![b'x'; 1 << 20]).code, 200);
    let mut deaf = Raw::connect(http[0]);
    deaf.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n".repeat(40));
    eventually("the deaf one is cut off", || {
        let status = get(http[0], "/_/status").json();
        status["http_connections"].as_u64() == Some(1)
    });
    assert_eq!(get(http[0], "/a").text(), "x", "what was begun was not written");
    still_serves(http[0]);
    local.stop().unwrap();
}

#[test]
fn connections_have_a_most_and_idle_ones_do_no_harm() {
    let settings = HttpSettings { connections_max: 300, ..HttpSettings::default() };
    let (local, http) = start(LocalOptions { http_settings: settings, shards: 2, ..options() });
    let connect = |number: usize| {
        // Asked once, it is sure to be taken, and not only in the kernel's queue.
        let mut raw = Raw::connect(http[0]);
        assert_eq!(raw.ask("PUT", &format!("/{number}"), "", b"x").code, 200);
        raw
    };
    let mut idle: Vec<Raw> = (0..300).map(connect).collect();
    eventually("one too many is told so", || {
        let mut raw = Raw::connect(http[0]);
        raw.send_as_far(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
        let answer = raw.next(false);
        answer.is_none_or(|answer| answer.code == 503 && answer.text() == "too many connections\n")
    });
    for (number, raw) in idle.iter_mut().enumerate() {
        assert_eq!(raw.ask("PUT", &format!("/{number}"), "", b"x").code, 200, "those that are there are served");
    }
    still_serves(http[1]);
    idle.truncate(10);
    eventually("there is room again", || {
        let mut raw = Raw::connect(http[0]);
        raw.send_as_far(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
        raw.next(false).is_some_and(|answer| answer.code == 200)
    });
    local.stop().unwrap();
}

#[test]
fn keys_of_all_shards_are_reached_through_any_connection() {
    let (local, http) = start(LocalOptions { shards: 3, zones: 2, nodes: 2, ..options() });
    for (node, address) in http.iter().enumerate() {
        let mut raw = Raw::connect(*address);
        for key in 0..40 {
            assert_eq!(raw.ask("PUT", &format!("/{node}-{key}"), "", b"value").code, 200);
        }
    }
    for key in 0..40 {
        assert_eq!(get(http[3], &format!("/0-{key}")).text(), "value");
    }
    let mut raw = Raw::connect(http[0]);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = raw.ask("GET", &format!("/_/owners?limit=7{after}"), "", b"").json();
        let page = page.as_array().unwrap();
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        let key = decoded(&last["key"]);
        after = format!("&after={}", key.escape_ascii());
        seen.extend(page.iter().map(|owner| decoded(&owner["key"])));
    }
    let pages = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), pages, "no key comes twice");
    assert!(seen.len() >= 40, "{} keys", seen.len());
    assert_eq!(get(http[0], "/_/owners?after=never-seen").code, 400);
    local.stop().unwrap();
}

fn decoded(value: &Value) -> Vec<u8> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn history_is_what_was_written_on_every_node() {
    let bounds = HistoryBounds { versions_per_key: 5, bytes_max: 1 << 20 };
    let (local, http) = start(LocalOptions { history: Some(bounds), shards: 2, ..options() });
    for number in 1..=3 {
        assert_eq!(put(http[0], "/h", format!("v{number}").as_bytes()).code, 200);
    }
    assert_eq!(ask(http[1], "DELETE", "/h", b"").code, 200);
    let values = |node: usize, target: &str| -> String { get(http[node], target).text() };
    for node in 0..3 {
        let all = r#"["djE=","djI=","djM=",null]"#;
        eventually("all nodes have executed all", || values(node, "/history?key=h") == all);
    }
    for number in 5..=8 {
        assert_eq!(put(http[2], "/h", format!("v{number}").as_bytes()).code, 200);
    }
    let versions = |node: usize| {
        let history = get(http[node], "/history?key=h&versions=1").json();
        let pair = |entry: &Value| (entry["version"].as_u64().unwrap(), entry["value"].clone());
        history.as_array().unwrap().iter().map(pair).collect::<Vec<_>>()
    };
    eventually("the last five stay", || {
        let mut versions = (0..3).map(versions);
        versions.all(|known| known.iter().map(|(version, _)| *version).eq(4..=8) && known[0].1.is_null())
    });
    assert_eq!(values(0, "/history?key=never"), "[]");
    local.stop().unwrap();
    let (local, http) = start(LocalOptions { history: None, ..options() });
    assert_eq!(put(http[0], "/h", b"x").code, 200);
    assert_eq!(get(http[0], "/history?key=h").text(), "null");
    local.stop().unwrap();
}

#[test]
fn status_owners_and_stealing() {
    let steal = StealPolicy::None;
    let (local, http) = start(LocalOptions { zones: 2, nodes: 1, shards: 2, steal, ..options() });
    assert_eq!(put(http[0], "/k", b"x").code, 200);
    let status = get(http[0], "/_/status").json();
    assert_eq!((status["cluster"].as_str(), status["node"].as_str()), (Some("test"), Some("1.1")));
    assert_eq!(status["facts"]["durability"], "none");
    let shards = status["shards"].as_array().unwrap();
    assert_eq!((shards.len(), &shards[1]["links"]["2.1"]), (2, &Value::Bool(true)));
    assert_eq!(shards.iter().filter_map(|shard| shard["objects"].as_u64()).sum::<u64>(), 1);
    let owner = |node: usize| get(http[node], "/_/owners?key=k").json()[0].clone();
    let first = owner(0);
    assert_eq!((first["owner"].as_str(), &first["leads"]), (Some("1.1"), &Value::Bool(true)));
    assert_eq!((first["ballot"].as_str(), first["steals"].as_u64()), (Some("1.1.1"), Some(0)));
    assert_eq!(get(http[0], "/_/owners?key=never").json(), Value::Array(Vec::new()));
    let taken = ask(http[1], "POST", "/_/steal?key=k", b"");
    assert_eq!((taken.code, taken.json()["ballot"].as_str()), (200, Some("2.2.1")), "{}", taken.text());
    assert_eq!(ask(http[1], "POST", "/_/steal?key=k", b"").json()["steals"], 1, "it leads already");
    assert_eq!(get(http[0], "/k").text(), "x");
    assert_eq!((owner(0)["owner"].as_str(), &owner(0)["leads"]), (Some("2.1"), &Value::Bool(false)));
    assert_eq!(ask(http[1], "POST", "/_/steal?key=new", b"").json()["owner"], "2.1", "nobody had it");
    local.stop().unwrap();
}

#[test]
fn a_crashed_node_serves_nobody_and_comes_back() {
    let (local, http) = start(options());
    assert_eq!(put(http[0], "/k", b"before").code, 200);
    let crashed = get(http[0], "/crash?t=0");
    assert_eq!((crashed.code, crashed.text().as_str()), (200, "crash, until /heal\n"));
    let faults = get(http[0], "/_/status").json()["faults"].clone();
    assert_eq!(faults, serde_json::json!([{ "fault": "crash", "seconds_left": null }]));
    // The others take over; nobody answers at the crashed one for lack of a quorum.
    let written = Instant::now();
    while put(http[1], "/k", b"after").code != 200 {
        assert!(written.elapsed() < PATIENCE);
    }
    let lost = put(http[0], "/k", b"lost");
    assert_eq!((lost.code, lost.header("outcome")), (504, Some("unknown")), "{}", lost.text());
    assert!(lost.text().contains("may have happened"), "{}", lost.text());
    assert_eq!(get(http[1], "/k").text(), "after");
    assert_eq!(get(http[0], "/heal").text(), "no faults\n");
    eventually("it serves again", || get(http[0], "/other").code == 404);
    let read = get(http[0], "/k");
    assert!(read.code == 200 && read.text() != "before", "{read:?}");
    local.stop().unwrap();
}

#[test]
fn cuts_by_time_and_by_way_end_and_nothing_is_lost() {
    let (local, http) = start(options());
    let id = |node: usize| NodeId::new(1, node as u8 + 1);
    let mut version = 0;
    let faults = [
        "/drop?id=1.3&t=0.2",
        "/partition?ids=1.2,1.3&t=0.3&way=in",
        "/partition?ids=1.3&t=0.2&way=out",
        "/partition?ids=1.2&t=0.2",
        "/crash?t=0.2",
        "/slow?id=1.2&ms=5&t=0.3",
        "/flaky?id=1.2&p=0.2&t=0.3",
    ];
    for (round, fault) in faults.iter().enumerate() {
        let injected = get(http[0], fault);
        assert_eq!(injected.code, 200, "{}", injected.text());
        for node in [1, 2, 0] {
            // The same command until it is executed: through the fault and after it.
            let headers = format!("Id: c{}\r\nCid: {round}\r\n", id(node));
            let started = Instant::now();
            loop {
                let body = format!("{round}-{node}");
                let answer = Raw::connect(http[node]).ask("PUT", "/k", &headers, body.as_bytes());
                if answer.code == 200 {
                    break;
                }
                assert!(started.elapsed() < PATIENCE, "{fault}: {}", answer.text());
            }
            version += 1;
        }
        eventually("the fault is over", || get(http[0], "/_/status").json()["faults"] == serde_json::json!([]));
    }
    let versions = |node: usize| get(http[node], "/history?key=k&versions=1").json();
    eventually("all links are up", || {
        let up = |node: usize| {
            let status = get(http[node], "/_/status").json();
            let links = status["shards"][0]["links"].as_object().unwrap().clone();
            links.values().all(|up| *up == Value::Bool(true))
        };
        (0..3).all(up)
    });
    let read = get(http[1], "/k");
    assert_eq!(read.header("version"), Some(version.to_string().as_str()), "each command was executed once");
    eventually("all nodes have caught up", || {
        let last = |node: usize| versions(node).as_array().and_then(|all| all.last().cloned());
        (0..3).all(|node| last(node).is_some_and(|last| last["version"] == version))
    });
    local.stop().unwrap();
}

#[test]
fn overlapping_faults_do_not_end_each_other() {
    let (local, http) = start(LocalOptions { zones: 3, nodes: 1, ..options() });
    for fault in ["/drop?id=2.1&t=0", "/drop?id=2.1&t=0.05", "/crash?t=0.05"] {
        assert_eq!(get(http[0], fault).code, 200);
    }
    let faults = || get(http[0], "/_/status").json()["faults"].clone();
    eventually("the short ones end", || faults() == serde_json::json!([{ "fault": "drop 2.1", "seconds_left": null }]));
    let link = || get(http[0], "/_/status").json()["shards"][0]["links"].clone();
    eventually("the link that is not cut is up again", || link()["3.1"] == Value::Bool(true));
    assert_eq!(get(http[0], "/heal").code, 200);
    eventually("the other one is up again", || link()["2.1"] == Value::Bool(true));
    for (target, says) in [
        ("/drop?id=1.1&t=1", "1.1 is this node"),
        ("/drop?id=7.1&t=1", "has no node 7.1"),
        ("/drop?id=x&t=1", "'x' is not a node id"),
        ("/crash", "/crash needs t"),
    ] {
        let wrong = get(http[0], target);
        assert!(wrong.code == 400 && wrong.text().contains(says), "{}", wrong.text());
    }
    local.stop().unwrap();
    let (local, http) = start(LocalOptions { faults: false, ..options() });
    for target in ["/crash?t=1", "/drop?id=1.2&t=1", "/slow?id=1.2&ms=1&t=1", "/flaky?id=1.2&p=1&t=1", "/heal"] {
        let refused = get(http[0], target);
        assert_eq!(refused.code, 403, "{target}");
        assert!(refused.text().contains("[faults] allowed = true"), "{}", refused.text());
    }
    still_serves(http[0]);
    local.stop().unwrap();
}

#[test]
fn a_node_that_stops_answers_what_it_was_asked() {
    let (mut local, http) = start(options());
    assert_eq!(put(http[0], "/k", b"x").code, 200);
    let mut idle = Raw::connect(http[0]);
    assert_eq!(idle.ask("GET", "/k", "", b"").code, 200);
    // Cut off from the others, it cannot finish this before it is told to stop.
    assert_eq!(get(http[0], "/partition?ids=1.2,1.3&t=0").code, 200);
    let mut waiting = Raw::connect(http[0]);
    waiting.send("PUT /k HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\ny");
    eventually("it waits", || get(http[0], "/_/status").json()["shards"][0]["waiting"].as_u64() == Some(1));
    local.stop_node(NodeId::new(1, 1)).unwrap();
    let answer = waiting.answer();
    assert!(matches!(answer.code, 503 | 504), "{answer:?}");
    assert!(answer.header("outcome").is_some(), "it says what became of it: {answer:?}");
    assert!(idle.is_closed());
    still_serves(http[1]);
    local.stop().unwrap();
}
