//! Looks through all topics for those that the regular expressions of a group stand for.

use std::rc::Rc;

use millrace_engine::api::TopicPartition;

use super::Groups;
use crate::coordinator::group::{consumer, coordinator::Lookup};

/// Topics that are matched against regular expressions in one turn.
const TOPICS_PER_TURN: usize = 200;

/// Looks up, a few topics at a time, and tells the coordinator.
pub(super) fn look_up(groups: &Rc<Groups>, partition: TopicPartition, lookup: Lookup) {
    let groups = Rc::clone(groups);
    glommio::spawn_local(async move {
        let Lookup { group, version, regexes } = lookup;
        let topics = groups.engine().topics();
        let mut resolved = Vec::with_capacity(regexes.len());
        for regex in regexes {
            let mut names = Vec::new();
            // it was checked when a member brought it
            if let Ok(compiled) = consumer::compile(&regex) {
                for (at, name) in topics.by_name.keys().enumerate() {
                    if compiled.is_match(name) {
                        names.push(Rc::from(name.as_str()));
                    }
                    if at % TOPICS_PER_TURN == TOPICS_PER_TURN - 1 {
                        glommio::yield_if_needed().await;
                    }
                }
            }
            resolved.push((regex, names));
        }
        groups.with(partition, |coordinator, now_ms| coordinator.handle_regexes(now_ms, &group, version, resolved));
    })
    .detach();
}
