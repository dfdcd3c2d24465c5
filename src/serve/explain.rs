//! What to do about a node that could not start.

use std::io::ErrorKind;

use millrace_engine::node::{LockHolder, StartError};

use crate::output::one_line;

/// The error in words, and how to fix it.
pub(crate) fn start_error(error: &StartError) -> String {
    let fix = match error {
        StartError::Lost { .. } => {
            "put missing or damaged files of that folder back from a copy if there is one; otherwise 'millrace log \
             abandon DATA' shows what is in doubt, and goes on without it when told so twice; nothing was changed"
        }
        StartError::Locked { holder: LockHolder::Runs(_), .. } => "stop the other process, or choose another --data",
        StartError::Locked { holder: LockHolder::Unseen, .. } => {
            "stop the other container; if there is none, look whether the disk of --data still works, and start again once \
             it does"
        }
        StartError::NoDirectIo { .. } => "put --data on ext4, XFS or btrfs on a disk of this machine",
        StartError::NoUring(_) => "'millrace doctor' says what is in the way",
        StartError::Damaged { .. } => {
            "nothing was changed; 'millrace log dump PATH' shows what can be read; restore the folder from a copy, or \
             start with an empty --data"
        }
        StartError::Newer { .. } => {
            "start it with the version of millrace that wrote it, or a later one; how to go back is in engine/FORMAT.md, \
             section 11; nothing was changed"
        }
        StartError::Options(_) => "see 'millrace help serve'",
        StartError::Io { source, .. } if source.kind() == ErrorKind::StorageFull => {
            "make some room on that disk; what was there is as it was"
        }
        StartError::Io { .. } => "'millrace doctor' checks folder, disk and limits",
    };
    format!("{}\n  fix: {fix}", one_line(&error.to_string()))
}
