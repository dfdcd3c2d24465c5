//! Tests of the whole process over the wire: crashes, restarts, full disks, bad manners.
//!
//! They need nothing but a binary: `MILLRACE_BIN` names another one than this build's. Each test runs brokers of its own
//! on folders of its own. `MILLRACE_ROUNDS` multiplies the rounds of those that rely on chance.
#![expect(clippy::unwrap_used, reason = "tests")]

mod abandon;
mod advertise;
mod broker;
mod damage;
mod disk_full;
mod garbage;
mod kill;
mod lock;
mod memory;
mod port;
mod pressure;
mod shards;
mod stall;
mod state;
mod stop;
mod topics;
mod writer;
