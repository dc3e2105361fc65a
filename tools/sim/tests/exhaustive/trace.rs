//! A path in words.

use std::fmt::Write as _;

use stateright::Path;
use wpaxos::wire::{Frame, Kind};

use crate::{
    setup::Setup,
    world::{Step, World},
};

/// What happens on a path, a line per step, and what is wrong at its end.
pub fn tell(setup: &Setup, path: Path<World, Step>) -> String {
    let mut text = String::new();
    let name = |node: usize| setup.cluster.nodes[node].id;
    for (world, step) in path.into_vec() {
        let line = match step {
            Some(Step::Deliver { from, to }) => {
                format!("{} -> {} {}", name(from), name(to), describe(world.next_frame(from, to)))
            }
            Some(Step::Ask(number)) => {
                let ask = setup.asks[number];
                format!("{} is asked request {number}: {:?} of key {}", name(ask.node), ask.act, ask.key)
            }
            Some(Step::Durable(at)) => format!("{}: a turn's records are durable", name(at)),
            Some(Step::Tick(at)) => format!("{}: time passes", name(at)),
            Some(Step::Down { at, peer }) => format!("{} sees its connection to {} go", name(at), name(peer)),
            Some(Step::Up { at, peer }) => format!("{} sees a connection to {} come up", name(at), name(peer)),
            Some(Step::Crash(at)) => format!("{} stops for good", name(at)),
            None => match world.wrong {
                Some(wrong) => format!("=> {}", wrong.what),
                None => format!("=> nothing moves any more, and time does not help: {:?}", world.asked),
            },
        };
        let _ = writeln!(text, "    {line}");
    }
    text
}

/// A frame in a line. Offsets are those of `protocol/wpaxos/message.rs`.
fn describe(frame: &Frame) -> String {
    let body = frame.body();
    let rest = match frame.kind {
        Kind::AcceptBatch => {
            let (first, count) = (word(body, 12), half(body, 36));
            let entry = |at: usize| format!("slot {} at {}", word(body, at), ballot(word(body, at + 8)));
            let entry = if count > 0 { entry(52) } else { "nothing".to_owned() };
            let (from, to, withdrawn) = (word(body, 20), word(body, 28), half(body, 44));
            format!("{count} from {first} on ({entry} …), commit {from}..{to} but {withdrawn}")
        }
        Kind::Ack | Kind::Resume => {
            format!("up to {} but {}, watermark {}", word(body, 16), half(body, 12), word(body, 24))
        }
        Kind::Promise => {
            format!("{} applied {} and {} above", ballot(word(body, 0)), word(body, 8), half(body, 20))
        }
        Kind::Reject => format!("{} for {}", ballot(word(body, 0)), ballot(word(body, 8))),
        Kind::Prepare | Kind::Handover => ballot(word(body, 0)),
        _ => String::new(),
    };
    format!("{:?} {rest}", frame.kind)
}

fn ballot(number: u64) -> String {
    format!("{}@{}.{}", number >> 16, number >> 8 & 0xff, number & 0xff)
}

fn word(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().expect("8 bytes"))
}

fn half(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"))
}
