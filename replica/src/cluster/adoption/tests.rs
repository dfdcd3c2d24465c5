//! A restored store, the claims of its nodes, and what is decided by them.

mod cuts;

use std::sync::Mutex;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::cluster::{
    control::read_contents,
    keys::Entry,
    memory::{Client, Memory},
    model::Adopted,
    restored::Progress,
    store::{Outcome, Store},
};

const ORDERS: Uuid = Uuid::from_u128(1);

fn member(node: NodeId, epoch: i64) -> Member {
    Member { node, epoch }
}

/// A partition in epoch 4 on nodes 1, 2, 3, as a node knows it, with its log.
fn known(leader_epoch: i32, log: Option<(i32, i64)>) -> ClaimedPartition {
    let log = log.map(|(last_epoch, end)| Extent { last_epoch, end });
    ClaimedPartition { leader_epoch, replicas: vec![1, 2, 3], log }
}

fn topic(name: &str, partitions: &[ClaimedPartition]) -> ClaimedTopic {
    ClaimedTopic { name: name.to_owned(), configs: BTreeMap::new(), partitions: partitions.to_vec() }
}

fn heard(revision: i64) -> Heard {
    Heard { before: true, adoptions: 0, revision }
}

fn claim(node: NodeId, topics: impl IntoIterator<Item = (TopicId, ClaimedTopic)>) -> Claim {
    let topics = topics.into_iter().collect();
    Claim { member: member(node, 90 + i64::from(node)), claimed: Claimed { times: 1, heard: heard(500) }, topics }
}

/// A store with nodes 1, 2, 3 and a topic `orders`, all in sync in epoch 4.
fn store() -> Client {
    let mut client = Client::new(Arc::new(Mutex::new(Memory::new(7))));
    let members = [1, 2, 3].map(|node| member(node, 10));
    let state = PartitionState { leader_epoch: 4, kept_few: true, ..PartitionState::new(&members) };
    let stored = StoredTopic { name: "orders".to_owned(), partitions: 1, configs: BTreeMap::new(), forming: false };
    let mut all = Transaction::new()
        .put(keys::topic(ORDERS), keys::encode_topic(&stored))
        .put(keys::name("orders"), keys::encode_uuid(ORDERS))
        .put(keys::partition(ORDERS, 0), keys::encode_partition(&state));
    for node in 1..=3 {
        let known = KnownNode { directory: Uuid::nil(), rack: None, since: 0 };
        all = all.put(keys::known(node), keys::encode_known(&known));
    }
    client.transact(&all).unwrap();
    client
}

fn write(client: &mut Client, transactions: &[Transaction]) {
    for transaction in transactions {
        assert!(transaction.fits());
        assert!(matches!(client.transact(transaction), Ok(Outcome::Done(_))), "{transaction:?}");
    }
}

fn adoption(client: &mut Client) -> Adoption {
    Adoption::read(&read_contents(client).unwrap()).unwrap()
}

fn write_claim(client: &mut Client, claim: &Claim) {
    let transactions = claim.transactions(&adoption(client));
    write(client, &transactions);
}

/// All of these claim, and what comes of it.
fn adopt(client: &mut Client, claims: &[Claim], without: &[NodeId]) -> (Decision, Image) {
    claims.iter().for_each(|claim| write_claim(client, claim));
    let adoption = adoption(client);
    claims.iter().for_each(|claim| assert_eq!(adoption.claim(claim.member.node), Some(claim)));
    assert_eq!(adoption.awaited(without), BTreeSet::new());
    let decision = adoption.decide(without);
    write(client, &decision.transactions);
    let image = Image::read(Arc::default(), 1, &read_contents(client).unwrap().0.entries).unwrap();
    assert!(image.adopting.is_empty() && !image.being_adopted);
    (decision, image)
}

fn partition(image: &Image, name: &str) -> PartitionState {
    image.topic(name).unwrap().partitions[0].value.clone()
}

