//! Settings of topics, of nodes and of all nodes; and what a node brings along that was alone.

use super::*;

#[test]
fn settings_of_topics_nodes_and_all_nodes() {
    let mut cluster = Cluster::of(2);
    cluster.create("a", assigned(&[1, 2]));
    let set = |name: &str, value: &str| ConfigChange::Set(name.to_owned(), value.to_owned());
    let alter = |cluster: &mut Cluster, change: ConfigChange| {
        let edit = ConfigEdit::Incremental(vec![change]);
        cluster.ask(2, |reply| Question::AlterTopic("a".to_owned(), edit, Mode::Apply, reply)).outcome
    };
    assert_eq!(alter(&mut cluster, set("min.insync.replicas", "2")), Ok(()));
    assert_eq!(alter(&mut cluster, set("nonsense", "2")).unwrap_err().code, AdminCode::InvalidConfig);
    cluster.run(Duration::from_millis(100));
    assert_eq!(cluster.image(1).topic("a").unwrap().rules.min_isr, 2);
    let change = |changes: Vec<ConfigChange>| -> crate::cluster::plane::DecideSettings {
        Box::new(move |_: &BTreeMap<String, String>| Ok(changes.clone()))
    };
    let all = change(vec![set("brokers/min.insync.replicas", "3"), set("log.retention.ms", "5")]);
    let answer = cluster.ask(2, |reply| Question::AlterSettings(all, Mode::Apply, reply));
    assert_eq!(answer.outcome, Ok(()));
    cluster.run(Duration::from_millis(100));
    assert_eq!(cluster.image(1).settings_of(2).len(), 2);
    assert_eq!(cluster.image(1).settings_of(1).keys().collect::<Vec<_>>(), ["brokers/min.insync.replicas"]);
    cluster.create("b", assigned(&[1]));
    assert_eq!(cluster.image(1).topic("b").unwrap().rules.min_isr, 3);
    let wrong = change(vec![set("brokers/min.insync.replicas", "none")]);
    let answer = cluster.ask(2, |reply| Question::AlterSettings(wrong, Mode::Apply, reply));
    assert_eq!(answer.outcome.unwrap_err().code, AdminCode::InvalidConfig);
}

/// A value of one node's own would count for what it acknowledges and not for who is elected, or the other way round.
#[test]
fn what_decisions_look_at_is_the_same_on_all_nodes() {
    let mut cluster = Cluster::of(2);
    cluster.create("a", assigned(&[1, 2]));
    // as an earlier release let it be set, or a tool of etcd
    let set = |name: &str, value: &str| ConfigChange::Set(name.to_owned(), value.to_owned());
    let changes = vec![
        set("log.flush.interval.messages", "9"),
        set("log.retention.ms", "5"),
        set("min.insync.replicas", "2"),
        set("unclean.leader.election.enable", "true"),
    ];
    let decide = Box::new(move |_: &BTreeMap<String, String>| Ok(changes.clone()));
    let answer = cluster.ask(1, |reply| Question::AlterSettings(decide, Mode::Apply, reply));
    assert_eq!(answer.outcome, Ok(()));
    cluster.run(Duration::from_millis(100));
    let image = cluster.image(1);
    assert_eq!(image.settings_of(1).keys().collect::<Vec<_>>(), ["log.retention.ms"]);
    assert_eq!(image.topic("a").unwrap().rules, TopicRules::default());
    let idle = ["log.flush.interval.messages", "min.insync.replicas", "unclean.leader.election.enable"];
    assert_eq!(image.idle_settings(), idle.map(|name| (1, name)));
}

/// A node that was alone has its settings as its own.
#[test]
fn what_a_node_brings_along_counts_for_all() {
    let mut cluster = Cluster::of(1);
    let settings = [("brokers/min.insync.replicas", "1"), ("min.insync.replicas", "2"), ("log.retention.ms", "7")];
    let catalog = JoiningCatalog {
        topics: Vec::new(),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        next_producer_id: 0,
    };
    assert_eq!(cluster.ask(1, |reply| Question::Join(catalog, reply)).outcome, Ok(()));
    cluster.create("a", assigned(&[1]));
    assert_eq!(cluster.image(1).topic("a").unwrap().rules.min_isr, 2);
    let kept = cluster.image(1).settings_of(1);
    let kept: Vec<_> = kept.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(kept, [("brokers/min.insync.replicas", "2"), ("log.retention.ms", "7")]);
}

#[test]
fn a_node_with_data_founds_a_cluster_with_its_topics_as_they_are() {
    let mut cluster = Cluster::new();
    let mut options = cluster.options(1);
    options.cluster = ClusterIdentity::Fixed(Uuid::from_u128(42));
    cluster.start_with(1, options);
    cluster.run(Duration::from_secs(1));
    let topic = |id: u128, name: &str, partitions| JoiningTopic {
        id: Uuid::from_u128(id),
        name: name.to_owned(),
        partitions,
        configs: BTreeMap::new(),
        leader_epoch: 1,
    };
    let catalog = JoiningCatalog {
        topics: vec![topic(5, "a", 3), topic(6, "b", 250)],
        settings: [("brokers/log.retention.ms".to_owned(), "7".to_owned())].into(),
        next_producer_id: 4_000,
    };
    for _ in 0..2 {
        let joined = cluster.ask(1, |reply| Question::Join(catalog.clone(), reply));
        assert_eq!(joined.outcome, Ok(()));
    }
    assert_eq!(cluster.image(1).cluster_id, Some(Uuid::from_u128(42)));
    let b = cluster.image(1).topic("b").unwrap();
    assert_eq!((b.id, b.partitions.len()), (Uuid::from_u128(6), 250));
    assert_eq!((leads(&b.partitions[0].value), b.partitions[0].value.leader_epoch), (Some(1), 1));
    assert_eq!(cluster.ask(1, Question::ProducerIds).first, 4_000);
    let mut stranger = cluster.options(2);
    stranger.cluster = ClusterIdentity::Fixed(Uuid::from_u128(43));
    cluster.start_with(2, stranger);
    cluster.run(Duration::from_secs(1));
    assert!(
        matches!(cluster.nodes[&2].heard.last(), Some(Event::Fatal(text)) if text.contains("belongs to the cluster"))
    );
}

/// Each node decides by the defaults that it was started with: nobody noticed that they differed.
#[test]
fn nodes_with_other_defaults_are_seen() {
    let mut cluster = Cluster::new();
    let defaults = [("flush.messages", "1"), ("min.insync.replicas", "2"), ("retention.ms", "5")];
    for id in 1..=2 {
        let of_node = defaults.iter().take(usize::try_from(id * 3).unwrap() - 3);
        let topic_defaults = of_node.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        cluster.start_with(id, Options { topic_defaults, ..cluster.options(id) });
    }
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.image(1).other_defaults(), [(2, "min.insync.replicas")]);
    assert_eq!(cluster.image(2).other_defaults(), [(1, "min.insync.replicas")]);
    let set = ConfigChange::Set("brokers/min.insync.replicas".to_owned(), "2".to_owned());
    let decide = Box::new(move |_: &BTreeMap<String, String>| Ok(vec![set.clone()]));
    assert_eq!(cluster.ask(1, |reply| Question::AlterSettings(decide, Mode::Apply, reply)).outcome, Ok(()));
    assert!(cluster.image(1).other_defaults().is_empty());
}
