//! Settings of replication that the cluster's own parts act by, in their terms. The wire has checked them.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use millrace_replica::{channel::shard::LAG_MS_MAX, cluster::core::Rebalance};

/// Leaders of a machine that is gone are replaced after that time; a keeping alive that fails is tried again within it.
const LEASE_MS: u64 = 3_000;

fn parsed<T: FromStr>(settings: &BTreeMap<String, String>, name: &str) -> Option<T> {
    settings.get(name)?.parse().ok()
}

/// How long a follower may be behind and count as in sync, in ms.
pub(super) fn lag_ms_max(settings: &BTreeMap<String, String>) -> u64 {
    parsed(settings, "replica.lag.time.max.ms").unwrap_or(LAG_MS_MAX)
}

/// How long etcd keeps the node's key without hearing of it: a lease has whole seconds.
pub(super) fn lease(settings: &BTreeMap<String, String>) -> Duration {
    let ms: u64 = parsed(settings, "broker.session.timeout.ms").unwrap_or(LEASE_MS);
    Duration::from_secs(ms.div_ceil(1_000))
}

/// How leaders go back to where they belong.
pub(super) fn rebalance(settings: &BTreeMap<String, String>) -> Rebalance {
    let default = Rebalance::default();
    let seconds = parsed(settings, "leader.imbalance.check.interval.seconds").map(Duration::from_secs);
    let is_enabled = parsed(settings, "auto.leader.rebalance.enable").unwrap_or(true);
    Rebalance {
        every: seconds.or(default.every).filter(|_| is_enabled),
        percent_max: parsed(settings, "leader.imbalance.per.broker.percentage").unwrap_or(default.percent_max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_and_else_the_defaults() {
        assert_eq!((lag_ms_max(&BTreeMap::new()), rebalance(&BTreeMap::new())), (LAG_MS_MAX, Rebalance::default()));
        assert_eq!(lease(&BTreeMap::new()), Duration::from_secs(3));
        let settings = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let said = settings(&[
            ("broker.session.timeout.ms", "8500"),
            ("replica.lag.time.max.ms", "5000"),
            ("leader.imbalance.check.interval.seconds", "7"),
            ("leader.imbalance.per.broker.percentage", "20"),
        ]);
        assert_eq!((lag_ms_max(&said), lease(&said)), (5000, Duration::from_secs(9)));
        assert_eq!(rebalance(&said), Rebalance { every: Some(Duration::from_secs(7)), percent_max: 20 });
        assert_eq!(rebalance(&settings(&[("auto.leader.rebalance.enable", "false")])).every, None);
    }
}