#[test]
fn the_newest_log_is_in_sync_in_an_epoch_that_nobody_heard_of() {
    let claims = [
        claim(1, [(ORDERS, topic("orders", &[known(4, Some((3, 900)))]))]),
        claim(2, [(ORDERS, topic("orders", &[known(7, Some((6, 50)))]))]),
        claim(3, [(ORDERS, topic("orders", &[known(6, Some((6, 49)))]))]),
    ];
    let (decision, image) = adopt(&mut store(), &claims, &[]);
    let state = partition(&image, "orders");
    assert_eq!((state.leader, &*state.isr), (None, &[member(2, 92)][..]), "longer logs of older epochs were cut off");
    assert_eq!((state.leader_epoch, &*state.replicas), (7 + EPOCHS_SKIPPED, &[1, 2, 3][..]));
    assert!(state.kept_few, "what people asked for stays");
    assert!(decision.doubtful.is_empty() && decision.without_log.is_empty());
}

#[test]
fn nothing_is_decided_before_all_have_said_what_they_have() {
    let mut client = store();
    let mine = claim(1, [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))]);
    write_claim(&mut client, &mine);
    assert_eq!(adoption(&mut client).awaited(&[]), [2, 3].into());
    assert_eq!(adoption(&mut client).awaited(&[3]), [2].into());
    // one that came after the backup is known to others only
    let newer = ClaimedPartition { replicas: vec![4, 2], ..known(5, None) };
    write_claim(&mut client, &claim(2, [(ORDERS, topic("orders", &[newer]))]));
    assert_eq!(adoption(&mut client).awaited(&[3]), [4].into());
}

#[test]
fn what_a_missing_node_alone_may_have_had_is_said() {
    let claims = [1, 2].map(|node| claim(node, [(ORDERS, topic("orders", &[known(5, Some((5, 20)))]))]));
    let (decision, image) = adopt(&mut store(), &claims, &[3]);
    assert_eq!(decision.doubtful, ["orders-0"]);
    assert_eq!(partition(&image, "orders").isr, [member(1, 91), member(2, 92)]);
}

#[test]
fn topics_that_came_or_went_since_the_backup_are_as_the_nodes_know_them() {
    let mut client = store();
    let (late, again) = (Uuid::from_u128(2), Uuid::from_u128(3));
    let claims = [1, 2, 3].map(|node| {
        let late = (late, topic("late", &[known(0, Some((0, 5))), known(0, None)]));
        claim(node, [late, (again, topic("orders", &[known(0, Some((0, 1)))]))])
    });
    let (decision, image) = adopt(&mut client, &claims, &[]);
    assert_eq!(decision.taken_out, ["orders"]);
    let mut back = decision.brought_back;
    back.sort();
    assert_eq!(back, ["late", "orders"]);
    assert_eq!((image.names.get("late"), image.names.get("orders")), (Some(&late), Some(&again)));
    assert_eq!(image.topics.get(&late).unwrap().partitions.len(), 2);
    assert_eq!(decision.without_log, ["late-1"]);
    assert!(image.producer_ids.value >= PRODUCER_IDS_SKIPPED);
}

#[test]
fn partitions_that_were_added_since_the_backup_are_there() {
    let more = [known(4, Some((4, 9))), known(0, Some((0, 2)))];
    let claims = [1, 2, 3].map(|node| claim(node, [(ORDERS, topic("orders", &more))]));
    let (decision, image) = adopt(&mut store(), &claims, &[]);
    let topic = image.topic("orders").unwrap();
    assert_eq!((topic.expected, topic.partitions.len()), (2, 2));
    assert!(decision.brought_back.is_empty());
}

