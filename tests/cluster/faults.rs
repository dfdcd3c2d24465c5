//! Networks that fail in every way (Kafka's round_trip_fault_test) while producers and a consumer go on: nothing that was
//! acknowledged is lost, all replicas come to be the same again, and the consumer was shown nothing that is not in them.

use std::time::Duration;

use millrace_client::OffsetQuestion;

use crate::{
    load::{Load, offer},
    network::{ETCD, Network},
    node::rounds,
    rig::Rig,
    watcher::{Watcher, log_of},
};

const PARTITIONS: i32 = 3;
/// Longer than a lease, and than nodes wait for one that is silent.
const A_WHILE: Duration = Duration::from_secs(6);
const NODES: [i32; 3] = [1, 2, 3];

/// Who cannot reach whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A leader reaches clients, and nobody else.
    LeaderFromNodesAndEtcd,
    /// No node reaches another one, or etcd.
    AllFromAll,
    /// A follower reaches nobody.
    Follower,
    /// A leader reaches nobody.
    Leader,
    /// A leader reaches etcd, and no other node.
    LeaderFromNodes,
    /// What a leader says is heard by no other node.
    LeaderUnheard,
    /// A leader does not hear a follower.
    FollowerUnheard,
    /// The controller reaches neither other nodes nor etcd.
    Controller,
    /// No node reaches etcd.
    Etcd,
}

const FAULTS: [Fault; 9] = [
    Fault::LeaderFromNodesAndEtcd,
    Fault::AllFromAll,
    Fault::Follower,
    Fault::Leader,
    Fault::LeaderFromNodes,
    Fault::LeaderUnheard,
    Fault::FollowerUnheard,
    Fault::Controller,
    Fault::Etcd,
];
/// Those of them that are short enough for every run.
const FEW: usize = 2;

fn place(node: i32) -> u8 {
    u8::try_from(node).unwrap()
}

impl Fault {
    fn begin(self, rig: &mut Rig, leader: i32) {
        let controller = rig.client().members().unwrap().controller.unwrap_or(leader);
        let network = rig.network();
        let others = |node: i32| NODES.into_iter().filter(move |id| *id != node);
        let isolate = |node: i32| others(node).for_each(|other| network.sever(place(node), place(other)));
        let follower = place(others(leader).next().unwrap());
        match self {
            Self::LeaderFromNodesAndEtcd => {
                isolate(leader);
                network.sever(place(leader), ETCD);
            }
            Self::AllFromAll => {
                NODES.into_iter().for_each(isolate);
                NODES.into_iter().for_each(|node| network.sever(place(node), ETCD));
            }
            Self::Follower => network.cut(follower),
            Self::Leader => network.cut(place(leader)),
            Self::LeaderFromNodes => isolate(leader),
            Self::LeaderUnheard => others(leader).for_each(|other| network.deafen(place(other), place(leader))),
            Self::FollowerUnheard => network.deafen(place(leader), follower),
            Self::Controller => {
                isolate(controller);
                network.sever(place(controller), ETCD);
            }
            Self::Etcd => NODES.into_iter().for_each(|node| network.sever(place(node), ETCD)),
        }
    }

    /// Whether all partitions go on meanwhile: no leader is kept that has no follower.
    fn goes_on(self) -> bool {
        !matches!(self, Self::AllFromAll | Self::LeaderFromNodes | Self::LeaderUnheard)
    }

    /// Whether the leader is alone, and still reached by clients.
    fn leaves_leader_alone(self) -> bool {
        matches!(self, Self::LeaderFromNodesAndEtcd | Self::AllFromAll | Self::LeaderFromNodes | Self::LeaderUnheard)
    }
}

#[test]
fn nothing_is_lost_and_nothing_differs_whoever_does_not_reach_whom() {
    let Some(network) = Network::make() else { return };
    let Some(mut rig) = Rig::start_in(network, 3) else { return };
    rig.create_topic("orders", PARTITIONS, 3, &[("min.insync.replicas", "2")]);
    let load = Load::start(&rig, "orders", PARTITIONS, 3);
    let watcher = Watcher::start(&rig, "orders", PARTITIONS);
    load.await_more(&rig, 30);
    let few = if rounds(1) > 1 { FAULTS.len() } else { FEW };
    for fault in &FAULTS[..few] {
        // who was cut off may still name the leader that it knew
        let mut leader = -1;
        rig.until("its leader takes a record", || {
            leader = rig.leader("orders", 0);
            offer(&mut rig.client_of(leader), leader, 0, -1).is_ok_and(|code| code == 0)
        });
        let mut client = rig.client_of(leader);
        fault.begin(&mut rig, leader);
        if fault.leaves_leader_alone() {
            rig.until("the leader that is alone says something", || {
                let answer = offer(&mut client, leader, 0, -1);
                answer.is_ok_and(|code| {
                    assert_ne!(code, 0, "{fault:?}: nobody else can have it\n{}", rig.logs());
                    true
                })
            });
        }
        std::thread::sleep(A_WHILE);
        if fault.goes_on() {
            load.await_more(&rig, 50);
        }
        rig.network().heal();
        rig.await_in_sync("orders", 3);
        load.await_more(&rig, 30);
        println!("{fault:?} of {leader} is over");
    }
    let produced = load.finish();
    println!("longest gap of a producer: {:?}", produced.longest_gap);
    rig.verify("orders", produced.run, &produced.acknowledged);
    let shown = watcher.finish();
    for (partition, shown) in (0..).zip(shown) {
        let end = rig.insist("its end is told", |client| client.offset("orders", partition, OffsetQuestion::Latest));
        let logs = NODES.map(|node| log_of(&rig, node, "orders", partition, end.unwrap()));
        assert!(logs[0] == logs[1] && logs[1] == logs[2], "replicas of orders-{partition} differ\n{}", rig.logs());
        let strange = shown.iter().find(|(base, batch)| logs[0].get(base) != Some(batch));
        assert_eq!(strange, None, "the consumer was shown what is not in orders-{partition}\n{}", rig.logs());
        println!("orders-{partition}: {} of {} batches were read along, up to {end:?}", shown.len(), logs[0].len());
        assert!(!shown.is_empty());
    }
}
