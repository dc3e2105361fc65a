//! Before a shard serves anybody: its protocol takes what its log holds.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use glommio::timer::Timer;

use super::Node;
use crate::{
    failure::Failure,
    protocol::{Protocol, RecordId},
    topology::ShardId,
    wal::{Device, EndKeeper, Host, LogSpec, Piece, Recovery, Wal},
};

/// After so much work others of the executor have a turn, and the reactor.
const BREATH: Duration = Duration::from_millis(1);
/// A recovery says this often how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// How a recovery ended.
pub(super) enum Recovered {
    /// The log goes on, and its end is noted.
    Log(Wal, Rc<EndKeeper>),
    /// Nothing is kept.
    Nothing,
    /// The node was told to stop meanwhile.
    Stopped,
}

/// Hands everything that the log of a shard holds to its protocol, and opens the log for writing.
///
/// # Errors
/// If something is missing, damaged, or cannot be read or written.
pub(super) async fn recover<P: Protocol>(
    node: &Arc<Node>,
    shard: ShardId,
    protocol: &mut P,
) -> Result<Recovered, Failure> {
    let Some(spec) = node.logs.get(usize::from(shard.0)) else { return Ok(Recovered::Nothing) };
    let device = Rc::new(Host::start()?);
    let mut recovery = Recovery::begin(spec, device.files())?;
    let mut told = Told::new(node, shard);
    let mut breath = Instant::now();
    while let Some(piece) = recovery.next()? {
        told.take(&piece);
        restore(node, spec, protocol, piece)?;
        if breath.elapsed() >= BREATH {
            told.now_and_then(&recovery);
            // Not just a yield: the reactor looks after timers and connections of others only when nothing is to be run.
            Timer::new(Duration::from_micros(1)).await;
            breath = Instant::now();
        }
        if node.is_stopping() {
            return Ok(Recovered::Stopped);
        }
    }
    if node.boot > 1 {
        protocol.end_replay(node.now());
    }
    told.at_the_end(&recovery);
    let fails = Arc::clone(node);
    let recovered = recovery.finish()?;
    let keeper = EndKeeper::start(spec, recovered.end())?;
    let wal = Wal::start(spec.clone(), device, recovered, move |failure| fails.fail(failure)).await?;
    Ok(Recovered::Log(wal, Rc::new(keeper)))
}

fn restore<P: Protocol>(node: &Node, spec: &LogSpec, protocol: &mut P, piece: Piece) -> Result<(), Failure> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        Failure::Damaged(format!(
            "{}: {what} is as it was written, but this build does not take it: {error}; run the build that wrote it",
            spec.directory.display()
        ))
    };
    // The checksum of a checkpoint stands at its end, and is not reached before its frames are taken.
    let unread = |error: &dyn std::fmt::Display| {
        Failure::Damaged(format!(
            "{}: a frame of the newest checkpoint is not taken: {error}. The checkpoint is damaged, or another build wrote it. \
             Nothing was changed. Run that build, bring the file back from a copy, or give this node an empty data directory: \
             it then comes back as one that has lost its disk (see docs/operations.md)",
            spec.directory.display()
        ))
    };
    match piece {
        Piece::Restore(frame) => protocol.on_restore(node.now(), &frame).map_err(|error| unread(&error)),
        Piece::Restored(RecordId(record)) => {
            protocol.end_restore(node.now(), RecordId(record));
            Ok(())
        }
        Piece::Records(records) => records.iter().try_for_each(|record| {
            let replayed = protocol.on_replay(node.now(), record);
            replayed.map_err(|error| refused(&format!("record {}", record.id.0), &error))
        }),
    }
}

/// What is said of a recovery.
struct Told<'a> {
    node: &'a Node,
    shard: ShardId,
    began: Instant,
    last: Instant,
    frames: u64,
    records: u64,
}

impl<'a> Told<'a> {
    fn new(node: &'a Node, shard: ShardId) -> Self {
        let now = Instant::now();
        Self { node, shard, began: now, last: now, frames: 0, records: 0 }
    }

    fn take(&mut self, piece: &Piece) {
        match piece {
            Piece::Restore(_) => self.frames += 1,
            Piece::Restored(_) => {}
            Piece::Records(records) => self.records += records.len() as u64,
        }
    }

    fn now_and_then(&mut self, recovery: &Recovery) {
        if self.last.elapsed() >= PROGRESS {
            self.last = Instant::now();
            self.say(recovery, "recovering");
        }
    }

    fn at_the_end(&self, recovery: &Recovery) {
        if self.frames + self.records > 0 {
            self.say(recovery, "recovered");
        }
    }

    fn say(&self, recovery: &Recovery, what: &str) {
        let percent = recovery.bytes_read * 100 / recovery.bytes_total.max(1);
        tracing::info!(
            node = %self.node.member().id,
            shard = self.shard.0,
            bytes = recovery.bytes_read,
            of_bytes = recovery.bytes_total,
            checkpoint_frames = self.frames,
            records = self.records,
            seconds = self.began.elapsed().as_secs_f32(),
            "{what}: {percent}%"
        );
    }
}