#[test]
fn nothing_is_decided_once_a_node_lives_or_took_its_claim_back() {
    let mut client = store();
    let claims = [1, 2, 3].map(|node| claim(node, [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))]));
    claims.iter().for_each(|claim| write_claim(&mut client, claim));
    let decision = adoption(&mut client).decide(&[]);
    write_claim(&mut client, &claims[0]);
    let refused = |client: &mut Client, decision: &Decision| {
        let outcomes = decision.transactions.iter().map(|transaction| client.transact(transaction));
        outcomes.into_iter().all(|outcome| matches!(outcome, Ok(Outcome::Refused(_))))
    };
    assert!(refused(&mut client, &decision));
    let decision = adoption(&mut client).decide(&[]);
    write(&mut client, &[Transaction::new().put(keys::CONTROLLER.to_owned(), keys::encode_integer(9))]);
    assert!(refused(&mut client, &decision));
}

#[test]
fn many_partitions_are_claimed_and_decided_in_pieces() {
    let many = vec![known(4, Some((4, 9))); 2 * PARTITIONS_OF_KEY + 1];
    let claims = [1, 2, 3].map(|node| claim(node, [(ORDERS, topic("orders", &many))]));
    let (_, image) = adopt(&mut store(), &claims, &[]);
    assert_eq!(image.topic("orders").unwrap().partitions.len(), many.len());
}

#[test]
fn a_claim_is_no_entry_that_says_more_than_whose_it_is() {
    let entry = keys::decode(&crate::cluster::store::KeyValue {
        key: keys::adopting(3),
        value: Vec::new(),
        created: 1,
        modified: 1,
        version: 1,
        lease: 0,
    });
    assert_eq!(entry, Ok(Some(Entry::Adopting(3))));
}

/// A node that joined after an adoption was taken for one that others had done without, in the next: its records were given up.
#[test]
fn only_who_missed_an_adoption_is_late_for_it() {
    let mut client = store();
    let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
    let (_, image) = adopt(&mut client, &[claim(1, orders()), claim(2, orders())], &[3]);
    assert_eq!(image.adopted.times, 1);
    let mut read = adoption(&mut client);
    let seen =
        |epoch, adopted, store| Kept { remembered: Some(Remembered { store, revision: 1 }), ..kept(epoch, adopted) };
    assert_eq!(read.standing(3, &kept(10, 0)), Standing::Late, "the others decided without it");
    let claimed = Claimed { times: 1, heard: heard(1) };
    let cut_short = Kept { claimed: Some(claimed), ..seen(91, 0, 6) };
    assert_eq!(read.standing(1, &cut_short), Standing::Decided, "it took part, and did not come to accept it");
    let accepted = Kept { has_accepted: true, ..cut_short.clone() };
    assert_eq!(read.standing(1, &accepted), Standing::Claims, "it accepted that, and this is another");
    assert_eq!(read.standing(1, &seen(91, 0, 7)), Standing::Started);
    assert_eq!(
        read.standing(4, &seen(200, image.adopted.times, 7)),
        Standing::Started,
        "it joined later, and knows of it"
    );
    assert_eq!(read.standing(2, &kept(10, 0)), Standing::Late, "its directory is of before");
    // restored once more
    read.image.adopted = Arc::new(Adopted { mark: Mark::default(), ..(*read.image.adopted).clone() });
    assert_eq!(
        read.standing(3, &seen(10, 0, 6)),
        Standing::Claims,
        "nobody runs, and nothing tells that this was decided here"
    );
    let mut again = adoption(&mut client);
    again.ahead = Some(Ahead::new(Progress { revision: again.image.revision, index: 3 }, again.image.revision));
    for (node, kept) in [(3, kept(10, 0)), (1, cut_short)] {
        assert_eq!(again.standing(node, &kept), Standing::Claims, "it is not adopted yet");
    }
    // the next one, by a backup of after the first, and then by one of before it
    let (mut next, mut before) = (store(), store());
    write(&mut next, &[Transaction::new().put(keys::ADOPTED.to_owned(), stored_adopted(1))]);
    for client in [&mut next, &mut before] {
        let claims =
            [1, 2, 3].map(|node| Claim { claimed: Claimed { times: 2, heard: heard(500) }, ..claim(node, orders()) });
        let (_, image) = adopt(client, &claims, &[]);
        assert_eq!(image.adopted.times, 2);
        assert_eq!(adoption(client).standing(4, &kept(200, 1)), Standing::Late);
    }
}

