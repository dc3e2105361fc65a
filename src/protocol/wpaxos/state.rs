//! Which states of a node are the same: those between which no input can ever tell. A checker that visits every state once
//! needs to know.
//!
//! Most types derive it; `Tail`, `Objects` and `Inbound` say beside their fields what they leave out. The whole node is
//! taken apart here, so that a new field does not compile before somebody has decided.

use std::hash::{Hash, Hasher};

use super::WPaxos;

macro_rules! same {
    ($($field:ident)*; whatever $($left_out:ident)*) => {
        impl PartialEq for WPaxos {
            fn eq(&self, other: &Self) -> bool {
                let Self { $($left_out: _,)* $($field,)* } = self;
                $(*$field == other.$field)&&*
            }
        }

        impl Eq for WPaxos {}

        impl Hash for WPaxos {
            fn hash<H: Hasher>(&self, state: &mut H) {
                let Self { $($left_out: _,)* $($field,)* } = self;
                $($field.hash(state);)*
            }
        }
    };
}

// States of one node are compared, so its configuration is the same on both sides. Counters are written and shown, never
// asked, and so is the history; scratch buffers are empty between two inputs, whatever they have room for.
same! {
    objects stream inbound links requests reads probes distances random stopping replaying versions restore takeover
    eager all_eager progress_at checked_at
    logged own_records records own_durable new_candidacies prepare_timers gaps orphaned_requests ready_requests
    executable is_log_full log_waits_since heard unsent_prepares converge unwritten;
    whatever config counters history scratch_keys scratch_bytes scratch_places foreseen
}
