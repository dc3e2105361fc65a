//! The tuning file: every knob, its unit, its default.
//!
//! What is here may differ from node to node and from run to run without endangering anything but speed; what all
//! members must agree on is in [`crate::topology::Cluster`]. Units end the names: `_us` is microseconds, `_bytes` bytes.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// All knobs of a replica. [`Tuning::load`] reads them from a file, [`Tuning::check`] says whether they can be as they are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// What reports call this tuning.
    pub name: String,
    /// What it is for, in a sentence.
    pub purpose: String,
    /// What goes into one frame, and how long it may wait.
    pub batch: Batch,
    /// How much may be under way before somebody is told to wait.
    pub flow: Flow,
    /// When to try again, to suspect, to give up.
    pub timers: Timers,
    /// The write-ahead log.
    pub log: LogTuning,
    /// Socket options.
    pub sockets: Sockets,
    /// Cores and the memory of their rings.
    pub placement: Placement,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            purpose: "A balanced start: batches form by themselves under load, and nothing waits without it."
                .to_owned(),
            batch: Batch::default(),
            flow: Flow::default(),
            timers: Timers::default(),
            log: LogTuning::default(),
            sockets: Sockets::default(),
            placement: Placement::default(),
        }
    }
}

/// What goes into one frame, and how long it may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// How long an open batch of accepts, or a round of reads, may wait for more while an earlier one is under way, in
    /// microseconds; 0 ends it with the loop's turn. Nothing waits while none is.
    pub linger_us: u64,
    /// Entries at which a batch is sent at once.
    pub entries_max: usize,
    /// Bytes at which a batch is sent at once.
    pub bytes_max: usize,
    /// Whether only as many nodes as the nearest phase-2 quorum needs get entries at once, instead of all nodes of its
    /// zones: fewer frames, but one slow node among them is waited for until `timers.q2_fallback_us`.
    pub thrifty: bool,
    /// How long entries for nodes outside the nearest phase-2 quorum may wait, in microseconds.
    pub learner_delay_us: u64,
    /// Bytes at which they are sent at once.
    pub learner_bytes: usize,
    /// How long a commit waits for a batch to ride in before it goes alone, in microseconds.
    pub commit_delay_us: u64,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            linger_us: 1000,
            entries_max: 1024,
            bytes_max: 262_144,
            thrifty: false,
            learner_delay_us: 10_000,
            learner_bytes: 131_072,
            commit_delay_us: 1000,
        }
    }
}

/// How much may be under way before somebody is told to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flow {
    /// Requests that one shard lets wait; over it they are answered `Overloaded`.
    pub requests_max: usize,
    /// Uncommitted bytes in a shard's accept stream at which it takes no further writes.
    pub stream_inflight_bytes_max: usize,
    /// Committed bytes of a stream that are kept for nodes that lag; those further behind get object state.
    pub stream_retain_bytes: usize,
    /// Bytes of a stream that one member was sent and has not acknowledged at which it is sent no more until it has: it waits,
    /// and is left behind once the stream is kept for it no longer.
    pub stream_unacked_bytes_max: usize,
    /// Unsent bytes in the queue of one link at which its stream pauses.
    pub link_queue_bytes_max: usize,
    /// Native client connections of one node; further ones are refused with a reason.
    pub client_connections_max: usize,
    /// Bytes that the clients of one shard may hold: frames that are not whole, requests that wait, answers that are not taken,
    /// bodies and answers of HTTP. Over it requests are refused, and who holds the most is closed.
    pub client_memory_bytes_max: usize,
    /// Unanswered requests of one client connection at which it is read no further.
    pub client_requests_max: usize,
    /// Unsent bytes of answers to one client connection at which it is read no further.
    pub client_queue_bytes_max: usize,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            requests_max: 65_536,
            stream_inflight_bytes_max: 16_777_216,
            stream_retain_bytes: 67_108_864,
            stream_unacked_bytes_max: 16_777_216,
            link_queue_bytes_max: 8_388_608,
            client_connections_max: 4096,
            client_memory_bytes_max: 268_435_456,
            client_requests_max: 16_384,
            client_queue_bytes_max: 8_388_608,
        }
    }
}

