//! Checks of manual partition assignments.

use kafka_protocol::{ResponseError, messages::BrokerId};

use crate::{broker::cluster::ClusterView, errors::ApiError};

/// What replicas there may be.
#[derive(Debug)]
pub(crate) struct Possible {
    /// Brokers that can have one: all that are registered. One that is away keeps those that it has.
    pub(crate) brokers: Vec<BrokerId>,
    /// Of one partition at most.
    pub(crate) replicas_max: usize,
}

impl Possible {
    /// In a cluster.
    pub(crate) fn of(view: &ClusterView<'_>) -> Possible {
        let mut brokers = view.broker_ids();
        let away = view.fenced_brokers();
        let replicas_max = view.replicas_max() + away.len();
        brokers.extend(away.into_iter().map(|(id, _)| id));
        Possible { brokers, replicas_max }
    }
}

/// Checks one partition's replicas.
pub(crate) fn check_replicas(replicas: &[BrokerId], possible: &Possible) -> Result<(), ApiError> {
    let refuse = |reason: String| Err(ApiError::new(ResponseError::InvalidReplicaAssignment, reason));
    if replicas.is_empty() {
        return refuse("The manual partition assignment includes an empty replica list.".to_string());
    }
    for (at, replica) in replicas.iter().enumerate() {
        if replicas[..at].contains(replica) {
            return refuse(format!(
                "The manual partition assignment includes the broker {} more than once.",
                replica.0
            ));
        }
        if !possible.brokers.contains(replica) {
            return refuse(format!(
                "The manual partition assignment includes broker {}, but no such broker is registered.",
                replica.0
            ));
        }
    }
    if replicas.len() > possible.replicas_max {
        return refuse(format!(
            "The manual partition assignment includes {} replicas, but a partition has one.",
            replicas.len()
        ));
    }
    Ok(())
}

/// Checks an assignment of a whole topic: partitions count from 0. Answers their replicas, by index.
pub(crate) fn check_topic<'a>(
    assignments: impl ExactSizeIterator<Item = (i32, &'a [BrokerId])>,
    possible: &Possible,
) -> Result<Vec<Vec<BrokerId>>, ApiError> {
    let refuse = |reason: String| Err(ApiError::new(ResponseError::InvalidReplicaAssignment, reason));
    let mut seen = vec![None; assignments.len()];
    for (index, replicas) in assignments {
        let seen = usize::try_from(index).ok().and_then(|index| seen.get_mut(index));
        match seen {
            None => {
                return refuse("partitions should be a consecutive 0-based integer sequence".to_string());
            }
            Some(Some(_)) => {
                return refuse(format!("Found multiple manual partition assignments for partition {index}"));
            }
            Some(seen) => *seen = Some(replicas.to_vec()),
        }
        check_replicas(replicas, possible)?;
    }
    Ok(seen.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn possible(replicas_max: usize) -> Possible {
        Possible { brokers: vec![BrokerId(1), BrokerId(2)], replicas_max }
    }

    #[test]
    fn one_known_broker_is_a_legal_assignment() {
        let one = possible(1);
        assert_eq!(check_replicas(&[BrokerId(2)], &one), Ok(()));
        for illegal in [&[][..], &[BrokerId(9)], &[BrokerId(1), BrokerId(1)], &[BrokerId(1), BrokerId(2)]] {
            let error = check_replicas(illegal, &one).expect_err("illegal");
            assert_eq!(error.error, ResponseError::InvalidReplicaAssignment);
        }
        assert_eq!(check_replicas(&[BrokerId(2), BrokerId(1)], &possible(2)), Ok(()));
    }

    #[test]
    fn partitions_of_an_assignment_count_from_zero() {
        let one: &[BrokerId] = &[BrokerId(1)];
        assert_eq!(check_topic([(1, one), (0, one)].into_iter(), &possible(1)), Ok(vec![one.to_vec(); 2]));
        for illegal in [[(0, one), (0, one)], [(0, one), (2, one)], [(-1, one), (0, one)]] {
            assert!(check_topic(illegal.into_iter(), &possible(1)).is_err());
        }
    }
}
