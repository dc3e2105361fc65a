//! What can be asked for, as it is typed: on the command line, and at the prompt.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::topology::NodeId;

/// A line of the prompt.
#[derive(Parser)]
#[command(multicall = true, disable_help_flag = true)]
pub(super) struct Line {
    #[command(subcommand)]
    pub(super) verb: PromptVerb,
}

#[derive(Subcommand)]
pub(super) enum PromptVerb {
    #[command(flatten)]
    Verb(Verb),
    /// End the prompt.
    #[command(visible_alias = "quit")]
    Exit,
}

/// One command. Its words are bytes, since keys and values are.
#[derive(Subcommand, Clone, Debug)]
pub(super) enum Verb {
    /// Print the value of a key.
    Get {
        /// The key.
        key: OsString,
    },
    /// Set a key.
    #[command(visible_alias = "set")]
    Put {
        /// The key.
        key: OsString,
        /// Its new value.
        #[arg(allow_hyphen_values = true)]
        value: OsString,
    },
    /// Remove a key's value.
    Delete {
        /// The key.
        key: OsString,
    },
    /// Set a key if it is as expected.
    Cas {
        /// The key.
        key: OsString,
        #[command(flatten)]
        expect: ExpectArgs,
        /// Its new value.
        #[arg(allow_negative_numbers = true)]
        value: OsString,
    },
    /// Print the values of many keys, read at once: a line with key, tab and value for each that has one.
    Mget {
        /// The keys.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<OsString>,
    },
    /// Print the counters of shards.
    Stats {
        /// Of this node only: ZONE.NODE.
        #[arg(long)]
        node: Option<NodeId>,
        /// Of this shard only, from 0.
        #[arg(long)]
        shard: Option<u16>,
    },
    /// Print the versions of a key that a node keeps, the oldest first.
    History {
        /// The key.
        key: OsString,
        /// Of this node: ZONE.NODE; the first that answers without it.
        #[arg(long)]
        node: Option<NodeId>,
    },
    /// Compare the histories of keys on all nodes: do they agree, or where do they part?
    Consensus {
        /// The keys.
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<OsString>,
    },
    /// Print how nodes are.
    Status {
        /// These nodes only: ZONE.NODE.
        #[arg(value_name = "NODE", value_delimiter = ',')]
        nodes: Vec<NodeId>,
    },
    /// Print who owns keys: these as every node sees it, or all that one node knows.
    Owners {
        /// The keys.
        #[arg(value_name = "KEY")]
        keys: Vec<OsString>,
        /// As this node sees it: ZONE.NODE.
        #[arg(long)]
        node: Option<NodeId>,
        /// The most keys to print when none is named.
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Go on behind this key, which an earlier call printed last.
        #[arg(long, value_name = "KEY", conflicts_with = "keys")]
        after: Option<OsString>,
    },
    /// Make a node take a key from its owner.
    Steal {
        /// The key.
        key: OsString,
        /// The node that is to lead it: ZONE.NODE.
        node: NodeId,
    },
    /// Cut a node off from its peers, as if it had crashed.
    Crash {
        /// The node: ZONE.NODE.
        node: NodeId,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// Lose all that a node sends to another.
    Drop {
        #[command(flatten)]
        link: LinkArgs,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// Hold back all that a node sends to another.
    Slow {
        #[command(flatten)]
        link: LinkArgs,
        /// For how long, in milliseconds.
        #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
        ms: u64,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// Lose some of what a node sends to another.
    Flaky {
        #[command(flatten)]
        link: LinkArgs,
        /// How much of it: from 0 (nothing) to 1 (everything).
        probability: f64,
        #[command(flatten)]
        lasting: Lasting,
    },
    /// Cut nodes off from all others.
    Partition {
        #[command(flatten)]
        lasting: Lasting,
        /// The nodes on one side: ZONE.NODE each.
        #[arg(required = true, value_name = "NODE", value_delimiter = ',')]
        nodes: Vec<NodeId>,
        /// Lose only what the others send to these nodes, as Paxi does; what these send arrives.
        #[arg(long)]
        one_way: bool,
    },
    /// Print a configuration, Paxi's JSON or a cluster file, as a cluster file: complete, and checked. Needs no cluster.
    Convert {
        /// The file.
        file: PathBuf,
    },
    /// End all injected faults.
    Heal {
        /// Of these nodes only: ZONE.NODE.
        #[arg(value_name = "NODE", value_delimiter = ',')]
        nodes: Vec<NodeId>,
    },
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct ExpectArgs {
    /// If it has no value.
    #[arg(long)]
    pub(super) absent: bool,
    /// If it has this value.
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    pub(super) expect: Option<OsString>,
    /// If it is at this version.
    #[arg(long)]
    pub(super) version: Option<u64>,
}

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct LinkArgs {
    /// The node that sends: ZONE.NODE.
    #[arg(value_name = "FROM")]
    pub(super) from: NodeId,
    /// The node that receives: ZONE.NODE.
    #[arg(value_name = "TO")]
    pub(super) to: NodeId,
}

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Lasting {
    /// How long it lasts, in seconds; 0 is until `heal`.
    #[arg(value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=31_536_000))]
    pub(super) seconds: u32,
}

impl Lasting {
    /// `None` is until it is healed.
    pub(super) fn duration(self) -> Option<std::time::Duration> {
        (self.seconds > 0).then(|| std::time::Duration::from_secs(self.seconds.into()))
    }
}
