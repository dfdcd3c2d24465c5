//! `millrace doctor`: every check of the machine, good news included.

use std::io::Write;

use clap::Args;
use millrace_engine::node::{LockHolder, lock_holder};
use millrace_tuning::{Finding, Severity, examine, limits};

use super::etcd;
use crate::{
    config::Config,
    failure::{Failure, Outcome},
    serve::ConfigArgs,
};

/// Checks whether this machine is fit to run a broker
///
/// Looks at the kernel, limits, memory, data folder, addresses and, for a cluster, its etcd with the eyes of 'millrace serve', takes the same
/// options, and says how to fix what is not as it should be. Changes nothing. Exit code 1 when a broker could not start.
#[derive(Debug, Args)]
pub(crate) struct DoctorCommand {
    #[command(flatten)]
    config: ConfigArgs,
}

impl DoctorCommand {
    pub(crate) fn run(self) -> Outcome {
        let config = self.config.resolve()?;
        limits::raise();
        let mut findings = examine(&config.needs());
        findings.extend(in_use(&config));
        findings.extend(etcd::examine(&config));
        let mut out = std::io::stdout().lock();
        for finding in &findings {
            writeln!(out, "{finding}")?;
        }
        let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
        let warnings = findings.iter().filter(|f| f.severity == Severity::Warning).count();
        writeln!(out, "errors: {errors}, warnings: {warnings}")?;
        match errors {
            0 => Ok(()),
            _ => Err(Failure::Reported),
        }
    }
}

fn in_use(config: &Config) -> Option<Finding> {
    const CHECK: &str = "data folder";
    let holder = lock_holder(&config.data_dir)?;
    let what = format!("{} is in use by {holder}", config.data_dir.display());
    Some(match holder {
        LockHolder::Runs(_) => Finding::error(
            CHECK,
            what,
            "two brokers on one folder would destroy it",
            "stop the other process, or choose another --data",
        ),
        LockHolder::Unseen => Finding::warning(
            CHECK,
            what,
            "a broker waits for its end for a minute before it starts",
            "stop the other container; if there is none, look whether the disk still works",
        ),
    })
}
