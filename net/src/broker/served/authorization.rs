//! What each API says that it asks leave for is what its handler asks, and whoever gets none is told so.
//!
//! A whole broker on one shard is asked everything: samples of every shape, and a few conversations for what samples do
//! not reach. An API whose entry names what its handler never asks, or asks for what its entry does not name, fails.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use kafka_protocol::{
    messages::{
        alter_configs_request as alter, delete_topics_request::DeleteTopicState,
        describe_configs_request::DescribeConfigsResource, incremental_alter_configs_request as incremental,
        share_acknowledge_request as acknowledge, share_fetch_request as fetch, *,
    },
    protocol::{self, StrBytes},
};
use millrace_engine::{
    api::NewTopic,
    batch::{BatchBuilder, Codec, Record},
    engine::{Engine, Topic},
};

use super::TABLE;
use crate::{
    broker::{
        cluster::Membership,
        config::NetConfig,
        context::{Authorization, Check, Context, Operation, ResourceType, trial},
        serve::serve,
        settings::resource::{BROKER, GROUP, TOPIC},
        shard::BrokerShard,
        table::Api,
    },
    test_node::on_node,
    wire::{
        api::{
            Handling, Reply, Request, RequestHeader, find,
            shape::sample::{Random, Text, sample},
        },
        listener::ListenerIndex,
        peer::{Origin, Peer},
    },
};

/// Samples of each version of each API.
const SAMPLES: usize = 6;
/// Codes that say that somebody is not allowed something.
const REFUSALS: [i16; 4] = [29, 30, 31, 53];

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// One connection to a shard of a broker.
#[derive(Clone)]
struct Caller {
    service: Rc<BrokerShard>,
    peer: Rc<Peer<crate::broker::session::Session>>,
    /// Codes of errors that were told, by API.
    told: Rc<RefCell<BTreeMap<i16, Vec<i16>>>>,
}

impl Caller {
    fn new(service: Rc<BrokerShard>) -> Caller {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let origin = Origin { address, listener: ListenerIndex(0), connection: (0, 1) };
        Caller { service, peer: Rc::new(Peer::new(origin)), told: Rc::default() }
    }

    /// Begins a request, whose first step is taken here; what comes of it is noted.
    fn begin(&self, api: &'static Api, version: i16, body: Bytes) -> glommio::Task<()> {
        let context = Context { service: self.service.clone(), peer: self.peer.clone(), api };
        let header = RequestHeader { version, correlation_id: 1, client_id: None };
        let handling = (api.handle)(&context, Request { header, body });
        let told = self.told.clone();
        let mut under_way = Box::pin(async move {
            let reply = match handling {
                Ok(Handling::Done(reply)) => reply,
                Ok(Handling::Later(reply) | Handling::InTurn(reply)) => reply.await,
                Err(_) => return,
            };
            if let Reply::Response(response) = reply {
                told.borrow_mut().entry(api.key as i16).or_default().extend(response.errors());
            }
        });
        let is_done = (&mut under_way).now_or_never().is_some();
        glommio::spawn_local(async move {
            if !is_done {
                under_way.await
            }
        })
    }

    async fn ask<R: protocol::Request>(&self, version: i16, request: R) {
        let (_, api) = find::<BrokerShard>(R::KEY).expect("it is served");
        let mut body = BytesMut::new();
        request.encode(&mut body, version).expect("a legal request");
        self.begin(api, version, body.freeze()).await;
    }

    /// Samples of every API that is asked for something.
    fn sample(&self, random: &mut Random) -> Vec<glommio::Task<()>> {
        let mut begun = Vec::new();
        for api in TABLE.iter().filter(|api| matches!(api.authorization, Authorization::Asks(_))) {
            for version in api.version_min..=api.version_max {
                let flexible = api.key.request_header_version(version) >= 2;
                begun.extend((0..SAMPLES).map(|_| {
                    let body = sample(api.shape, version, flexible, Text::Ascii, random);
                    self.begin(api, version, body.into())
                }));
            }
        }
        begun
    }

