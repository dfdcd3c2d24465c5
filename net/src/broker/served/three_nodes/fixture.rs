//! Node 2 of three, whose control plane is the test.
//!
//! Nodes 1 to 3 live, in the racks a, b and c; node 4 was there once. Node 3 is the controller.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError, TrySendError, sync_channel},
    },
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::{Either, select};
use kafka_protocol::protocol::{Decodable, HeaderVersion, Request as Message, StrBytes};
use millrace_engine::{
    api::TopicId,
    batch::{BatchBuilder, Codec, Record},
    engine::Engine,
    format::{
        catalog::StoredTopic,
        placement::{PlacedRun, Placement},
    },
};
use millrace_replica::cluster::{
    image::{Controller, Image},
    model::{Endpoint, KnownNode, Member, NodeState, PartitionState, SettingKey, TopicRules, TopicState, Versioned},
    plane::{Asked, ControlError, ControlPlane, Question, Visible},
};
use uuid::Uuid;

use crate::{
    broker::{
        cluster::{Cluster, Membership},
        config::NetConfig,
        context::Context,
        serve::serve,
        shard::BrokerShard,
    },
    test_node::on_numbered_node,
    wire::{
        api::{Handling, Reply, Request, RequestHeader, find},
        listener::ListenerIndex,
        peer::{Origin, Peer},
    },
};

/// The node that is asked.
pub(super) struct Node {
    service: Rc<BrokerShard>,
    questions: Receiver<Asked>,
    pub(super) cluster: Rc<Cluster>,
    pub(super) engine: Engine,
    /// The topic "t" of four partitions.
    pub(super) topic: TopicId,
}

/// A batch of one record, as a producer sends it.
pub(super) fn one_batch() -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None, 0);
    builder.push(&Record {
        offset: 0,
        timestamp: 1,
        key: None,
        value: Some(Bytes::from_static(b"v")),
        headers: Vec::new(),
    });
    builder.finish().into()
}

/// One member of the cluster.
pub(super) fn member(node: i32) -> Member {
    Member { node, epoch: 100 + i64::from(node) }
}

pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// What is seen at once: nothing that was changed later is waited for.
pub(super) fn visible<T>(outcome: T) -> Visible<T> {
    Visible { revision: 0, outcome }
}

/// Has the node know a topic of the cluster, whose partitions are on these nodes.
pub(super) async fn place(engine: &Engine, id: TopicId, name: &str, replicas: &[&[i32]]) {
    let partitions = i32::try_from(replicas.len()).expect("a few");
    let stored = StoredTopic { name: name.to_owned(), partitions, overrides: BTreeMap::new() };
    let run = |nodes: &&[i32]| PlacedRun { partitions: 1, leader_epoch: 1, replicas: nodes.to_vec() };
    engine.put_topic(id, stored, Placement::of(replicas.iter().map(run))).await.expect("a topic");
}

/// Runs a conversation with the node.
pub(super) fn with_three_nodes(settings: &[(&str, &str)], body: impl AsyncFn(Node) + Clone + Send + 'static) {
    let mut config = NetConfig::default();
    config.listeners[0].addresses = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let few = [("offsets.topic.num.partitions", "1"), ("share.coordinator.state.topic.num.partitions", "1")];
    let all = few.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    config.broker_settings.extend(all);
    on_numbered_node(2, async move |engine: Engine, stop| {
        let topic = Uuid::from_u128(5);
        place(&engine, topic, "t", &[&[1, 2, 4], &[2, 3, 1], &[4, 1], &[1, 3]]).await;
        let (sender, questions) = sync_channel(16);
        let put = move |asked| match sender.try_send(asked) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(asked) | TrySendError::Disconnected(asked)) => Err((asked, ControlError::Busy)),
        };
        let cluster = Cluster::new(ControlPlane::new(put), image(topic));
        let membership = Membership::Clustered(Rc::clone(&cluster));
        let serving = glommio::spawn_local(serve(engine.clone(), config.clone(), membership));
        let service = engine.attachment().await;
        body(Node { service, questions, cluster, engine, topic }).await;
        stop.stop();
        serving.await.expect("it is served");
    });
}

fn node(id: i32, rack: &str) -> Arc<NodeState> {
    let endpoint = Endpoint {
        listener: "PLAINTEXT".to_owned(),
        host: format!("host{id}"),
        port: 9000 + u16::try_from(id).unwrap(),
    };
    Arc::new(NodeState {
        id,
        epoch: member(id).epoch,
        incarnation: Uuid::nil(),
        directory: Uuid::nil(),
        machine: String::new(),
        rack: Some(rack.to_owned()),
        endpoints: vec![endpoint],
        peer: String::new(),
        shards: 1,
        version: String::new(),
        continues: None,
        defaults: None,
    })
}