fn kept(epoch: i64, adopted: u64) -> Kept {
    Kept { directory: Uuid::nil(), epoch, adopted, claimed: None, remembered: None, has_accepted: false }
}

fn stored_adopted(times: u64) -> Vec<u8> {
    keys::write(&StoredAdopted { times, by: BTreeMap::new(), ahead: None })
}

/// The claim of node 1 took those of nodes 10 to 19 away.
#[test]
fn a_claim_leaves_those_of_other_nodes_alone() {
    let mut client = store();
    let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
    let claims = [10, 1, 11].map(|node| claim(node, orders()));
    for claim in claims.iter().chain(&claims[1..2]) {
        write_claim(&mut client, claim);
    }
    let read = adoption(&mut client);
    claims.iter().for_each(|claim| assert_eq!(read.claim(claim.member.node), Some(claim)));
}

#[test]
fn a_claim_that_lacks_a_part_or_has_one_of_another_does_not_count() {
    let orders =
        [(ORDERS, topic("orders", &[known(4, Some((4, 9)))])), (Uuid::from_u128(2), topic("late", &[known(0, None)]))];
    let mine = claim(1, orders);
    let written = |other: bool| {
        let mut client = store();
        write_claim(&mut client, &mine);
        let parts = client.range(&parts_of(1), None, 0, 10).unwrap().entries;
        let (key, value) = (parts[1].key.clone(), parts[0].value.clone());
        let other_epoch = String::from_utf8(value).unwrap().replace("91", "92").into_bytes();
        let change = if other { Transaction::new().put(key, other_epoch) } else { Transaction::new().delete(key) };
        write(&mut client, &[change]);
        adoption(&mut client)
    };
    for read in [written(false), written(true)] {
        assert_eq!((read.claim(1), read.awaited(&[2, 3])), (None, [1].into()));
    }
}

#[test]
fn nothing_of_a_claim_is_written_once_others_decided() {
    let mut client = store();
    let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
    let read = adoption(&mut client);
    adopt(&mut client, &[claim(1, orders()), claim(2, orders())], &[3]);
    let directory = KnownNode { directory: Uuid::nil(), rack: None, since: 0 };
    let begun = read.begin_claim(3, &directory);
    for transaction in [begun].iter().chain(&claim(3, orders()).transactions(&read)) {
        assert!(matches!(client.transact(transaction), Ok(Outcome::Refused(_))), "{transaction:?}");
    }
}

/// What was claimed before a backup that was made while an etcd was being adopted is not what nodes have now.
#[test]
fn claims_that_came_with_a_backup_do_not_count() {
    let mut client = store();
    let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
    for node in [1, 2] {
        write_claim(&mut client, &claim(node, orders()));
    }
    let (contents, ahead) = read_contents(&mut client).unwrap();
    assert_eq!(Adoption::read(&(contents.clone(), ahead)).unwrap().awaited(&[]), [3].into());
    let mut other = contents.clone();
    other.identity += 1;
    let of_new_log = |revision| Some(Ahead::new(Progress { revision, index: 3 }, revision));
    let mut bumped = contents.clone();
    bumped.revision += 1_000_000_000;
    let of_bumped = of_new_log(bumped.revision);
    let of_plain = of_new_log(contents.revision);
    for restored in [(other, ahead), (bumped, of_bumped), (contents, of_plain)] {
        let read = Adoption::read(&restored).unwrap();
        assert_eq!(read.awaited(&[]), [1, 2, 3].into());
        assert!(read.image().being_adopted, "and no node registers before they are made");
    }
}

