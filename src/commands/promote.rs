//! `millrace promote`: see [`crate::serve::cluster::promote`].

use std::io::stdout;

use clap::Args;

use crate::{
    failure::Outcome,
    serve::{ConfigArgs, cluster::promote},
};

/// Of two nodes without an etcd, makes the follower the leader
///
/// Takes the options that 'millrace serve' was started with, on the follower, which does not run. Refused while the former
/// leader answers. Shows of each partition how much of it is here and whether it was in sync, and when the leader was last
/// heard. Start the node with 'millrace serve' then; the former leader follows when it comes back.
#[derive(Args, Debug)]
pub(crate) struct PromoteCommand {
    #[command(flatten)]
    config: ConfigArgs,
    /// What was done so that the former leader takes nothing any more, such as "power off": it is written down
    #[arg(long, value_name = "TEXT")]
    fenced: String,
    /// Only show what would be held and what not
    #[arg(long)]
    dry_run: bool,
}

impl PromoteCommand {
    /// Does what was said on the command line.
    pub(crate) fn run(self) -> Outcome {
        promote(&self.config.resolve()?, &self.fenced, self.dry_run, &mut stdout().lock())
    }
}