    /// What samples do not reach.
    async fn converse(&self, topic: &Topic) {
        let key = text(&format!("s:{}:0", crate::kafka_uuid::kafka_uuid(topic.id)));
        let share_key = FindCoordinatorRequest::default().with_key_type(2).with_coordinator_keys(vec![key]);
        self.ask(6, share_key).await;
        let data = produce_request::TopicProduceData::default().with_name(TopicName(text("topic")));
        let data = data.with_partition_data(vec![produce_request::PartitionProduceData::default()]);
        self.ask(9, ProduceRequest::default().with_acks(1).with_topic_data(vec![data])).await;
        let data = produce_request::PartitionProduceData::default().with_records(Some(transactional_batch()));
        let data = produce_request::TopicProduceData::default()
            .with_name(TopicName(text("topic")))
            .with_partition_data(vec![data]);
        let produce = ProduceRequest::default().with_transactional_id(Some(TransactionalId(text("t"))));
        self.ask(9, produce.with_acks(1).with_topic_data(vec![data])).await;
        let wanted = describe_topic_partitions_request::TopicRequest::default().with_name(TopicName(text("topic")));
        self.ask(0, DescribeTopicPartitionsRequest::default().with_topics(vec![wanted]).with_cursor(None)).await;
        self.ask(5, InitProducerIdRequest::default().with_transactional_id(None)).await;
        let id = TransactionalId(text("t"));
        let init = InitProducerIdRequest::default().with_transactional_id(Some(id.clone()));
        self.ask(5, init.with_transaction_timeout_ms(60_000)).await;
        self.ask(2, ListTransactionsRequest::default().with_duration_filter(-1)).await;
        self.ask(6, FindCoordinatorRequest::default().with_key_type(1).with_coordinator_keys(vec![id.0])).await;
        let added =
            add_partitions_to_txn_request::AddPartitionsToTxnTopic::default().with_name(TopicName(text("topic")));
        self.ask(3, AddPartitionsToTxnRequest::default().with_v3_and_below_topics(vec![added])).await;
        self.ask(5, ListGroupsRequest::default()).await;
        for (kind, name) in [(TOPIC, "topic"), (BROKER, "1"), (GROUP, "g")] {
            let described = DescribeConfigsResource::default().with_resource_type(kind).with_resource_name(text(name));
            self.ask(4, DescribeConfigsRequest::default().with_resources(vec![described])).await;
            let altered =
                alter::AlterConfigsResource::default().with_resource_type(kind).with_resource_name(text(name));
            self.ask(2, AlterConfigsRequest::default().with_resources(vec![altered])).await;
            let altered = incremental::AlterConfigsResource::default();
            let altered = altered.with_resource_type(kind).with_resource_name(text(name));
            self.ask(1, IncrementalAlterConfigsRequest::default().with_resources(vec![altered])).await;
        }
        self.converse_in_groups(topic).await;
    }

    async fn converse_in_groups(&self, topic: &Topic) {
        let group = |id: &str| GroupId(text(id));
        let join = ConsumerGroupHeartbeatRequest::default().with_group_id(group("g")).with_member_id(text("m"));
        let join = join.with_subscribed_topic_names(Some(vec![TopicName(text("topic"))]));
        self.ask(1, join.with_rebalance_timeout_ms(60_000).with_topic_partitions(Some(Vec::new()))).await;
        self.ask(1, ConsumerGroupDescribeRequest::default().with_group_ids(vec![group("g")])).await;
        let join = ShareGroupHeartbeatRequest::default().with_group_id(group("s")).with_member_id(text("m"));
        let join = join.with_subscribed_topic_names(Some(vec![TopicName(text("topic"))]));
        // partitions are given out once their state is kept
        self.ask(1, join.clone()).await;
        self.ask(1, join).await;
        self.ask(1, ShareGroupDescribeRequest::default().with_group_ids(vec![group("s")])).await;
        let wanted = fetch::FetchTopic::default().with_topic_id(topic.id);
        let wanted = wanted.with_partitions(vec![fetch::FetchPartition::default()]);
        let opened = ShareFetchRequest::default().with_group_id(Some(group("s"))).with_member_id(Some(text("m")));
        self.ask(1, opened.with_max_bytes(1).with_max_records(1).with_topics(vec![wanted])).await;
        let batch = acknowledge::AcknowledgementBatch::default().with_acknowledge_types(vec![1]);
        let part = acknowledge::AcknowledgePartition::default().with_acknowledgement_batches(vec![batch]);
        let part = acknowledge::AcknowledgeTopic::default().with_topic_id(topic.id).with_partitions(vec![part]);
        let done = ShareAcknowledgeRequest::default().with_group_id(Some(group("s"))).with_member_id(Some(text("m")));
        self.ask(1, done.with_share_session_epoch(1).with_topics(vec![part])).await;
        self.ask(5, ListGroupsRequest::default()).await;
    }
}

