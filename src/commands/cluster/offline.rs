//! `millrace cluster join`, `leave` and `adopt`: a node that does not run becomes one of a cluster, goes on alone, or accepts
//! an etcd that was restored.

use std::io::stdout;

use clap::Args;

use crate::{
    failure::Outcome,
    serve::{
        ConfigArgs,
        cluster::{Adopting, Leaving, adopt, join, leave},
    },
};

/// Makes a node with data the first of a cluster
///
/// Takes the options that 'millrace serve' will be started with, on a node that does not run. Its topics become those of the
/// cluster, which must have none of its own: ids, offsets, groups and settings stay. Start it with 'serve' then, start the
/// others, and 'millrace cluster spread --replicas 3' gives partitions more replicas. 'serve' does the same by itself.
#[derive(Args, Debug)]
pub(super) struct Join {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only look whether it can be done
    #[arg(long)]
    dry_run: bool,
}

/// Takes the last node out of its cluster: it goes on alone
///
/// Takes the options that 'millrace serve' was started with, on the last node, which does not run any more. It must have all
/// partitions ('millrace cluster gather'), and the other nodes must be stopped. No record is lost, leader epochs go on, so
/// that clients go on too; the cluster is no more afterwards.
#[derive(Args, Debug)]
pub(super) struct Leave {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only look whether it can be done
    #[arg(long)]
    dry_run: bool,
    /// The cluster's etcd is lost: go on with what this node knows. Say it only if no other node has newer records
    #[arg(long)]
    etcd_is_gone: bool,
}

/// Accepts an etcd that was restored from a backup
///
/// Takes the options that 'millrace serve' was started with, on every node of the cluster; all of them are stopped. Each says
/// what it has; once all have, the newest log of each partition leads, in an epoch that nobody heard of, topics that a node has
/// are there, others are gone, and producer ids go on behind all that were given out. Until then no node becomes a member.
/// Settings are those of the backup; no reassignment goes on, and whoever has a log of a partition is a replica of it.
#[derive(Args, Debug)]
pub(super) struct Adopt {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only look, and say what this etcd has forgotten of what the node knows
    #[arg(long)]
    dry_run: bool,
    /// A node that is gone for good, and is not waited for: acknowledged records of what it led may be lost. May be given several
    /// times
    #[arg(long, value_name = "ID")]
    without: Vec<i32>,
    /// On a node that comes after the others decided without it: topics that only it has may go
    #[arg(long)]
    may_lose_records: bool,
}

impl Join {
    pub(super) fn run(self) -> Outcome {
        join(&self.config.resolve()?, self.dry_run, &mut stdout().lock())
    }
}

impl Leave {
    pub(super) fn run(self) -> Outcome {
        let how = Leaving { dry_run: self.dry_run, etcd_is_gone: self.etcd_is_gone };
        leave(&self.config.resolve()?, how, &mut stdout().lock())
    }
}

impl Adopt {
    pub(super) fn run(self) -> Outcome {
        let how = Adopting { dry_run: self.dry_run, without: self.without, may_lose_records: self.may_lose_records };
        adopt(&self.config.resolve()?, &how, &mut stdout().lock())
    }
}
