//! Kafka's checks and texts, and where replicas are put.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::{placement::spread, topics::Creation, *};
use crate::cluster::{
    model::{KnownNode, NodeId, NodeState},
    plane::{CreatedTopic, CreationDefaults, Mode, NewPlacement, NewTopic},
};

/// Nodes of racks; those below 100 live.
fn image(nodes: &[(NodeId, Option<&str>)]) -> Image {
    let mut image = Image::default();
    for (id, rack) in nodes {
        let rack = rack.map(str::to_owned);
        let known = KnownNode { directory: Uuid::nil(), rack: rack.clone(), since: 1 };
        Arc::make_mut(&mut image.known).insert(*id, known);
        let node = NodeState {
            id: *id,
            epoch: 10,
            incarnation: Uuid::nil(),
            directory: Uuid::nil(),
            machine: String::new(),
            rack,
            endpoints: Vec::new(),
            peer: String::new(),
            shards: 1,
            version: String::new(),
            continues: None,
            defaults: None,
        };
        if *id < 100 {
            Arc::make_mut(&mut image.nodes).insert(*id, Arc::new(node));
        }
    }
    image
}

proptest! {
    #[test]
    fn replicas_are_in_as_many_racks_as_there_are(
        racks in prop::collection::vec(0..4usize, 1..9),
        away in prop::collection::vec(0..4usize, 0..3),
        factor in 1..5usize,
        seed: u64,
    ) {
        let names = ["a", "b", "c", "d"];
        let live = racks.iter().enumerate().map(|(at, rack)| (at as NodeId, Some(names[*rack])));
        let away = away.iter().enumerate().map(|(at, rack)| (100 + at as NodeId, Some(names[*rack])));
        let nodes: Vec<_> = live.chain(away).collect();
        let image = image(&nodes);
        let rack_of: BTreeMap<_, _> = nodes.iter().copied().collect();
        let all_racks: std::collections::BTreeSet<_> = rack_of.values().collect();
        match spread(&image, 20, factor, seed) {
            Err(error) => {
                prop_assert!(factor > nodes.len());
                prop_assert_eq!(error.code, AdminCode::InvalidReplicationFactor);
            }
            Ok(partitions) => for replicas in partitions {
                prop_assert_eq!(replicas.len(), factor);
                prop_assert!(replicas[0] < 100, "the first lives");
                let distinct: std::collections::BTreeSet<_> = replicas.iter().collect();
                prop_assert_eq!(distinct.len(), factor);
                let used: std::collections::BTreeSet<_> = replicas.iter().map(|node| rack_of[node]).collect();
                prop_assert_eq!(used.len(), factor.min(all_racks.len()));
            },
        }
    }

    #[test]
    fn leaders_are_spread_evenly_over_equal_racks(racks in 1..4usize, each in 1..4usize, seed: u64) {
        let names = ["a", "b", "c"];
        let nodes: Vec<_> = (0..racks * each).map(|at| (at as NodeId, Some(names[at % racks]))).collect();
        let count = racks * each * 10;
        let partitions = spread(&image(&nodes), count, 1, seed).unwrap();
        let mut led = BTreeMap::<NodeId, usize>::new();
        partitions.iter().for_each(|replicas| *led.entry(replicas[0]).or_default() += 1);
        prop_assert_eq!(led.len(), racks * each, "{:?}", led);
        prop_assert!(led.values().all(|count| *count == 10), "{:?}", led);
    }
}

fn create(image: &Image, name: &str, placement: NewPlacement) -> Result<CreatedTopic, AdminError> {
    let topic = NewTopic { name: name.to_owned(), placement, configs: BTreeMap::new() };
    let defaults = CreationDefaults { partitions: 2, replication_factor: 3 };
    let mut ids = || Uuid::from_u128(1);
    let me = Member { node: 1, epoch: 10 };
    match Creation::new(topic, defaults, Mode::Validate).plan(&mut Setting { image, me, attempts: 0, ids: &mut ids }) {
        Plan::Answer(answer) => answer,
        Plan::Later | Plan::Write(..) => panic!("it was only to be checked"),
    }
}