/// A batch of a producer that nobody knows.
fn transactional_batch() -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0).producer(i64::MAX, 0, 0).transactional();
    builder.push(&Record { offset: 0, timestamp: 0, key: None, value: None, headers: Vec::new() });
    builder.finish().into()
}

async fn walk(engine: Engine) {
    let service: Rc<BrokerShard> = engine.attachment().await;
    let new = NewTopic { name: "topic".to_owned(), partitions: 1, configs: BTreeMap::new() };
    let topic = engine.create_topic(new, false).await.expect("a topic");
    let mut random = Random::new(3);

    // who may do everything is asked for everything, and some of it waits for ever
    let caller = Caller::new(service.clone());
    caller.converse(&topic).await;
    let created = create_topics_request::CreatableTopic::default().with_name(TopicName(text("other")));
    let created = created.with_num_partitions(1).with_replication_factor(1);
    caller.ask(7, CreateTopicsRequest::default().with_topics(vec![created])).await;

    trial::forbid(|_| true);
    let refused = Caller::new(service.clone());
    for begun in refused.sample(&mut random) {
        begun.await;
    }
    refused.converse(&topic).await;
    let by_id = DeleteTopicState::default().with_name(None).with_topic_id(topic.id);
    refused.ask(6, DeleteTopicsRequest::default().with_topics(vec![by_id])).await;
    // what of a list may not be seen is left out
    let silent = |api: &&&Api| {
        let told = refused.told.borrow();
        let is_told = told.get(&(api.key as i16)).is_some_and(|told| told.iter().any(|code| REFUSALS.contains(code)));
        let is_list = matches!(api.key, ApiKey::ListGroups | ApiKey::ListTransactions);
        matches!(api.authorization, Authorization::Asks(_)) && !is_told && !is_list
    };
    let silent: Vec<_> = TABLE.iter().filter(silent).map(|api| api.key).collect();
    assert!(silent.is_empty(), "{silent:?} do not say what is not allowed");

    trial::forbid(|check| check == (ResourceType::Cluster, Operation::Create));
    let unknown = metadata_request::MetadataRequestTopic::default().with_name(Some(TopicName(text("unknown"))));
    caller.ask(9, MetadataRequest::default().with_topics(Some(vec![unknown]))).await;

    trial::forbid(|_| false);
    caller.sample(&mut random).into_iter().for_each(|begun| drop(begun.detach()));
    let differ = TABLE.iter().filter_map(|api| {
        let named: BTreeSet<Check> = match api.authorization {
            Authorization::Asks(checks) => checks.iter().copied().collect(),
            Authorization::Open(reason) => {
                assert!(!reason.is_empty(), "{:?} is open for no reason", api.key);
                BTreeSet::new()
            }
        };
        let asked = trial::asked(api.key);
        (asked != named).then_some((api.key, named, asked))
    });
    let differ: Vec<_> = differ.collect();
    assert!(differ.is_empty(), "what entries name and what handlers ask differs: {differ:?}");
}

#[test]
fn every_handler_asks_leave_for_what_the_table_says() {
    let mut config = NetConfig::default();
    config.listeners[0].addresses = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let settings = [
        ("offsets.topic.num.partitions", "1"),
        ("share.coordinator.state.topic.num.partitions", "1"),
        ("transaction.state.log.num.partitions", "1"),
        ("group.share.assignment.interval.ms", "0"),
    ];
    config.broker_settings.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    on_node(async move |engine: Engine, stop| {
        let serving = glommio::spawn_local(serve(engine.clone(), config.clone(), Membership::Alone));
        walk(engine).await;
        stop.stop();
        serving.await.expect("it is served");
    });
}