/// It would have been left out although it had said what it has, and been told that it had not been.
#[test]
fn who_claims_while_others_decide_without_it_is_not_passed_over() {
    let mut client = store();
    let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
    for node in [1, 2] {
        write_claim(&mut client, &claim(node, orders()));
    }
    let decision = adoption(&mut client).decide(&[3]);
    write_claim(&mut client, &claim(3, orders()));
    for transaction in &decision.transactions {
        assert!(matches!(client.transact(transaction), Ok(Outcome::Refused(_))), "{transaction:?}");
    }
    let read = adoption(&mut client);
    write(&mut client, &read.decide(&[3]).transactions);
    assert!(adoption(&mut client).took_part(member(3, 93)));
    // and whoever is about to claim once more
    let mut client = store();
    for node in [1, 2, 3] {
        write_claim(&mut client, &claim(node, orders()));
    }
    let read = adoption(&mut client);
    let directory = KnownNode { directory: Uuid::nil(), rack: None, since: 0 };
    write(&mut client, &[read.begin_claim(3, &directory)]);
    assert!(matches!(client.transact(&read.decide(&[]).transactions[0]), Ok(Outcome::Refused(_))));
}

#[test]
fn a_hundred_nodes_fit_into_what_etcd_takes_at_once() {
    let many = vec![ClaimedPartition { replicas: (1..=100).collect(), ..known(4, Some((4, 9))) }; 2 * WRITES_MAX];
    let claims: Vec<_> = (1..=100).map(|node| claim(node, [(ORDERS, topic("orders", &many))])).collect();
    adopt(&mut store(), &claims, &[]);
}

/// A directory that gave its records up has heard of the newest store, and of topics that are gone.
#[test]
fn of_two_topics_of_one_name_that_counts_which_the_best_informed_life_knows() {
    let (former, again) = (Uuid::from_u128(2), Uuid::from_u128(3));
    let knows = |node, seen, id| {
        let claimed = Claimed { times: 1, heard: heard(seen) };
        Claim { claimed, ..claim(node, [(id, topic("late", &[known(0, Some((0, 5)))]))]) }
    };
    let nobody = Claim { member: member(3, 0), ..knows(3, 900, former) };
    let (_, image) = adopt(&mut store(), &[knows(1, 100, former), knows(2, 500, again), nobody], &[]);
    assert_eq!(image.names.get("late"), Some(&again));
}

/// The newest topic of a name was one that was made by a node that began its life on the backup, and the one in use went.
#[test]
fn a_life_that_began_on_the_backup_knows_least() {
    let (former, again) = (Uuid::from_u128(2), Uuid::from_u128(3));
    let knows = |node, heard, id| {
        let topics = [(id, topic("late", &[known(0, Some((0, 5)))]))];
        Claim { claimed: Claimed { times: 1, heard }, ..claim(node, topics) }
    };
    let fresh = Heard { before: false, ..heard(1_000_000_500) };
    let claims = [knows(1, heard(500), former), knows(2, fresh, again), knows(3, heard(400), former)];
    let (decision, image) = adopt(&mut store(), &claims, &[]);
    assert_eq!(image.names.get("late"), Some(&former));
    assert_eq!(decision.replaced, [format!("late ({again})")]);
    // and a store that was adopted more often is later, whatever its revisions
    let later = Heard { adoptions: 1, ..heard(20) };
    let (_, image) = adopt(&mut store(), &[knows(1, heard(500), former), knows(2, later, again), claim(3, [])], &[]);
    assert_eq!(image.names.get("late"), Some(&again));
}

#[test]
fn which_life_began_on_the_backup_is_known() {
    let mut client = store();
    let contents = Contents { revision: 1_000_000_010, ..read_contents(&mut client).unwrap().0 };
    let ahead = Ahead::new(Progress { revision: contents.revision, index: 13 }, contents.revision);
    let read = Adoption::read(&(contents, Some(ahead))).unwrap();
    let before = |epoch, store, revision| {
        let remembered = Some(Remembered { store, revision });
        read.claimed(&Kept { remembered, ..kept(epoch, 0) }).heard.before
    };
    assert!(!before(1_000_000_005, 7, 1_000_000_008));
    assert!(before(1_000_000_005, 6, 1_000_000_008), "another store");
    assert!(before(900, 7, 1_000_000_008));
    assert!(before(1_000_000_005, 7, 1_000_000_011), "it went back");
}

