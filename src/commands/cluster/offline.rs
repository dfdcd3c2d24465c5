//! `millrace cluster join` and `leave`: a node that does not run becomes one of a cluster, or goes on alone.

use std::io::stdout;

use clap::Args;

use crate::{
    failure::Outcome,
    serve::{
        ConfigArgs,
        cluster::{Leaving, join, leave},
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
