//! Resources that have settings, as DescribeConfigs and the two ways to alter settings name them.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use millrace_engine::{api::ConfigChange, engine::Topic};

use crate::{
    api::Context,
    broker_config, cluster,
    errors::{ApiError, topic_error},
    kept_settings::{KeptSettings, is_kept},
    share::{group_config, here},
    telemetry,
};

/// The wire's number of a topic resource.
pub(crate) const TOPIC: i8 = 2;
/// The wire's number of a broker resource.
pub(crate) const BROKER: i8 = 4;

/// The wire's number of a subscription of client metrics.
pub(crate) const CLIENT_METRICS: i8 = 16;

/// The wire's number of a group resource.
pub(crate) const GROUP: i8 = 32;

/// The settings of one resource shall change.
#[derive(Debug)]
pub(crate) enum Alteration {
    /// Exactly these changes.
    Incremental(Vec<ConfigChange>),
    /// To these, all others back to their defaults.
    Replacement(Vec<(String, String)>),
}

/// Refuses a resource type.
pub(crate) fn unknown_type(resource_type: i8) -> ApiError {
    ApiError::new(ResponseError::InvalidRequest, format!("Unknown resource type {resource_type}"))
}

/// Refuses settings that are named twice.
pub(crate) fn check_no_duplicates<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ApiError> {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    match names.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(ApiError::new(ResponseError::InvalidRequest, "Error due to duplicate config keys")),
        false => Ok(()),
    }
}

/// Refuses a setting without a value.
pub(crate) fn null_value(name: &str) -> ApiError {
    ApiError::new(ResponseError::InvalidRequest, format!("Null value not supported for : {name}"))
}

/// Alters the settings of a resource, or only checks whether that could be done.
pub(crate) async fn alter(
    context: &Context,
    (resource_type, name): (i8, &str),
    alteration: Alteration,
    validate_only: bool,
) -> Result<(), ApiError> {
    match resource_type {
        TOPIC => alter_topic(context, name, alteration, validate_only).await,
        BROKER => {
            check_broker(context, name)?;
            alter_broker(context, alteration, validate_only).await
        }
        CLIENT_METRICS => alter_client_metrics(context, name, alteration, validate_only).await,
        GROUP => alter_group(context, name, alteration, validate_only).await,
        other => Err(unknown_type(other)),
    }
}

/// Groups and subscriptions need not be there to have settings.
async fn alter_kept(
    context: &Context,
    (kept, name): (KeptSettings, &str),
    alteration: Alteration,
    validate_only: bool,
    check: impl AsyncFnOnce(&BTreeMap<String, String>) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let engine = context.engine();
    let mut own = kept.of(engine, name);
    let mut changes = Vec::new();
    match alteration {
        Alteration::Incremental(asked) => {
            for change in asked {
                match change {
                    ConfigChange::Set(setting, value) => {
                        changes.push(ConfigChange::Set(kept.name(name, &setting), value.clone()));
                        own.insert(setting, value);
                    }
                    ConfigChange::Delete(setting) => {
                        if own.remove(&setting).is_some() {
                            changes.push(ConfigChange::Delete(kept.name(name, &setting)));
                        }
                    }
                    ConfigChange::Append(setting, _) | ConfigChange::Subtract(setting, _) => {
                        let reason = format!("{setting} can be set, but not appended to or subtracted from");
                        return Err(ApiError::new(ResponseError::InvalidConfig, reason));
                    }
                }
            }
        }
        Alteration::Replacement(settings) => {
            let settings: BTreeMap<_, _> = settings.into_iter().collect();
            let dropped = own.keys().filter(|setting| !settings.contains_key(*setting));
            changes.extend(dropped.map(|setting| ConfigChange::Delete(kept.name(name, setting))));
            let set =
                settings.iter().map(|(setting, value)| ConfigChange::Set(kept.name(name, setting), value.clone()));
            changes.extend(set);
            own = settings;
        }
    }
    check(&own).await?;
    if validate_only || changes.is_empty() {
        return Ok(());
    }
    let altered = engine.alter_broker_settings(changes).await;
    altered.map_err(|error| topic_error(&error))
}