/// Numbers that an adoption gave out were given out again by the next one, from the same backup.
#[test]
fn what_was_given_out_since_a_backup_is_not_given_out_again_by_its_next_restore() {
    let outcome = |times| {
        let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
        let claims = [1, 2, 3].map(|node| {
            let times = if node == 2 { times } else { 1 };
            Claim { claimed: Claimed { times, heard: heard(500) }, ..claim(node, orders()) }
        });
        let mut client = store();
        write(&mut client, &[Transaction::new().put(keys::PRODUCER_IDS.to_owned(), keys::encode_integer(70))]);
        let (_, image) = adopt(&mut client, &claims, &[]);
        (image.adopted.times, partition(&image, "orders").leader_epoch, image.producer_ids.value)
    };
    assert_eq!(outcome(1), (1, 4 + EPOCHS_SKIPPED, 70 + PRODUCER_IDS_SKIPPED));
    assert_eq!(outcome(3), (3, 4 + 3 * EPOCHS_SKIPPED, 70 + 3 * PRODUCER_IDS_SKIPPED));
}

#[test]
fn a_topic_comes_back_with_the_settings_that_the_best_informed_node_knows() {
    let late = Uuid::from_u128(2);
    let knows = |node, seen, days: &str| {
        let configs = BTreeMap::from([("retention.ms".to_owned(), days.to_owned())]);
        let topic = ClaimedTopic { configs, ..topic("late", &[known(0, Some((0, 5)))]) };
        Claim { claimed: Claimed { times: 1, heard: heard(seen) }, ..claim(node, [(late, topic)]) }
    };
    let (_, image) = adopt(&mut store(), &[knows(1, 100, "1"), knows(2, 500, "2"), knows(3, 200, "3")], &[]);
    assert_eq!(image.topic("late").unwrap().configs.get("retention.ms").map(String::as_str), Some("2"));
}

/// Who is gone may have had it.
#[test]
fn a_topic_that_nobody_who_was_asked_knows_stays_if_one_was_not_asked() {
    let gone = |without: &[NodeId]| {
        let asked: Vec<_> = (1..=3).filter(|node| !without.contains(node)).map(|node| claim(node, [])).collect();
        let (decision, image) = adopt(&mut store(), &asked, without);
        (decision.taken_out, image.topic("orders").is_some())
    };
    assert_eq!(gone(&[3]), (vec![], true));
    assert_eq!(gone(&[]), (vec!["orders".to_owned()], false));
}

#[test]
fn a_node_that_is_gone_but_said_what_it_has_leaves_no_doubt() {
    let claims = [1, 2, 3].map(|node| claim(node, [(ORDERS, topic("orders", &[known(5, Some((5, 20)))]))]));
    let (decision, image) = adopt(&mut store(), &claims, &[3]);
    assert!(decision.doubtful.is_empty());
    assert_eq!(partition(&image, "orders").last_known_leader, Some(member(1, 91)));
}

#[test]
fn who_was_eligible_by_the_backup_is_so_no_more() {
    let mut client = store();
    let members = [1, 2].map(|node| member(node, 10));
    let state = PartitionState { elr: vec![member(3, 10)], recovering: true, ..PartitionState::new(&members) };
    write(&mut client, &[Transaction::new().put(keys::partition(ORDERS, 0), keys::encode_partition(&state))]);
    let claims =
        [1, 2, 3].map(|node| claim(node, [(ORDERS, topic("orders", &[known(4, Some((4, 9 + i64::from(node % 2))))]))]));
    let (_, image) = adopt(&mut client, &claims, &[]);
    let state = partition(&image, "orders");
    assert_eq!((state.isr, state.elr, state.recovering), (vec![member(1, 91), member(3, 93)], vec![], false));
}

