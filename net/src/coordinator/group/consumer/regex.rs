//! Subscriptions by regular expression: the coordinator looks up their topics now and then, for all members at once.
//!
//! Looking through all topics takes time, so that the shell does it in pieces; heartbeats go on meanwhile. What an
//! expression stands for is a record of its own.

use std::rc::Rc;

use kafka_protocol::error::ResponseError;
use regex::Regex;

use super::{ConsumerGroup, TopicsView};
use crate::coordinator::group::{
    effects::Scope,
    error::Refusal,
    record::{ConsumerMember, ConsumerRegex, Record},
};

/// Least time between two looks at the topics, ms. Kafka's `REGEX_BATCH_REFRESH_MIN_INTERVAL_MS`.
const REFRESH_INTERVAL_MIN_MS: i64 = 10_000;

/// An expression as clients mean it: the whole name must match.
pub(crate) fn compile(regex: &str) -> Result<Regex, regex::Error> {
    // checked by itself first, so that nothing closes the bracket that is put around it
    Regex::new(regex)?;
    Regex::new(&format!("^(?:{regex})$"))
}

/// A member's expressions before and after a change, and how many members had each before.
#[derive(Debug)]
pub(super) struct RegexesBefore {
    old: Option<(Rc<str>, usize)>,
    new: Option<(Rc<str>, usize)>,
}

/// What came of a change.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RegexChange {
    /// The member's expression is another one.
    pub(super) changed: bool,
    /// ... and it is known which topics that means, so that there is something to assign.
    pub(super) is_resolved: bool,
}

impl ConsumerGroup {
    /// Checks an expression that no member has used yet.
    pub(super) fn validate_regex(&self, regex: Option<&str>) -> Result<(), Refusal> {
        let Some(regex) = regex.filter(|regex| !regex.is_empty() && !self.regex_members.contains_key(*regex)) else {
            return Ok(());
        };
        compile(regex).map(|_| ()).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let message = format!("SubscribedTopicRegex `{regex}` is not a valid regular expression: {reason}.");
            Refusal::new(ResponseError::InvalidRegularExpression, message)
        })
    }

    pub(super) fn regexes_before(&self, old: &ConsumerMember, new: &ConsumerMember) -> RegexesBefore {
        let count = |info: &ConsumerMember| {
            let regex = info.topic_regex.clone().filter(|regex| !regex.is_empty())?;
            let count = self.regex_members.get(&regex).copied().unwrap_or(0);
            Some((regex, count))
        };
        RegexesBefore { old: count(old), new: count(new) }
    }

    /// Drops the topics of an expression that nobody uses any more and has those of new ones looked up.
    pub(super) fn change_regex(
        &mut self,
        scope: &mut Scope<'_>,
        topics: TopicsView<'_>,
        before: RegexesBefore,
        records: &mut Vec<Record>,
    ) -> RegexChange {
        let RegexesBefore { old, new } = before;
        let mut change = RegexChange::default();
        let mut is_new = false;
        if old.as_ref().map(|(regex, _)| regex) != new.as_ref().map(|(regex, _)| regex) {
            change.changed = true;
            if let Some((regex, 1)) = &old {
                self.forget_regex(regex, records);
            }
            match &new {
                None => change.is_resolved = true,
                Some((_, 0)) => is_new = true,
                Some((regex, _)) => change.is_resolved = self.regexes.contains_key(regex),
            }
        }
        self.refresh_regexes(scope, topics, is_new);
        change
    }

    /// Deletes what an expression stood for.
    pub(super) fn forget_regex(&mut self, regex: &Rc<str>, records: &mut Vec<Record>) {
        let (group, regex) = (Rc::clone(&self.id), Rc::clone(regex));
        self.put(records, Record::ConsumerRegex { group, regex, value: None });
    }

    /// Has the topics of all expressions looked up if that is due.
    fn refresh_regexes(&mut self, scope: &mut Scope<'_>, topics: TopicsView<'_>, is_new: bool) {
        if self.resolving || self.regex_members.is_empty() {
            return;
        }
        let last_ms = self.regexes.values().next().map(|resolved| resolved.timestamp_ms);
        if last_ms.is_some_and(|last_ms| scope.now_ms <= last_ms.saturating_add(REFRESH_INTERVAL_MIN_MS)) {
            return;
        }
        let is_due = is_new
            || self.regex_members.len() != self.regexes.len()
            || self.resolved_topics != Some(topics.version)
            || last_ms
                .is_none_or(|last_ms| scope.now_ms > last_ms.saturating_add(scope.settings.regex_refresh_interval_ms));
        if is_due {
            self.resolving = true;
            scope.effects.resolve(&self.id, self.regex_members.keys().cloned().collect());
        }
    }

    /// The topics of expressions were looked up in the topics of `version`. The group epoch rises if any of them changed.
    pub(crate) fn handle_regexes(
        &mut self,
        scope: &Scope<'_>,
        topics: TopicsView<'_>,
        version: u64,
        resolved: Vec<(Rc<str>, Vec<Rc<str>>)>,
        records: &mut Vec<Record>,
    ) {
        self.resolving = false;
        self.resolved_topics = Some(version);
        let mut bump = false;
        for (regex, names) in resolved {
            if !self.regex_members.contains_key(&regex) {
                continue;
            }
            let old = self.regexes.get(&regex).map(|old| old.topics.as_slice()).unwrap_or_default();
            bump |= old != names;
            let value = ConsumerRegex {
                topics: names,
                version: i64::try_from(version).unwrap_or(i64::MAX),
                timestamp_ms: scope.now_ms,
            };
            let group = Rc::clone(&self.id);
            self.put(records, Record::ConsumerRegex { group, regex, value: Some(value) });
        }
        self.update_metadata(topics, bump, records);
    }
}
