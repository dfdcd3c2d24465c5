//! Partitions that get other replicas: as somebody asks, and as nodes come.

use super::*;

#[test]
fn a_reassignment_completes_when_the_leader_says_that_all_are_in_sync() {
    let mut cluster = Cluster::of(3);
    let tp = first(&cluster.create("a", assigned(&[1, 2])));
    let to = |replicas: Option<Vec<NodeId>>| Reassignment {
        topic: "a".to_owned(),
        partition: 0,
        replicas,
        factor: FactorChange::Allowed,
    };
    let none = cluster.ask(3, |reply| Question::Reassign(vec![to(None)], reply));
    assert_eq!(none.outcome[0].as_ref().unwrap_err().code, AdminCode::NoReassignmentInProgress);
    let wrong = cluster.ask(3, |reply| Question::Reassign(vec![to(Some(vec![3, 9]))], reply));
    assert_eq!(wrong.outcome[0].as_ref().unwrap_err().code, AdminCode::InvalidReplicaAssignment);
    let begun = cluster.ask(3, |reply| Question::Reassign(vec![to(Some(vec![3]))], reply));
    assert_eq!(begun.outcome, [Ok(())]);
    cluster.run(Duration::from_millis(100));
    assert!(cluster.partition(1, tp).is_reassigning());
    assert!(matches!(cluster.alter_isr(tp, &[1, 2, 3]), IsrOutcome::Changed(_)));
    let state = cluster.partition(1, tp);
    assert_eq!((state.replicas.clone(), leads(&state), state.leader_epoch), (vec![3], Some(3), 1));
}

/// KIP-860: what counts is how many replicas there will be when a move that is under way is over.
#[test]
fn a_reassignment_that_must_keep_the_number_of_replicas_is_refused_if_it_does_not() {
    let mut cluster = Cluster::of(3);
    let tp = first(&cluster.create("a", assigned(&[1, 2])));
    let mut reassign = |replicas: &[NodeId]| {
        let (topic, replicas) = ("a".to_owned(), Some(replicas.to_vec()));
        let asked = Reassignment { topic, partition: 0, replicas, factor: FactorChange::Refused };
        let outcome = cluster.ask(3, |reply| Question::Reassign(vec![asked], reply)).outcome.remove(0);
        cluster.run(Duration::from_millis(100));
        outcome.map_err(|error| (error.code, error.text))
    };
    let refused = |now, then| {
        Err((AdminCode::InvalidReplicationFactor, format!("The replication factor is changed from {now} to {then}")))
    };
    assert_eq!(reassign(&[1, 2, 3]), refused(2, 3));
    assert_eq!(reassign(&[3]), refused(2, 1));
    assert_eq!(reassign(&[1, 3]), Ok(()));
    // three replicas now, two of which stay
    assert_eq!(reassign(&[1, 2, 3]), refused(2, 3));
    assert_eq!(reassign(&[2, 3]), Ok(()));
    assert_eq!(cluster.partition(3, tp).target_replicas(), [2, 3]);
}

#[test]
fn topics_of_coordinators_get_more_replicas_as_nodes_come() {
    let mut cluster = Cluster::of(1);
    cluster.create("__consumer_offsets", NewPlacement::Spread { partitions: 4, replication_factor: 1 });
    cluster.create("ordinary", NewPlacement::Spread { partitions: 4, replication_factor: 1 });
    (2..=4).for_each(|id| cluster.start(id));
    cluster.run(Duration::from_secs(32));
    let image = cluster.image(1);
    let mut all = std::collections::BTreeSet::new();
    for held in &image.topic("__consumer_offsets").unwrap().partitions {
        assert_eq!((held.value.replicas.len(), held.value.adding.len(), leads(&held.value)), (3, 2, Some(1)));
        all.extend(held.value.replicas.iter().copied());
    }
    assert_eq!(all.len(), 4, "all nodes have some");
    let ordinary = &image.topic("ordinary").unwrap().partitions;
    assert!(ordinary.iter().all(|held| held.value.replicas == [1]));
}

/// What somebody made smaller is not made larger again, and the setting says how many it should be.
#[test]
fn topics_of_coordinators_have_as_many_replicas_as_somebody_wants() {
    let mut cluster = Cluster::new();
    for id in 1..=4 {
        let wanted_replicas = [("__consumer_offsets".to_owned(), 2)].into();
        let options = Options { wanted_replicas, ..cluster.options(id) };
        cluster.start_with(id, options);
    }
    cluster.run(Duration::from_secs(1));
    let topic = cluster.create("__consumer_offsets", assigned(&[1]));
    let tp = first(&topic);
    cluster.run(MINUTE);
    let target = |cluster: &Cluster| cluster.partition(1, tp).target_replicas().len();
    assert_eq!(target(&cluster), 2);
    let reassign = |cluster: &mut Cluster, replicas: Option<&[NodeId]>| {
        let (topic, replicas) = ("__consumer_offsets".to_owned(), replicas.map(<[NodeId]>::to_vec));
        let asked = Reassignment { topic, partition: 0, replicas, factor: FactorChange::Allowed };
        assert_eq!(cluster.ask(1, |reply| Question::Reassign(vec![asked], reply)).outcome, [Ok(())]);
        cluster.run(MINUTE);
    };
    // nobody has caught up: the move is taken back
    reassign(&mut cluster, None);
    assert_eq!(target(&cluster), 1);
    reassign(&mut cluster, Some(&[1, 2, 3]));
    assert!(matches!(cluster.alter_isr(tp, &[1, 2, 3]), IsrOutcome::Changed(_)));
    reassign(&mut cluster, Some(&[2]));
    assert_eq!(target(&cluster), 1);
    // where it is moved to is no matter
    reassign(&mut cluster, Some(&[3]));
    assert!(matches!(cluster.alter_isr(tp, &[2, 3]), IsrOutcome::Changed(_)));
    cluster.run(MINUTE);
    assert_eq!(cluster.partition(1, tp).replicas, [3]);
}