/// The epoch that a log has is above all that its node heard of, if it was cut short before it wrote that down.
#[test]
fn an_epoch_that_only_a_log_has_is_passed_over_too() {
    let claims = [1, 2, 3].map(|node| claim(node, [(ORDERS, topic("orders", &[known(4, Some((50_000, 9)))]))]));
    let (_, image) = adopt(&mut store(), &claims, &[]);
    assert_eq!(partition(&image, "orders").leader_epoch, 50_000 + EPOCHS_SKIPPED);
}

#[test]
fn a_claim_is_not_begun_while_a_node_lives() {
    let mut client = store();
    let read = adoption(&mut client);
    let directory = KnownNode { directory: Uuid::nil(), rack: None, since: 0 };
    write(&mut client, &[Transaction::new().put(keys::node(2), b"{}".to_vec())]);
    assert!(matches!(client.transact(&read.begin_claim(3, &directory)), Ok(Outcome::Refused(_))));
}

/// All that a store holds, but for how far numbers have gone.
fn outcome(client: &mut Client) -> Vec<(String, String)> {
    let (contents, _) = read_contents(client).unwrap();
    let entries = contents.entries.iter().map(|entry| {
        let value = match keys::decode(entry).unwrap() {
            Some(Entry::Partition(_, _, state)) => format!("{:?}", PartitionState { leader_epoch: 0, ..state }),
            Some(Entry::ProducerIds(_)) => String::new(),
            _ => String::from_utf8(entry.value.clone()).unwrap(),
        };
        (entry.key.clone(), value)
    });
    entries.collect()
}

/// A topic's partitions are written before it, and were refused for ever by a decision that was made anew in between.
#[test]
fn a_decision_that_was_cut_short_anywhere_is_made_anew_to_the_same_end() {
    let (late, again, formed) = (Uuid::from_u128(2), Uuid::from_u128(3), Uuid::from_u128(4));
    let more = Uuid::from_u128(5);
    let begun = || {
        let mut client = store();
        let stored = |name: &str, forming| StoredTopic {
            name: name.to_owned(),
            partitions: 1,
            configs: BTreeMap::new(),
            forming,
        };
        let state = keys::encode_partition(&PartitionState::new(&[member(1, 10)]));
        let others = Transaction::new()
            .put(keys::topic(formed), keys::encode_topic(&stored("formed", true)))
            .put(keys::partition(formed, 0), state.clone())
            .put(keys::topic(more), keys::encode_topic(&stored("more", false)))
            .put(keys::name("more"), keys::encode_uuid(more))
            .put(keys::partition(more, 0), state);
        write(&mut client, &[others]);
        let two = || [known(0, Some((0, 5))), known(0, Some((0, 6)))];
        for node in 1..=3 {
            let topics =
                [(late, topic("late", &two())), (again, topic("orders", &two())), (formed, topic("formed", &two()))];
            write_claim(&mut client, &claim(node, topics.into_iter().chain([(more, topic("more", &two()))])));
        }
        client
    };
    let mut uncut = begun();
    let decided = adoption(&mut uncut).decide(&[]);
    write(&mut uncut, &decided.transactions);
    let end = outcome(&mut uncut);
    for done in 0..decided.transactions.len() {
        let mut client = begun();
        let first = adoption(&mut client).decide(&[]);
        write(&mut client, &first.transactions[..done]);
        let rest = adoption(&mut client).decide(&[]);
        write(&mut client, &rest.transactions);
        assert_eq!(outcome(&mut client), end, "cut short after {done}");
    }
}