/// When to try again, to suspect, to give up. All in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timers {
    /// A request that waited so long is answered `TimedOut`.
    pub request_timeout_us: u64,
    /// A link that is otherwise silent carries a heartbeat this often.
    pub heartbeat_us: u64,
    /// A peer whose link is up but silent for so long is suspected.
    pub suspect_silent_us: u64,
    /// A peer whose link has been down for so long is suspected.
    pub suspect_down_us: u64,
    /// A peer that was suspected is trusted again when its link has been well for so long.
    pub suspect_recover_us: u64,
    /// Objects of an owner that has been silent for so long are taken over in the background.
    pub takeover_delay_us: u64,
    /// A phase 1 without its quorum looks after so long, and ever more rarely, for peers that it has not asked on their present
    /// connection; orphans of a restarted owner wait as long.
    pub prepare_retry_us: u64,
    /// That wait has a random part, which grows from here,
    pub backoff_min_us: u64,
    /// and up to here.
    pub backoff_max_us: u64,
    /// A read that waits for confirmation asks again this often.
    pub confirm_retry_us: u64,
    /// Slots missing below a decided one are asked for after so long.
    pub gap_delay_us: u64,
    /// Entries of a stream that died are finished by somebody else after so long.
    pub orphan_delay_us: u64,
    /// An object that was handed over and not taken is offered again after so long.
    pub handover_retry_us: u64,
    /// When the oldest accept is uncommitted for so long, accepts go to all zones at once.
    pub q2_fallback_us: u64,
    /// How often timers are looked at while anything is under way.
    pub tick_us: u64,
    /// The first wait before a lost link is dialled again.
    pub reconnect_min_us: u64,
    /// The longest wait before a lost link is dialled again.
    pub reconnect_max_us: u64,
    /// A client's frame must be whole so long after its first byte.
    pub client_frame_timeout_us: u64,
    /// A client must take some byte of an answer within this time.
    pub client_unread_timeout_us: u64,
    /// How long a stopping replica goes on to answer what waits.
    pub stop_grace_us: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            request_timeout_us: 5_000_000,
            heartbeat_us: 100_000,
            suspect_silent_us: 1_000_000,
            suspect_down_us: 100_000,
            suspect_recover_us: 250_000,
            takeover_delay_us: 1_000_000,
            prepare_retry_us: 100_000,
            backoff_min_us: 5_000,
            backoff_max_us: 500_000,
            confirm_retry_us: 100_000,
            gap_delay_us: 50_000,
            orphan_delay_us: 1_000_000,
            handover_retry_us: 200_000,
            q2_fallback_us: 50_000,
            tick_us: 1000,
            reconnect_min_us: 20_000,
            reconnect_max_us: 1_000_000,
            client_frame_timeout_us: 30_000_000,
            client_unread_timeout_us: 30_000_000,
            stop_grace_us: 500_000,
        }
    }
}

/// What must have happened to a record before anything that depends on it leaves a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It is on stable storage: it survives a crash of the machine.
    #[default]
    Sync,
    /// The operating system has it: it survives a crash of the process, and is synced in the background.
    Async,
    /// Nothing: there is no log, and state is lost with the process.
    None,
}

impl Durability {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = [Self::Sync, Self::Async, Self::None];
        let found = known.into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| format!("'{name}' is none of sync, async, none"))
    }
}

/// The write-ahead log of each shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogTuning {
    /// Size of a segment, in bytes, a multiple of 4096. Segments are filled with zeros before they are used, and used again.
    pub segment_bytes: usize,
    /// Bytes of records at which a group is closed: what is written at once. At most a segment.
    pub group_bytes_max: usize,
    /// In mode `async`, what was written is synced at least this often, in microseconds.
    pub sync_interval_us: u64,
    /// A checkpoint is written when the log has grown by so many bytes since the last one, or by the last one's size if
    /// that is more.
    pub checkpoint_log_bytes: u64,
    /// Bytes of records that wait for the disk at which a shard takes no further writes, and reads its peers no further.
    pub pending_bytes_max: usize,
}

impl Default for LogTuning {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            group_bytes_max: 1 << 20,
            sync_interval_us: 100_000,
            checkpoint_log_bytes: 64 << 20,
            pending_bytes_max: 64 << 20,
        }
    }
}

/// Socket options.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sockets {
    /// `SO_SNDBUF` of links between nodes, in bytes; 0 leaves it to the kernel.
    pub send_buffer_bytes: usize,
    /// `SO_RCVBUF` of links between nodes, in bytes; 0 leaves it to the kernel.
    pub receive_buffer_bytes: usize,
    /// The most that is asked of a socket in one read, in bytes.
    pub read_bytes: usize,
}

impl Default for Sockets {
    fn default() -> Self {
        Self { send_buffer_bytes: 4_194_304, receive_buffer_bytes: 4_194_304, read_bytes: 131_072 }
    }
}

/// How an executor waits for something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// It sleeps until the kernel wakes it. Cores can be shared.
    #[default]
    Park,
    /// It looks at its sockets and mailboxes without sleeping, on a core of its own. On one that it has to share, and when
    /// nothing has come for [`Placement::poll_idle_us`], it sleeps as one that parks.
    Poll,
}

impl Wait {
    /// As in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::Poll => "poll",
        }
    }
}

/// Cores, how they wait, and the memory of their rings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Placement {
    /// The core of each shard executor of this process, in order; empty leaves all of them unpinned.
    pub cores: Vec<usize>,
    /// How an executor waits.
    pub wait: Wait,
    /// How long nothing must have come before an executor that polls sleeps, in microseconds.
    pub poll_idle_us: u64,
    /// Entries of each executor's submission ring, a power of two.
    pub ring_depth: usize,
    /// Memory that each executor registers with the kernel for I/O, in bytes; counts against `RLIMIT_MEMLOCK`.
    pub io_memory_bytes: usize,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            cores: Vec::new(),
            wait: Wait::default(),
            poll_idle_us: 10_000,
            ring_depth: 128,
            io_memory_bytes: 65_536,
        }
    }
}
