//! Checks of manual partition assignments: a partition has one replica, and it lives where the node puts it.

use kafka_protocol::{ResponseError, messages::BrokerId};

use crate::errors::ApiError;

/// Checks one partition's replicas against the brokers that are advertised.
pub(crate) fn check_replicas(replicas: &[BrokerId], brokers: &[BrokerId]) -> Result<(), ApiError> {
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
        if !brokers.contains(replica) {
            return refuse(format!(
                "The manual partition assignment includes broker {}, but no such broker is registered.",
                replica.0
            ));
        }
    }
    if replicas.len() > 1 {
        return refuse(format!(
            "The manual partition assignment includes {} replicas, but a partition has one.",
            replicas.len()
        ));
    }
    Ok(())
}

/// Checks an assignment of a whole topic: partitions count from 0. Answers their number.
pub(crate) fn check_topic<'a>(
    assignments: impl ExactSizeIterator<Item = (i32, &'a [BrokerId])>,
    brokers: &[BrokerId],
) -> Result<i32, ApiError> {
    let refuse = |reason: String| Err(ApiError::new(ResponseError::InvalidReplicaAssignment, reason));
    let mut seen = vec![false; assignments.len()];
    for (index, replicas) in assignments {
        let seen = usize::try_from(index).ok().and_then(|index| seen.get_mut(index));
        match seen {
            None => {
                return refuse("partitions should be a consecutive 0-based integer sequence".to_string());
            }
            Some(true) => {
                return refuse(format!("Found multiple manual partition assignments for partition {index}"));
            }
            Some(seen) => *seen = true,
        }
        check_replicas(replicas, brokers)?;
    }
    Ok(i32::try_from(seen.len()).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKERS: &[BrokerId] = &[BrokerId(1), BrokerId(2)];

    #[test]
    fn one_known_broker_is_a_legal_assignment() {
        assert_eq!(check_replicas(&[BrokerId(2)], BROKERS), Ok(()));
        for illegal in [&[][..], &[BrokerId(9)], &[BrokerId(1), BrokerId(1)], &[BrokerId(1), BrokerId(2)]] {
            let error = check_replicas(illegal, BROKERS).expect_err("illegal");
            assert_eq!(error.error, ResponseError::InvalidReplicaAssignment);
        }
    }

    #[test]
    fn partitions_of_an_assignment_count_from_zero() {
        let one: &[BrokerId] = &[BrokerId(1)];
        assert_eq!(check_topic([(1, one), (0, one)].into_iter(), BROKERS), Ok(2));
        for illegal in [[(0, one), (0, one)], [(0, one), (2, one)], [(-1, one), (0, one)]] {
            assert!(check_topic(illegal.into_iter(), BROKERS).is_err());
        }
    }
}
