//! The runtime on a real engine: what machines know when they are called.

use std::{cell::Cell, collections::BTreeMap, convert::Infallible, rc::Rc, time::Duration};

use kafka_protocol::error::ResponseError;
use millrace_engine::{
    api::{NewTopic, TopicPartition},
    engine::{Engine, Topics},
};

use super::{
    Kind, LogRecord, Machine, Replayed, Reply, Runtime, Verdict,
    effects::{Write, WriteId},
};
use crate::test_node::on_node;

/// A machine that writes nothing. Its deadlines come again and again until the test has made a topic; then it notes how
/// many topics it knew.
struct Watch {
    kind: WatchKind,
    topics: Rc<Topics>,
    deadline_ms: Option<i64>,
}

#[derive(Clone, Default)]
struct WatchKind {
    is_made: Rc<Cell<bool>>,
    known: Rc<Cell<Option<usize>>>,
}

struct Nothing;

impl LogRecord for Nothing {
    fn key(&self) -> Vec<u8> {
        Vec::new()
    }

    fn value(&self) -> Option<Vec<u8>> {
        None
    }
}

impl Machine for Watch {
    type Record = Nothing;
    type Errand = Infallible;
    type Unreadable = Infallible;

    fn replay(&mut self, _: &Replayed<'_>) -> Result<(), Infallible> {
        Ok(())
    }

    fn on_loaded(&mut self, now_ms: i64) {
        self.deadline_ms = Some(now_ms);
    }

    fn handle_topics(&mut self, topics: &Rc<Topics>) {
        self.topics = Rc::clone(topics);
    }

    fn handle_tick(&mut self, _: i64) {}

    fn handle_timeouts(&mut self, now_ms: i64) {
        self.deadline_ms = match self.kind.is_made.get() {
            true => {
                self.kind.known.set(Some(self.topics.by_id.len()));
                None
            }
            false => Some(now_ms + 1),
        };
    }

    fn next_deadline_ms(&self) -> Option<i64> {
        self.deadline_ms
    }

    fn on_persisted(&mut self, _: i64, _: WriteId, _: Result<i64, ResponseError>) -> Verdict {
        Verdict::Stands
    }

    fn close(&mut self, _: i64, _: ResponseError) {}

    fn take_replies(&mut self) -> Vec<Reply> {
        Vec::new()
    }

    fn has_writes(&self) -> bool {
        false
    }

    fn take_writes(&mut self) -> Vec<Write<Nothing>> {
        Vec::new()
    }

    fn take_errands(&mut self) -> Vec<Infallible> {
        Vec::new()
    }
}

impl Kind for WatchKind {
    type Machine = Watch;
    const TOPIC: &'static str = "watched";

    fn new_topic(&self) -> NewTopic {
        topic(Self::TOPIC)
    }

    fn machine(&self, _: &Engine, _: TopicPartition) -> Watch {
        Watch { kind: self.clone(), topics: Rc::default(), deadline_ms: None }
    }

    fn run_errand(_: &Rc<Runtime<Self>>, _: TopicPartition, errand: Infallible) {
        match errand {}
    }
}

fn topic(name: &str) -> NewTopic {
    NewTopic { name: name.to_owned(), partitions: 1, configs: BTreeMap::new() }
}

/// The timer handled deadlines with the topics of its last tick.
#[test]
fn deadlines_are_handled_with_the_topics_of_the_moment() {
    on_node(async |engine: Engine, _| {
        engine.create_topic(topic(WatchKind::TOPIC), false).await.unwrap();
        let kind = WatchKind::default();
        let watch = Runtime::attach(&engine, kind.clone());
        watch.loaded().await;
        let running = glommio::spawn_local(Rc::clone(&watch).run());
        engine.create_topic(topic("new"), false).await.unwrap();
        kind.is_made.set(true);
        while kind.known.get().is_none() {
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(kind.known.get(), Some(2));
        running.cancel().await;
    });
}
