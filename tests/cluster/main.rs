//! Several nodes as one cluster: real processes, a real etcd, and everything that may happen to them.
//!
//! Needs Debian's `etcd-server`; without an `etcd` in the PATH each test says that it is skipped. `MILLRACE_BIN` names
//! another binary than this build's, `MILLRACE_ETCD` another etcd, `MILLRACE_ROUNDS` multiplies the rounds of what relies on chance. Every test ends by
//! itself, and holds what was acknowledged against what is read back: each record there, once, in order.
#![expect(clippy::unwrap_used, reason = "tests")]

mod adopting;
mod committer;
mod cuts;
mod disks;
mod drain;
mod etcd;
mod etcd_away;
mod etcd_full;
mod failover;
mod faults;
mod groups;
mod growing;
mod leaving;
mod load;
mod managed;
mod membership;
mod mirror;
mod network;
mod node;
mod pause;
mod producer;
mod reassigning;
mod replacing;
mod replication;
mod rig;
mod rolling;
mod share_members;
mod shares;
mod throttle;
mod transactions;
mod watcher;
