//! A store that is behind what a node has seen, and watches that are behind their store.

use super::*;
use crate::cluster::keys;

#[test]
fn an_etcd_that_went_back_in_time_is_refused_with_the_way_out() {
    let mut cluster = Cluster::of(1);
    let revision = cluster.image(1).revision;
    let former = [Remembered { store: 7, revision: revision + 100 }, Remembered { store: 8, revision }];
    for remembered in former {
        let mut options = cluster.options(1);
        options.remembered = Some(remembered);
        cluster.kill(1);
        cluster.start_with(1, options);
        cluster.run(Duration::from_secs(3));
        let heard = &cluster.nodes[&1].heard;
        assert!(
            matches!(heard.last(), Some(Event::Fatal(text)) if text.contains("millrace cluster adopt")),
            "{heard:?}"
        );
    }
}

#[test]
fn nobody_is_a_member_of_a_restored_cluster_until_all_have_said_what_they_have() {
    let mut cluster = Cluster::of(1);
    cluster.kill(1);
    let mut client = Client::new(cluster.memory.clone());
    let claim = Transaction::new().put(keys::ADOPTING.to_owned(), Vec::new()).put(keys::adopting(2), Vec::new());
    client.transact(&claim).unwrap();
    cluster.start(1);
    cluster.run(Duration::from_secs(20));
    let heard = &cluster.nodes[&1].heard;
    let waits = |event: &Event| matches!(event, Event::Waiting(text) if text.contains("only nodes 2 have said"));
    assert!(heard.iter().any(waits), "{heard:?}");
    let acts_on = |event: &Event| matches!(event, Event::Registered(..) | Event::Image(..));
    assert!(!heard.iter().any(acts_on), "{heard:?}");
    let decided = Transaction::new().delete(keys::ADOPTING.to_owned()).delete(keys::adopting(2));
    client.transact(&decided).unwrap();
    cluster.run(Duration::from_secs(5));
    let heard = &cluster.nodes[&1].heard;
    assert!(
        heard.iter().any(|event| matches!(event, Event::Registered(_, image) if !image.being_adopted)),
        "{heard:?}"
    );
}

/// Its revision went on beyond what nodes have seen, or they have seen nothing: neither they nor a new one go on with it.
#[test]
fn an_etcd_that_was_restored_unseen_is_refused_by_who_was_there_and_by_who_is_new() {
    let mut cluster = Cluster::of(2);
    cluster.run(MINUTE);
    let remembered = cluster.image(1).revision;
    for id in [1, 2] {
        cluster.kill(id);
    }
    cluster.memory.lock().unwrap().restore_etcd();
    for (id, remembered) in [(1, Some(Remembered { store: 7, revision: remembered })), (3, None)] {
        let mut options = cluster.options(id);
        options.remembered = remembered;
        cluster.start_with(id, options);
        cluster.run(Duration::from_secs(5));
        let heard = &cluster.nodes[&id].heard;
        assert!(
            matches!(heard.last(), Some(Event::Fatal(text)) if text.contains("restored from a backup")),
            "{heard:?}"
        );
        assert_eq!(cluster.member(id), None);
    }
}

#[test]
fn a_node_that_others_adopted_without_is_no_member_until_it_says_so() {
    let mut cluster = Cluster::of(1);
    let continued = cluster.member(1).map(|member| Continued { epoch: member.epoch, kept: Kept::Written }).unwrap();
    cluster.kill(1);
    let write = |by: &[(NodeId, i64)]| {
        let adopted = StoredAdopted { times: 2, by: by.iter().copied().collect(), ahead: None };
        Transaction::new().put(keys::ADOPTED.to_owned(), keys::write(&adopted))
    };
    let mut client = Client::new(cluster.memory.clone());
    let mut start_as = |cluster: &mut Cluster, continues, by: &[(NodeId, i64)], adoptions_known| {
        client.transact(&write(by)).unwrap();
        cluster.kill(1);
        let mut options = cluster.options(1);
        (options.node.continues, options.adoptions_known) = (continues, adoptions_known);
        cluster.start_with(1, options);
        cluster.run(MINUTE);
        cluster.member(1).is_some()
    };
    // a directory that gave records up claims no life
    assert!(!start_as(&mut cluster, None, &[(2, 5)], Some(1)));
    assert!(start_as(&mut cluster, None, &[(1, 0), (2, 5)], Some(1)), "it took part");
    let mut start = |cluster: &mut Cluster, by: &[(NodeId, i64)], known| start_as(cluster, Some(continued), by, known);
    assert!(!start(&mut cluster, &[(2, 5)], Some(1)));
    let refuses = |event: &Event| matches!(event, Event::Fatal(text) if text.contains("on this node alone"));
    assert!(cluster.nodes[&1].heard.iter().any(refuses));
    assert!(!start(&mut cluster, &[(1, continued.epoch - 1), (2, 5)], Some(1)), "another life took part");
    assert!(start(&mut cluster, &[(1, continued.epoch), (2, 5)], Some(1)), "it took part");
    assert!(start(&mut cluster, &[(2, 5)], Some(2)), "it knows");
    assert!(start(&mut cluster, &[(2, 5)], None), "it is new");
}

/// An image does not show yet that the cluster is adopted.
#[test]
fn a_registration_that_a_claim_overtakes_is_refused() {
    let mut cluster = Cluster::of(1);
    cluster.kill(1);
    cluster.run(MINUTE);
    cluster.start(1);
    cluster.nodes.get_mut(&1).unwrap().delay = Duration::from_secs(1);
    let registers = |cluster: &Cluster| {
        let writes = |work: &Work| matches!(work, Work::Transact(_, it, _) if it.operations.iter().any(|it| it.key() == keys::node(1)));
        cluster.nodes[&1].travelling.iter().any(|(_, work)| writes(work))
    };
    while !registers(&cluster) {
        cluster.run(Duration::from_millis(10));
    }
    let mut client = Client::new(cluster.memory.clone());
    client.transact(&Transaction::new().put(keys::ADOPTING.to_owned(), Vec::new())).unwrap();
    cluster.run(Duration::from_secs(20));
    assert!(cluster.image(1).being_adopted && cluster.image(1).nodes.is_empty());
    assert_eq!(cluster.member(1), None);
}

#[test]
fn a_watch_that_was_compacted_away_reads_all_anew() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[&2].client.set_line(Line::Cut);
    cluster.run(Duration::from_millis(500));
    cluster.create("a", assigned(&[1]));
    let revision = cluster.image(1).revision;
    cluster.memory.lock().unwrap().compact(revision).unwrap();
    cluster.nodes[&2].client.set_line(Line::Open);
    cluster.run(Duration::from_secs(2));
    assert_eq!(cluster.image(2).topics, cluster.image(1).topics);
    assert!(cluster.image(2).topic("a").is_some());
}

#[test]
fn a_change_that_a_watch_lost_is_found_by_the_next_read() {
    let mut cluster = Cluster::of(2);
    // the events go by while the watch of node 2 is told to be further on
    let topic = cluster.create("a", assigned(&[1]));
    let node = cluster.nodes.get_mut(&2).unwrap();
    node.core.mirror.forget_for_test(topic.id);
    assert!(node.core.image().topic("a").is_none());
    cluster.run(Duration::from_secs(31));
    assert!(cluster.image(2).topic("a").is_some());
}
