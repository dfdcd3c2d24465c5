//! Settings of topics and of brokers, and blocks of producer ids.

use std::collections::BTreeMap;

use millrace_engine::config;

use super::{Plan, Setting, error, unknown_topic};
use crate::cluster::{
    image::Image,
    keys::{self, StoredTopic},
    model::{NodeId, SettingKey},
    plane::{AdminCode, AdminError, ConfigEdit, DecideSettings, Mode, ProducerIds},
    store::{Compare, TRANSACTION_OPERATIONS_MAX, Transaction},
};

/// Producer ids are given out in blocks of this size, as Kafka's are.
const PRODUCER_ID_BLOCK: i32 = 1_000;

/// Changes a topic's settings.
pub(crate) fn topic(name: &str, edit: &ConfigEdit, mode: Mode, setting: &Setting<'_>) -> Plan<Result<(), AdminError>> {
    match topic_step(name, edit, setting.image) {
        Err(error) => Plan::Answer(Err(error)),
        Ok(None) => Plan::Answer(Ok(())),
        Ok(Some(_)) if mode == Mode::Validate => Plan::Answer(Ok(())),
        Ok(Some(step)) => Plan::write(vec![step], Ok(())),
    }
}

fn topic_step(name: &str, edit: &ConfigEdit, image: &Image) -> Result<Option<Transaction>, AdminError> {
    let topic = image.topic(name).ok_or_else(|| unknown_topic(name))?;
    let invalid = |reason: String| AdminError::new(AdminCode::InvalidConfig, reason);
    let configs = match edit {
        ConfigEdit::Replace(configs) => configs.clone(),
        ConfigEdit::Incremental(changes) => {
            config::apply_changes(image.topic_defaults(), &topic.configs, changes).map_err(invalid)?
        }
    };
    config::TopicConfig::parse(image.topic_defaults(), &configs).map_err(invalid)?;
    if configs == topic.configs {
        return Ok(None);
    }
    let partitions = i32::try_from(topic.expected).unwrap_or(i32::MAX);
    let stored = StoredTopic { name: topic.name.clone(), partitions, configs, forming: false };
    let same = Compare::Modified(keys::topic(topic.id), topic.revision);
    Ok(Some(Transaction::new().when(same).put(keys::topic(topic.id), keys::encode_topic(&stored))))
}

/// Changes dynamic settings of a node, and of all.
pub(crate) fn settings(
    node: NodeId,
    decide: &mut DecideSettings,
    mode: Mode,
    setting: &Setting<'_>,
) -> Plan<Result<(), AdminError>> {
    match settings_step(node, decide, setting.image) {
        Err(error) => Plan::Answer(Err(error)),
        Ok(step) if mode == Mode::Validate || step.operations.is_empty() => Plan::Answer(Ok(())),
        Ok(step) => Plan::write(vec![step], Ok(())),
    }
}

fn settings_step(node: NodeId, decide: &mut DecideSettings, image: &Image) -> Result<Transaction, AdminError> {
    let before = image.settings_of(node);
    let after = config::apply_broker_changes(&before, &decide(&before)?);
    check_defaults(image, &after)?;
    let mut transaction = Transaction::new();
    let names: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    for name in names.into_iter().filter(|name| before.get(*name) != after.get(*name)) {
        let key = setting_key(node, name);
        let revision = image.settings.get(&key).map_or(0, |held| held.revision);
        transaction.require(Compare::Modified(keys::setting(&key), revision));
        transaction = match after.get(name) {
            Some(value) => transaction.put(keys::setting(&key), keys::encode_setting(value)),
            None => transaction.delete(keys::setting(&key)),
        };
    }
    if transaction.fits() {
        return Ok(transaction);
    }
    let text = format!("more than {TRANSACTION_OPERATIONS_MAX} settings cannot be changed at once");
    error(AdminCode::InvalidRequest, text)
}

/// Where a setting is kept: those with a slash in their name are of all nodes.
pub(crate) fn setting_key(node: NodeId, name: &str) -> SettingKey {
    SettingKey { node: (!name.contains('/')).then_some(node), name: name.to_owned() }
}

/// Checks that every topic can follow changed defaults. One that made no sense before is let pass.
fn check_defaults(image: &Image, settings: &BTreeMap<String, String>) -> Result<(), AdminError> {
    let before = image.topic_defaults();
    let after = config::topic_defaults(image.started_defaults(), settings);
    if after == *before {
        return Ok(());
    }
    if let Err(reason) = config::TopicConfig::parse(&after, &BTreeMap::new()) {
        return error(AdminCode::InvalidConfig, reason);
    }
    for topic in image.topics.values().filter(|topic| !topic.configs.is_empty()) {
        if let Err(reason) = config::TopicConfig::parse(&after, &topic.configs)
            && config::TopicConfig::parse(before, &topic.configs).is_ok()
        {
            return error(AdminCode::InvalidConfig, format!("topic {} could not follow: {reason}", topic.name));
        }
    }
    Ok(())
}

/// Takes the next block of producer ids.
pub(crate) fn producer_ids(setting: &Setting<'_>) -> Plan<ProducerIds> {
    let held = &setting.image.producer_ids;
    let step = Transaction::new()
        .when(Compare::Modified(keys::PRODUCER_IDS.to_owned(), held.revision))
        .put(keys::PRODUCER_IDS.to_owned(), keys::encode_integer(held.value + i64::from(PRODUCER_ID_BLOCK)));
    Plan::write(vec![step], ProducerIds { first: held.value, count: PRODUCER_ID_BLOCK })
}
