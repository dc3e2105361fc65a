//! How large the body of each kind of frame may be. Whoever writes one splits it below that, and whoever receives one refuses
//! more from the header on, so that no buffer is ever sized for it.

use super::{BODY_BYTES_MAX, Kind};
use crate::command::{COMMAND_BYTES_MAX, KEY_BYTES_MAX};

/// A frame that gathers rows is closed once its body has this many bytes: it holds one row more at the most.
pub const SPLIT_BYTES: usize = 256 << 10;
/// The most bytes of entries in an AcceptBatch before its last entry: the largest batch that a tuning may ask for.
pub const BATCH_BYTES_MAX: usize = 8 << 20;
/// How many withdrawn numbers an AcceptBatch lists at the most: a watermark that passes more is told in several.
pub const WITHDRAWN_MAX: usize = 1 << 16;
/// How many entries of a stream may be above its watermark. Every one of them may stand refused, and each Ack and Resume lists
/// all that do.
pub const ENTRIES_OPEN_MAX: usize = 1 << 21;

/// A row of fixed size with a key.
const KEYED_ROWS: usize = SPLIT_BYTES + (4 << 10) + KEY_BYTES_MAX;
const MIB: usize = 1 << 20;

impl Kind {
    /// The most bytes that a body of this kind may have.
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::PeerHello | Self::PeerWelcome | Self::Refused | Self::ClientHello => MIB,
            // The head, entries, and 8 bytes for each withdrawn number.
            Self::AcceptBatch => BATCH_BYTES_MAX + COMMAND_BYTES_MAX + 8 * WITHDRAWN_MAX + 128,
            // The head, and 16 bytes for each refusal.
            Self::Ack | Self::Resume | Self::StreamPlace => 16 * ENTRIES_OPEN_MAX + 64,
            Self::Skip | Self::CatchUpDone | Self::ListRequest | Self::MergeRequest | Self::Older => 64,
            Self::Prepare | Self::Reject | Self::Handover | Self::StateRequest | Self::Confirm => KEYED_ROWS,
            // 16 bytes for each object of a Confirm, which has a longer row for it.
            Self::ConfirmReply => KEYED_ROWS,
            // 16 bytes for each object of a Probe, whose row may have 9.
            Self::Probe => KEYED_ROWS,
            Self::ProbeReply => 2 * KEYED_ROWS,
            // Rows with a state, with a part of a tail, or with both.
            Self::Promise | Self::Merge | Self::Kept => 2 * SPLIT_BYTES + COMMAND_BYTES_MAX + STATE_ROW,
            Self::State => SPLIT_BYTES + STATE_ROW,
            Self::Forward => SPLIT_BYTES + COMMAND_BYTES_MAX + 64,
            Self::ForwardReply => SPLIT_BYTES + crate::command::VALUE_BYTES_MAX + 64,
            // 512 objects, whatever their keys.
            Self::List => 512 * (KEY_BYTES_MAX + 64),
            // A number or two for each node or zone.
            Self::Heartbeat | Self::Compare => 64 << 10,
            // Rows of one number for each node, and their proofs.
            Self::Reconfigure | Self::Membership | Self::Configuration => 16 * MIB,
            Self::ClientWelcome | Self::Request | Self::Reply | Self::StatsRequest | Self::Stats => BODY_BYTES_MAX,
        }
    }
}

/// A row with an object's key and state: its largest value, and up to 300 sessions of 96 bytes.
const STATE_ROW: usize = KEY_BYTES_MAX + crate::command::VALUE_BYTES_MAX + (32 << 10);
