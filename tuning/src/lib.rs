//! Checks of the machine before a node starts, and the systemd unit.
//!
//! Each check is a plain function that looks at one thing and returns [`Finding`]s: what is the case, why it matters,
//! how to fix it. Nothing here changes the machine, except for [`limits::raise`], which raises this process's own limits
//! as far as it may, and [`claim::claim`], which keeps other nodes off addresses. This crate knows nothing of the engine; callers say what a node will need in a [`Needs`].

pub mod claim;
pub mod finding;
pub mod kernel;
pub mod limits;
pub mod network;
pub mod resources;
pub mod storage;
mod sys;

use std::path::PathBuf;

pub use finding::{Finding, Severity};

/// What a node will ask of the machine.
#[derive(Clone, Debug)]
pub struct Needs {
    /// Folder that holds everything.
    pub data_dir: PathBuf,
    /// Hosts and ports to listen on.
    pub listen: Vec<(String, u16)>,
    /// What clients are told to connect to, of each listener.
    pub advertised: Vec<(String, u16)>,
    /// Number of shards.
    pub shards: usize,
    /// Bytes of memory that each shard registers with the kernel for I/O (glommio registers them in three rings).
    pub io_memory_bytes: u64,
    /// Most connections at a time.
    pub max_connections: u64,
    /// Memory for records, in bytes.
    pub memory_bytes: u64,
    /// Size of the write-ahead logs of all shards in bytes.
    pub wal_bytes: u64,
    /// What the first files of those logs take: without them no record is taken.
    pub wal_first_bytes: u64,
    /// Free bytes of the disk below which produce is refused.
    pub reserve_bytes: u64,
}

/// Runs all checks. Findings are in the order of the checks; good news is among them.
pub fn examine(needs: &Needs) -> Vec<Finding> {
    let mut findings = kernel::check();
    findings.extend(limits::check(needs));
    findings.extend(resources::check(needs));
    findings.extend(storage::check(needs));
    findings.extend(network::check(needs));
    findings
}