#[test]
fn topics_that_cannot_be_are_refused_as_kafka_does() {
    let image = image(&[(1, None), (2, None), (3, None)]);
    let spread = |partitions, replication_factor| NewPlacement::Spread { partitions, replication_factor };
    let refused = |placement| create(&image, "a", placement).unwrap_err();
    let cases = [
        (spread(0, 1), AdminCode::InvalidPartitions, "Number of partitions was set to an invalid non-positive value."),
        (
            spread(1, 0),
            AdminCode::InvalidReplicationFactor,
            "Replication factor must be larger than 0, or -1 to use the default value.",
        ),
        (
            spread(1, 4),
            AdminCode::InvalidReplicationFactor,
            "Unable to replicate the partition 4 time(s): The target replication factor of 4 cannot be reached because only \
             3 broker(s) are registered.",
        ),
        (
            NewPlacement::Assigned(vec![(0, vec![1]), (2, vec![2])]),
            AdminCode::InvalidReplicaAssignment,
            "partitions should be a consecutive 0-based integer sequence",
        ),
        (
            NewPlacement::Assigned(vec![(0, vec![1, 1])]),
            AdminCode::InvalidReplicaAssignment,
            "The manual partition assignment includes the broker 1 more than once.",
        ),
        (
            NewPlacement::Assigned(vec![(0, vec![1, 9])]),
            AdminCode::InvalidReplicaAssignment,
            "The manual partition assignment includes broker 9, but no such broker is registered.",
        ),
        (
            NewPlacement::Assigned(vec![(0, vec![1, 2]), (1, vec![1])]),
            AdminCode::InvalidReplicaAssignment,
            "The manual partition assignment includes a partition with 1 replica(s), but this is not consistent with \
             previous partitions, which have 2 replica(s).",
        ),
    ];
    for (placement, code, text) in cases {
        assert_eq!(refused(placement), AdminError::new(code, text));
    }
    assert_eq!(create(&image, "a/b", spread(1, 1)).unwrap_err().code, AdminCode::InvalidTopic);
    let created = create(&image, "a", spread(-1, -1)).unwrap();
    assert_eq!((created.id, created.partitions, created.replication_factor), (Uuid::nil(), 2, 3));
}

#[test]
fn partitions_given_to_nodes_that_are_away_alone_are_refused() {
    let mixed = image(&[(1, None), (101, None)]);
    let error = create(&mixed, "a", NewPlacement::Assigned(vec![(0, vec![101])])).unwrap_err();
    assert_eq!(error.code, AdminCode::InvalidReplicaAssignment);
    assert!(error.text.contains("are fenced or in controlled shutdown"), "{error}");
    assert!(create(&mixed, "a", NewPlacement::Assigned(vec![(0, vec![101, 1])])).is_ok());
    let all_away = image(&[(101, None)]);
    let error = create(&all_away, "a", NewPlacement::Spread { partitions: 1, replication_factor: 1 }).unwrap_err();
    assert!(error.text.contains("All brokers are currently fenced."), "{error}");
}

#[test]
fn transactions_are_put_together_as_far_as_etcd_takes_them() {
    let one =
        |key: String| Transaction::new().when(Compare::Created("controller".to_owned(), 4)).put(key, vec![0; 100]);
    let mut all = one("a/0".to_owned());
    assert!(!absorb(&mut all, &one("a/0".to_owned())), "etcd takes no key twice");
    let mut count = 1;
    while absorb(&mut all, &one(format!("a/{count}"))) {
        count += 1;
    }
    assert_eq!((count, all.compares.len()), (PARTITIONS_PER_TRANSACTION, 1));
    assert!(all.fits());
}