/// A partition with these replicas in sync, the first of which leads.
pub(super) fn led(leader: i32, replicas: &[i32], isr: &[i32]) -> PartitionState {
    PartitionState {
        replicas: replicas.to_vec(),
        leader: Some(member(leader)),
        leader_epoch: 7,
        isr: isr.iter().copied().map(member).collect(),
        ..PartitionState::default()
    }
}

/// Puts a topic into an image.
pub(super) fn put_topic(image: &mut Image, id: TopicId, name: &str, states: Vec<PartitionState>) {
    let partitions: Vec<_> =
        states.into_iter().map(|value| Arc::new(Versioned { value, revision: 5, version: 1 })).collect();
    let expected = partitions.len();
    let topic = TopicState {
        id,
        name: name.to_owned(),
        partitions,
        expected,
        configs: BTreeMap::new(),
        rules: TopicRules::default(),
        revision: 5,
    };
    image.topics.insert(id, Arc::new(topic));
    image.names.insert(name.to_owned(), id);
}

fn image(topic: TopicId) -> Image {
    let mut image = Image::new(Arc::default());
    image.revision = 1000;
    image.cluster_id = Some(Uuid::from_u128(77));
    image.nodes = Arc::new([(1, "a"), (2, "b"), (3, "c")].map(|(id, rack)| (id, node(id, rack))).into());
    let known = KnownNode { directory: Uuid::nil(), rack: Some("d".to_owned()), since: 1 };
    image.known = Arc::new([1, 2, 3, 4].map(|id| (id, known.clone())).into());
    image.controller = Some(Controller { node: 3, epoch: 42 });
    let level = SettingKey { node: None, name: "features/transaction.version/level".to_owned() };
    image.settings = Arc::new([(level, Versioned { value: "2".to_owned(), revision: 5, version: 1 })].into());
    let states = vec![
        // led elsewhere, one replica eligible
        PartitionState { elr: vec![member(2)], ..led(1, &[1, 2, 4], &[1]) },
        // led here
        led(2, &[2, 3, 1], &[2, 3, 1]),
        // led by nobody
        PartitionState {
            replicas: vec![4, 1],
            leader_epoch: 9,
            elr: vec![member(4)],
            last_known_leader: Some(member(4)),
            ..PartitionState::default()
        },
        // not here, but on its way
        PartitionState { adding: vec![1], removing: vec![3], ..led(3, &[1, 3], &[3]) },
    ];
    put_topic(&mut image, topic, "t", states);
    image
}

impl Node {
    /// Asks the node, and hears its answer.
    pub(super) async fn call<R: Message>(&self, version: i16, request: R) -> R::Response {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let origin = Origin { address, listener: ListenerIndex(0), connection: (0, 1) };
        let (_, api) = find::<BrokerShard>(R::KEY).expect("it is served");
        let context = Context { service: self.service.clone(), peer: Rc::new(Peer::new(origin)), api };
        let mut body = BytesMut::new();
        request.encode(&mut body, version).expect("a legal request");
        let header = RequestHeader { version, correlation_id: 1, client_id: None };
        let handling = (api.handle)(&context, Request { header, body: body.freeze() });
        let reply = match handling.unwrap_or_else(|_| panic!("{:?} is malformed", api.key)) {
            Handling::Done(reply) => reply,
            Handling::Later(reply) | Handling::InTurn(reply) => reply.await,
        };
        let Reply::Response(response) = reply else { panic!("{:?} is not answered: {reply:?}", api.key) };
        let pieces = response.into_pieces();
        let mut bytes: BytesMut = pieces.flat_map(|piece| piece.as_slice().expect("memory").to_vec()).collect();
        bytes.advance(if R::Response::header_version(version) >= 1 { 9 } else { 8 });
        R::Response::decode(&mut bytes.freeze(), version).expect("a legal response")
    }

    /// Asks the node, which asks its control plane, which `answer` is.
    pub(super) async fn call_with<R: Message>(
        &self,
        version: i16,
        request: R,
        answer: impl FnOnce(Question),
    ) -> R::Response {
        let call = std::pin::pin!(self.call(version, request));
        match select(call, std::pin::pin!(self.question())).await {
            Either::Left(_) => panic!("{:?} is answered without a question", R::KEY),
            Either::Right((question, call)) => {
                answer(question);
                call.await
            }
        }
    }

    /// The next question to the control plane.
    pub(super) async fn question(&self) -> Question {
        loop {
            match self.questions.try_recv() {
                Ok(asked) => return asked.question,
                Err(TryRecvError::Empty) => glommio::timer::sleep(Duration::from_millis(1)).await,
                Err(TryRecvError::Disconnected) => panic!("nobody can ask"),
            }
        }
    }

    /// Whether nothing was asked that nobody has answered.
    pub(super) fn has_no_question(&self) -> bool {
        self.questions.try_recv().is_err()
    }
}
