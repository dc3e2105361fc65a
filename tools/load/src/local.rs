//! The tool's own cluster, in this process on loopback.

use crate::{plan::LocalPlan, target::TargetError};

/// A cluster that was started for one run.
#[derive(Debug)]
pub struct Local {
    seeds: Vec<String>,
    executors: usize,
}

impl Local {
    /// Starts it.
    ///
    /// # Errors
    /// If a setting does not fit, or a node does not come up.
    pub fn start(plan: &LocalPlan) -> Result<Self, TargetError> {
        let LocalPlan { zones, nodes, shards, .. } = plan;
        Err(TargetError(format!(
            "cannot start a local cluster of {zones} zones with {nodes} nodes of {shards} shards: this build has none; \
             start one with `wpaxos local` and name it with --seed-address HOST:PORT"
        )))
    }

    /// Addresses to reach it at.
    pub fn seeds(&self) -> &[String] {
        &self.seeds
    }

    /// How many executors it runs.
    pub fn executors(&self) -> usize {
        self.executors
    }

    /// Stops it and waits until it has stopped.
    pub fn stop(self) {}
}