#[test]
fn where_a_partition_was_moved_since_the_backup_it_stays() {
    let moved = |log| ClaimedPartition { replicas: vec![4, 2], ..known(6, log) };
    let claims = [
        claim(1, [(ORDERS, topic("orders", &[known(4, None)]))]),
        claim(2, [(ORDERS, topic("orders", &[moved(Some((6, 9)))]))]),
        claim(3, [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))]),
        claim(4, [(ORDERS, topic("orders", &[moved(Some((6, 9)))]))]),
    ];
    let (_, image) = adopt(&mut store(), &claims, &[]);
    assert_eq!(partition(&image, "orders").replicas, [4, 2, 3], "and whoever has a log is one");
}

#[test]
fn a_topic_that_the_best_informed_node_does_not_know_is_kept_and_named() {
    let orders = || [(ORDERS, topic("orders", &[known(4, Some((4, 9)))]))];
    let last = Claim { claimed: Claimed { times: 1, heard: heard(600) }, ..claim(1, []) };
    let (decision, image) = adopt(&mut store(), &[last, claim(2, orders()), claim(3, orders())], &[]);
    assert_eq!((decision.perhaps_deleted, decision.taken_out), (vec!["orders".to_owned()], Vec::new()));
    assert!(image.topic("orders").is_some());
}

/// A log as the epoch of each record.
fn is_prefix(of: &[i32], log: &[i32]) -> bool {
    of.starts_with(log)
}

proptest! {
    /// Elections and records by the rules: whoever is decided to be in sync has every record that all in sync had.
    #[test]
    fn no_acknowledged_record_is_lost(steps in proptest::collection::vec((0..4u8, 0..3usize, 0..3usize), 1..60)) {
        let (mut logs, mut noted): ([Vec<i32>; 3], [i32; 3]) = (Default::default(), [0, -1, -1]);
        let (mut leader, mut epoch, mut isr) = (0usize, 0i32, BTreeSet::from([0usize, 1, 2]));
        let mut acknowledged: Vec<i32> = Vec::new();
        for (what, who, count) in steps {
            match what {
                0 => {
                    let longer = logs[leader].len() + count;
                    logs[leader].resize(longer, epoch);
                }
                1 if who != leader => {
                    // a follower takes what it lacks, some of it, after it cut off what the leader does not have
                    let common = logs[who].iter().zip(&logs[leader]).take_while(|(a, b)| a == b).count();
                    logs[who].truncate(common);
                    let upto = (common + count).min(logs[leader].len());
                    let more = logs[leader][common..upto].to_vec();
                    logs[who].extend(more);
                    if logs[who].len() == logs[leader].len() {
                        isr.insert(who);
                    }
                }
                2 if who != leader && isr.len() > 1 => { isr.remove(&who); }
                // who leads writes that down, before it does anything
                3 if isr.contains(&who) => {
                    (leader, epoch) = (who, epoch + 1);
                    noted[who] = epoch;
                }
                _ => {}
            }
            // what each in sync has of the leader's log, and only once all have what was acknowledged before
            let common = |node: &usize| logs[*node].iter().zip(&logs[leader]).take_while(|(a, b)| a == b).count();
            let shortest = isr.iter().map(common).min().unwrap_or(0);
            if shortest > acknowledged.len() {
                acknowledged = logs[leader][..shortest].to_vec();
            }
        }
        let claims: Vec<_> = (0..3).map(|node| {
            let last_epoch = noted[node].max(*logs[node].last().unwrap_or(&-1));
            let extent = Extent { last_epoch, end: logs[node].len() as i64 };
            (member(node as i32, 9), ClaimedPartition { leader_epoch: epoch, replicas: vec![0, 1, 2], log: Some(extent) })
        }).collect();
        let claims: Vec<_> = claims.iter().map(|(member, claimed)| (*member, claimed)).collect();
        let state = decided(None, &claims, 1).unwrap();
        for one in &state.isr {
            prop_assert!(is_prefix(&logs[one.node as usize], &acknowledged), "{logs:?} {acknowledged:?} {state:?}");
        }
        prop_assert!(!state.isr.is_empty());
    }
}
