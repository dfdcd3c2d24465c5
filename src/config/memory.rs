//! How the one memory budget is divided. Pure.

use std::fmt;

use millrace_engine::node::SHARD_MEMORY_BYTES_MIN;

use super::units::ByteSize;

/// Least budget of one shard: below it the groups in flight and a few clients' requests do not fit side by side.
pub(crate) const SHARD_BYTES_MIN: u64 = ByteSize::mib(32).0;

/// Budget of one shard when nothing is said.
pub(crate) const SHARD_BYTES_DEFAULT: u64 = ByteSize::mib(64).0;

/// Budget of a node when nothing is said and its shards are few.
pub(crate) const NODE_BYTES_DEFAULT: u64 = ByteSize::mib(512).0;

/// The receive buffers get one part in that many: requests that were read and are not appended yet.
const RECEIVE_PART: u64 = 4;

/// Of what the engine gets, the read pool has one part in that many; the rest caches what was just written, commit
/// groups included. The engine divides by this rule.
const READ_PART: u64 = 4;

/// What a node takes beside its budget at most: code and libraries (22 MiB), stacks, catalog.
const NODE_BYTES_BESIDE: u64 = ByteSize::mib(32).0;

/// The same of each shard: registered buffers, the rings, the read buffer, and what the allocator holds beyond
/// what is in use: it keeps pages of 4 MiB for each size of large blocks, and a page goes back when all of it is free.
/// Counted under readers that do not read, on two shards: 65 MiB in use, 60 MiB more resident.
const SHARD_BYTES_BESIDE: u64 = ByteSize::mib(48).0;

/// And of each connection.
pub(crate) const CONNECTION_BYTES_BESIDE: ByteSize = ByteSize(8 << 10);

/// The budget and its parts, in bytes of all shards together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// All of it.
    pub(crate) total: ByteSize,
    /// Requests being received: the wire's part.
    pub(crate) receive: ByteSize,
    /// The engine's part: commit groups, tail cache, read pool.
    pub(crate) engine: ByteSize,
}

impl MemoryPlan {
    /// Divides a budget.
    pub(crate) fn divide(total: ByteSize) -> Self {
        let receive = ByteSize(total.0 / RECEIVE_PART);
        Self { total, receive, engine: ByteSize(total.0 - receive.0) }
    }

    /// What a node of so many shards takes beside the budget at most, connections apart.
    pub(crate) fn beside(shards: usize) -> ByteSize {
        ByteSize(NODE_BYTES_BESIDE + shards as u64 * SHARD_BYTES_BESIDE)
    }

    /// The largest request that the receive buffers of one of so many shards can hold.
    pub(crate) fn frame_bytes_max(&self, shards: usize) -> ByteSize {
        let receive = ByteSize(self.receive.0 / shards.max(1) as u64);
        ByteSize(millrace_net::request_bytes_max(receive.as_usize()) as u64)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = ByteSize(self.engine.0 / READ_PART);
        let tail = ByteSize(self.engine.0 - read.0);
        let (total, receive) = (self.total, self.receive);
        write!(f, "{total} = {receive} receive buffers + {tail} tail cache and commit groups + {read} read pool")
    }
}

const _: () = assert!(SHARD_BYTES_MIN <= SHARD_BYTES_DEFAULT);
const _: () = assert!(SHARD_BYTES_MIN - SHARD_BYTES_MIN / RECEIVE_PART >= SHARD_MEMORY_BYTES_MIN as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up() {
        for total in [SHARD_BYTES_MIN, 1 << 29, (1 << 30) + 17] {
            let plan = MemoryPlan::divide(ByteSize(total));
            assert_eq!(plan.receive.0 + plan.engine.0, total);
            assert!(plan.receive.0 > 0);
        }
    }
}
