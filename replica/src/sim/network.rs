//! Connections between nodes: each way keeps its order, as TCP does; ways are slow each on its own, and may stand still, or be cut
//! off with what is under way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{channel::event::LinkId, cluster::model::NodeId};

/// One end: the node, which life of its process, and what its channel calls the connection once it has taken it.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) node: NodeId,
    pub(super) process: u64,
    pub(super) link: Option<LinkId>,
}

/// What comes out at one end.
#[derive(Clone, Debug)]
pub(super) enum Arrival {
    Frame(Bytes),
    Closed,
}

#[derive(Debug)]
pub(super) struct Connection {
    /// The one that opened it, then the other.
    pub(super) ends: [End; 2],
    /// What is on the way to each.
    pub(super) ways: [VecDeque<Arrival>; 2],
    /// When the last of these arrives.
    pub(super) until_ms: [u64; 2],
}

#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) connections: BTreeMap<u64, Connection>,
    last: u64,
    /// Ways on which nothing moves: from, to.
    cuts: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    pub(super) fn open(&mut self, from: End, to: End) -> u64 {
        self.last += 1;
        let connection = Connection { ends: [from, to], ways: [VecDeque::new(), VecDeque::new()], until_ms: [0, 0] };
        self.connections.insert(self.last, connection);
        self.last
    }

    /// The connection that a process calls so, and which of its ends that is.
    pub(super) fn find(&self, node: NodeId, process: u64, link: LinkId) -> Option<(u64, usize)> {
        self.connections.iter().find_map(|(id, connection)| {
            let is_it = |end: &End| (end.node, end.process, end.link) == (node, process, Some(link));
            connection.ends.iter().position(is_it).map(|end| (*id, end))
        })
    }

    pub(super) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cuts.contains(&(from, to))
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cuts.insert((from, to));
    }

    pub(super) fn heal(&mut self, from: NodeId, to: NodeId) {
        self.cuts.remove(&(from, to));
    }

    pub(super) fn heal_all(&mut self) {
        self.cuts.clear();
    }

    /// Connections with an end at a process.
    pub(super) fn of(&self, node: NodeId, process: u64) -> Vec<(u64, usize)> {
        let has = |end: &End| (end.node, end.process) == (node, process);
        let ends = self.connections.iter().map(|(id, connection)| (*id, connection.ends.iter().position(has)));
        ends.filter_map(|(id, end)| Some((id, end?))).collect()
    }
}
