//! Limits on connections of the whole node.
//!
//! Owned by shard 0; other shards ask it when they accept a connection and tell it when one has ended.

use std::{collections::HashMap, net::IpAddr};

/// Counts connections against the limits.
#[derive(Debug, Default)]
pub(crate) struct ConnectionLimits {
    connections: usize,
    per_ip: HashMap<IpAddr, usize>,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("max.connections = {0} connections are open")]
    Node(usize),
    #[error("max.connections.per.ip = {0} connections of this address are open")]
    Ip(usize),
}

impl ConnectionLimits {
    /// Counts a connection in, unless `connections_max` are open or `per_ip_max` of its address; each that was counted
    /// in must be counted out by [`ConnectionLimits::on_closed`].
    pub(crate) fn admit(&mut self, ip: IpAddr, connections_max: usize, per_ip_max: usize) -> Result<(), Refusal> {
        if self.connections >= connections_max {
            return Err(Refusal::Node(connections_max));
        }
        let of_ip = self.per_ip.get(&ip).copied().unwrap_or_default();
        if of_ip >= per_ip_max {
            return Err(Refusal::Ip(per_ip_max));
        }
        self.per_ip.insert(ip, of_ip + 1);
        self.connections += 1;
        Ok(())
    }

    /// Counts a connection out.
    pub(crate) fn on_closed(&mut self, ip: IpAddr) {
        let of_ip = self.per_ip.get_mut(&ip).expect("only admitted connections are counted out");
        *of_ip -= 1;
        if *of_ip == 0 {
            self.per_ip.remove(&ip);
        }
        self.connections -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_a_limit_are_refused_until_one_ends() {
        let mut limits = ConnectionLimits::default();
        let [a, b] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        assert_eq!(limits.admit(a, 3, 2), Ok(()));
        assert_eq!(limits.admit(a, 3, 2), Ok(()));
        assert_eq!(limits.admit(a, 3, 2), Err(Refusal::Ip(2)));
        assert_eq!(limits.admit(b, 3, 2), Ok(()));
        assert_eq!(limits.admit(b, 3, 2), Err(Refusal::Node(3)));
        limits.on_closed(a);
        assert_eq!(limits.admit(b, 3, 2), Ok(()));
        limits.on_closed(a);
        limits.on_closed(b);
        limits.on_closed(b);
        assert!(limits.per_ip.is_empty() && limits.connections == 0);
    }
}
