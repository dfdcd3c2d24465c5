//! Which shard a connection's records are for: one whose partitions all belong to another shard is better off there.
//! Pure.
//!
//! A client has a connection to each broker, and the kernel spreads connections over the shards knowing nothing of
//! partitions. A record that crosses shards is copied and costs a letter there and one back.

/// Requests in a row that must be for one shard alone before a connection follows them.
const REQUESTS_MIN: u32 = 32;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Affinity {
    /// Whom the last requests were for, each of them in full.
    shard: Option<usize>,
    requests: u32,
}

impl Affinity {
    /// A request produced to or fetched from partitions of these shards.
    pub(crate) fn on_request(&mut self, mut owners: impl Iterator<Item = usize>) {
        let Some(first) = owners.next() else {
            return; // it says nothing: all its partitions were refused
        };
        let only = owners.all(|owner| owner == first).then_some(first);
        let goes_on = only.is_some() && only == self.shard;
        self.requests = if goes_on { self.requests.saturating_add(1) } else { 1 };
        self.shard = only;
    }

    /// Where a connection that lives on shard `home` should go.
    pub(crate) fn elsewhere(&self, home: usize) -> Option<usize> {
        self.shard.filter(|&shard| shard != home && self.requests >= REQUESTS_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(requests: &[(u32, &[usize])]) -> Affinity {
        let mut affinity = Affinity::default();
        for &(times, owners) in requests {
            (0..times).for_each(|_| affinity.on_request(owners.iter().copied()));
        }
        affinity
    }

    #[test]
    fn a_connection_follows_requests_that_are_all_for_one_shard() {
        assert_eq!(after(&[(REQUESTS_MIN, &[3, 3])]).elsewhere(0), Some(3));
        assert_eq!(after(&[(REQUESTS_MIN - 1, &[3])]).elsewhere(0), None);
    }

    #[test]
    fn one_that_is_at_home_stays() {
        assert_eq!(after(&[(1000, &[3])]).elsewhere(3), None);
    }

    #[test]
    fn one_whose_requests_are_for_several_shards_stays() {
        assert_eq!(after(&[(1000, &[0, 1])]).elsewhere(2), None);
        assert_eq!(after(&[(REQUESTS_MIN, &[1]), (1, &[0, 1])]).elsewhere(0), None);
        assert_eq!(after(&[(REQUESTS_MIN, &[1]), (1, &[2])]).elsewhere(0), None);
    }

    #[test]
    fn counting_begins_anew_when_the_shard_changes() {
        assert_eq!(after(&[(1000, &[1]), (REQUESTS_MIN, &[2])]).elsewhere(0), Some(2));
        assert_eq!(after(&[(1000, &[1]), (REQUESTS_MIN - 1, &[2])]).elsewhere(0), None);
    }

    #[test]
    fn a_request_without_partitions_changes_nothing() {
        assert_eq!(after(&[(REQUESTS_MIN, &[1]), (1, &[])]).elsewhere(0), Some(1));
    }
}
