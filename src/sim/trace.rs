//! What frames say, for people who read the trace of a run.

use std::fmt::Write as _;

use crate::wire::{self, Kind};

/// A frame in a line. Offsets are those of `protocol/wpaxos/message.rs`.
pub(super) fn describe(bytes: &bytes::Bytes) -> String {
    let frame = wire::parse(bytes.clone()).expect("whole");
    let body = frame.body();
    let mut text = format!("{:?}", frame.kind);
    match frame.kind {
        Kind::AcceptBatch => batch(body, &mut text),
        Kind::Ack | Kind::Resume => standing(body, &mut text),
        Kind::Skip | Kind::CatchUpDone => {
            let _ = write!(text, " to {}", word(body, 16));
        }
        Kind::Prepare => {
            let _ = write!(text, " {} applied {}", ballot(word(body, 0)), word(body, 8));
        }
        Kind::Promise => {
            let (ballot, state, tail) = (ballot(word(body, 0)), half(body, 16), half(body, 20));
            let _ = write!(text, " {ballot} applied {} state {state} tail {tail}", word(body, 8));
        }
        Kind::Reject => {
            let _ = write!(text, " {} for {}", ballot(word(body, 0)), ballot(word(body, 8)));
        }
        Kind::State => {
            let _ = write!(text, " applied {} promised {}", word(body, 0), ballot(word(body, 8)));
        }
        Kind::Configuration => {
            let _ = write!(text, " v{} stranger {} {:x?}", half(body, 0), body[4], words(&body[8..]));
        }
        Kind::Reconfigure => {
            let (step, version, number) = (body[0], half(body, 4), ballot(word(body, 8)));
            let _ = write!(text, " step {step} v{version} {number} {:x?}", words(&body[24..]));
        }
        Kind::Compare => compare(body, &mut text),
        _ => {}
    }
    text
}

fn compare(body: &[u8], text: &mut String) {
    let _ = write!(text, " answers {} settled {}", body[0], body[1]);
    for row in body[4..].chunks_exact(28) {
        let _ = write!(text, " [node {} boot {} v{}: {}]", row[0], half(row, 12), half(row, 16), word(row, 20));
    }
}

fn batch(body: &[u8], text: &mut String) {
    let (first, from, to) = (word(body, 16), word(body, 24), word(body, 32));
    let (entries, bytes, withdrawn) = (half(body, 40), half(body, 44), half(body, 48));
    let _ = write!(text, " commit {from}..{to}");
    let mut at = 56;
    for seq in first..first + u64::from(entries) {
        let (slot, ballot, length) = (word(body, at), ballot(word(body, at + 8)), half(body, at + 16));
        let command = &body[at + 24..];
        let key = &command[32..32 + usize::from(command[18])];
        let (client, id, op) = (word(command, 0), word(command, 8), command[16]);
        let key = String::from_utf8_lossy(key);
        let _ = write!(text, " [{seq}: {key} slot {slot} {ballot} op {op} of {client}#{id}]");
        at += 24 + length as usize;
    }
    let row = (0..withdrawn as usize).map(|place| word(body, 56 + bytes as usize + 8 * place));
    let _ = write!(text, " withdrawn {:?}", row.collect::<Vec<_>>());
}

fn standing(body: &[u8], text: &mut String) {
    let (last, watermark, behind) = (word(body, 24), word(body, 32), word(body, 40));
    let learner = if body[20] == 1 { " (learner)" } else { "" };
    let _ = write!(text, "{learner} last {last} watermark {watermark} behind {behind} refused");
    for place in 0..half(body, 16) as usize {
        let at = 48 + 16 * place;
        let _ = write!(text, " {}<{}", word(body, at), ballot(word(body, at + 8)));
    }
}

fn ballot(number: u64) -> String {
    format!("{}@{}.{}", number >> 16, number >> 8 & 0xff, number & 0xff)
}

fn words(body: &[u8]) -> Vec<u64> {
    body.chunks_exact(8).map(|chunk| word(chunk, 0)).collect()
}

fn word(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"))
}

fn half(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"))
}