async fn alter_group(
    context: &Context,
    name: &str,
    alteration: Alteration,
    validate_only: bool,
) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::new(ResponseError::InvalidRequest, "Default group resources are not allowed."));
    }
    let check = async |own: &BTreeMap<String, String>| {
        let checked = here(context.engine()).await.settings().check_group(own);
        checked.map_err(|reason| ApiError::new(ResponseError::InvalidConfig, reason))
    };
    alter_kept(context, (group_config::KEPT, name), alteration, validate_only, check).await
}

async fn alter_client_metrics(
    context: &Context,
    name: &str,
    alteration: Alteration,
    validate_only: bool,
) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::new(ResponseError::InvalidRequest, "Subscription name can't be empty"));
    }
    let check = async |own: &BTreeMap<String, String>| telemetry::config::check(own);
    alter_kept(context, (telemetry::config::KEPT, name), alteration, validate_only, check).await
}

async fn alter_topic(
    context: &Context,
    name: &str,
    alteration: Alteration,
    validate_only: bool,
) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::new(ResponseError::InvalidRequest, "Default topic resources are not allowed."));
    }
    let topics = context.engine().topics();
    let topic = topics.by_name.get(name).ok_or_else(|| {
        ApiError::new(ResponseError::UnknownTopicOrPartition, format!("The topic '{name}' does not exist."))
    })?;
    let changes = topic_changes(topic, alteration);
    let altered = context.engine().alter_topic(topic.id, changes, validate_only).await;
    altered.map_err(|error| topic_error(&error))
}

fn topic_changes(topic: &Topic, alteration: Alteration) -> Vec<ConfigChange> {
    match alteration {
        // To delete what is not set changes nothing, known or not.
        Alteration::Incremental(mut changes) => {
            changes.retain(|change| match change {
                ConfigChange::Delete(name) => topic.overrides.contains_key(name),
                _ => true,
            });
            changes
        }
        Alteration::Replacement(settings) => {
            let dropped = topic.overrides.keys().filter(|name| settings.iter().all(|(kept, _)| kept != *name));
            let dropped: Vec<_> = dropped.map(|name| ConfigChange::Delete(name.clone())).collect();
            let set = settings.into_iter().map(|(name, value)| ConfigChange::Set(name, value));
            dropped.into_iter().chain(set).collect()
        }
    }
}

/// A broker resource is one of the advertised brokers, or all of them if its name is empty.
pub(crate) fn check_broker(context: &Context, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Ok(());
    }
    let refuse = |reason| Err(ApiError::new(ResponseError::InvalidRequest, reason));
    let Ok(id) = name.parse::<i32>() else {
        return refuse(format!("Node id must be an integer, but it is: {name}"));
    };
    let brokers = cluster::broker_ids(context.engine(), context.config());
    if brokers.iter().all(|broker| broker.0 != id) {
        let expected = context.engine().node_id();
        return refuse(format!("Unexpected broker id, expected {expected}, but received {id}"));
    }
    Ok(())
}

async fn alter_broker(context: &Context, alteration: Alteration, validate_only: bool) -> Result<(), ApiError> {
    let set = context.engine().broker_settings();
    let changes = match alteration {
        Alteration::Incremental(changes) => changes,
        Alteration::Replacement(settings) => {
            let dropped = set.keys().filter(|name| !is_kept(name));
            let dropped = dropped.filter(|name| settings.iter().all(|(kept, _)| kept != *name));
            let dropped: Vec<_> = dropped.map(|name| ConfigChange::Delete(name.clone())).collect();
            let set = settings.into_iter().map(|(name, value)| ConfigChange::Set(name, value));
            dropped.into_iter().chain(set).collect()
        }
    };
    for change in &changes {
        match change {
            ConfigChange::Set(name, value) => {
                broker_config::check_is_dynamic(name, context.config())?;
                broker_config::check_value(name, value)?;
            }
            ConfigChange::Append(name, _) | ConfigChange::Subtract(name, _) => {
                broker_config::check_is_dynamic(name, context.config())?;
                let reason = format!("{name} is not a list: it can be set, but not appended to or subtracted from");
                return Err(ApiError::new(ResponseError::InvalidConfig, reason));
            }
            ConfigChange::Delete(name) if is_kept(name) => {
                return Err(ApiError::new(ResponseError::InvalidConfig, format!("Unknown broker config name: {name}")));
            }
            ConfigChange::Delete(_) => {}
        }
    }
    if validate_only {
        return Ok(());
    }
    let altered = context.engine().alter_broker_settings(changes).await;
    altered.map_err(|error| topic_error(&error))
}
