//! How the cluster is reached: by seeds or by a file, when the first command needs it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

use super::{CmdArgs, CmdError, cluster_seeds};
use crate::{
    client::{Client, Options, admin::Admin},
    master,
    protocol::ReadMode,
    topology::{Cluster, NodeId},
};

/// Which cluster is meant.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub(super) struct TargetArgs {
    /// A shard of a node of the cluster, any; may be given several times.
    #[arg(long = "seed", value_name = "HOST:PORT")]
    pub(super) seeds: Vec<String>,
    /// The cluster file, or Paxi's JSON configuration.
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The master that hands out the configuration; port 1735 if none is given. Waits for it: see --wait-s.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) master: Option<String>,
}

/// A cluster that commands are for. Nothing is sent before a command needs it.
pub(super) struct Session {
    options: Options,
    /// The nodes and where they serve HTTP, if a file says so.
    members: Option<Vec<(NodeId, Option<SocketAddr>)>>,
    client: Option<Client>,
    admin: Option<Admin>,
}

impl Session {
    /// # Errors
    /// If there is a cluster file, and it is wrong; if there is a master, and it gives no configuration in time.
    pub(super) fn new(args: &CmdArgs) -> Result<Self, CmdError> {
        let mut options = Options::to(&args.target.seeds);
        let mut members = None;
        let cluster = match (&args.target.config, &args.target.master) {
            (Some(file), _) => Some(Cluster::load(file)?),
            (None, Some(master)) => {
                let patience = Duration::from_secs(args.wait_s);
                Some(master::fetch(master, patience, &mut |text| crate::complain!("{text}"))?.0)
            }
            (None, None) => None,
        };
        if let Some(cluster) = cluster {
            members = Some(cluster.nodes.iter().map(|member| (member.id, member.http)).collect());
            options = Options { cluster: Some(cluster.name.clone()), ..Options::to(cluster_seeds(&cluster)) };
        }
        options.cluster = args.cluster.clone().or(options.cluster);
        options.zone = args.zone;
        options.request_timeout = Duration::from_millis(args.timeout_ms);
        options.connect_timeout = options.request_timeout;
        options.read = if args.log_reads { ReadMode::Log } else { ReadMode::Confirm };
        Ok(Self { options, members, client: None, admin: None })
    }

    /// Makes sure that lines can be taken, and gives the cluster's name. With a file nothing is sent yet, so that commands
    /// to single nodes work while the cluster does not.
    ///
    /// # Errors
    /// If the cluster is not named, or it is named by seeds and cannot be reached.
    pub(super) fn begin(&mut self) -> Result<String, CmdError> {
        match (&self.members, &self.options.cluster) {
            (Some(_), Some(name)) => Ok(name.clone()),
            _ => Ok(self.client()?.cluster().cluster.clone()),
        }
    }

    /// The client, connected now if it was not.
    ///
    /// # Errors
    /// If the cluster is not named or cannot be reached.
    pub(super) fn client(&mut self) -> Result<&mut Client, CmdError> {
        if self.options.seeds.is_empty() {
            return Err(CmdError::NoTarget);
        }
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(self.options.clone())?,
        };
        Ok(self.client.insert(client))
    }

    /// What asks single nodes: with the addresses of the file, or else with those that the cluster names.
    ///
    /// # Errors
    /// If the cluster is not named, cannot be reached, or no node has an HTTP address.
    pub(super) fn admin(&mut self) -> Result<Admin, CmdError> {
        if self.admin.is_none() {
            let admin = match &self.members {
                Some(members) => Admin::of_members(members.clone()),
                None => self.client()?.admin()?,
            };
            if admin.nodes().iter().all(|(_, address)| address.is_none()) {
                return Err(CmdError::NoHttp);
            }
            self.admin = Some(admin.with_timeout(self.options.request_timeout));
        }
        Ok(self.admin.clone().expect("it is made above"))
    }

    /// The nodes of the cluster, as far as they are known by now.
    pub(super) fn nodes(&self) -> Vec<NodeId> {
        match (&self.members, &self.client) {
            (Some(members), _) => members.iter().map(|(node, _)| *node).collect(),
            (None, Some(client)) => client.nodes().to_vec(),
            (None, None) => Vec::new(),
        }
    }
}
