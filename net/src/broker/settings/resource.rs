//! Resources that have settings, as DescribeConfigs and the two ways to alter settings name them.

use std::collections::{BTreeMap, HashMap};

use kafka_protocol::{ResponseError, messages::BrokerId, protocol::StrBytes};
use millrace_engine::{api::ConfigChange, config::ALL_BROKERS_PREFIX};

use crate::{
    broker::{
        cluster::Whose,
        config::NetConfig,
        context::{Context, Operation},
        settings::{broker, client_metrics, group},
    },
    coordinator::group::KEPT_GROUPS,
    errors::{ApiError, check_topic_name, not_found},
    kept_settings::{KeptSettings, is_kept},
};

/// The wire's number of a topic resource.
pub(crate) const TOPIC: i8 = 2;
/// The wire's number of a broker resource.
pub(crate) const BROKER: i8 = 4;
/// The wire's number of the loggers of a broker.
pub(crate) const BROKER_LOGGER: i8 = 8;
/// The wire's number of a subscription to clients' metrics.
pub(crate) const CLIENT_METRICS: i8 = 16;
/// The wire's number of a group resource.
pub(crate) const GROUP: i8 = 32;

/// The settings of one resource shall change.
#[derive(Debug, Clone)]
pub(crate) enum Alteration {
    /// Exactly these changes.
    Incremental(Vec<ConfigChange>),
    /// To these, all others back to their defaults.
    Replacement(Vec<(String, String)>),
}

/// Refuses a resource type.
pub(crate) fn unknown_type(resource_type: i8) -> ApiError {
    let reason = match resource_type {
        BROKER_LOGGER => "Log levels cannot be changed while the broker runs.".to_owned(),
        other => format!("Unknown resource type {other}"),
    };
    ApiError::new(ResponseError::InvalidRequest, reason)
}

/// One resource of a request to alter settings.
pub(crate) struct Asked {
    pub(crate) resource_type: i8,
    pub(crate) name: StrBytes,
    /// Names of the settings, as they were given.
    pub(crate) settings: Vec<StrBytes>,
    /// What shall be done, unless that makes no sense.
    pub(crate) alteration: Result<Alteration, ApiError>,
}

/// Alters the settings of each resource, or only checks whether that could be done; answers in the same order.
pub(crate) async fn alter_all(
    context: &Context,
    asked: Vec<Asked>,
    validate_only: bool,
) -> Vec<(i8, StrBytes, Option<ApiError>)> {
    let mut counts: HashMap<_, usize> = HashMap::new();
    for resource in &asked {
        *counts.entry((resource.resource_type, resource.name.clone())).or_default() += 1;
    }
    let mut answers = Vec::with_capacity(asked.len());
    for Asked { resource_type, name, settings, alteration } in asked {
        let outcome = if counts[&(resource_type, name.clone())] > 1 {
            Err(ApiError::new(ResponseError::InvalidRequest, "Each resource must appear at most once."))
        } else {
            match check_no_duplicates(settings).and(alteration) {
                Ok(alteration) => alter(context, (resource_type, &name), alteration, validate_only).await,
                Err(error) => Err(error),
            }
        };
        answers.push((resource_type, name, outcome.err()));
    }
    answers
}

/// Refuses settings that are named twice.
fn check_no_duplicates(mut names: Vec<StrBytes>) -> Result<(), ApiError> {
    names.sort_unstable();
    match names.windows(2).any(|pair| pair[0] == pair[1]) {
        true => Err(ApiError::new(ResponseError::InvalidRequest, "Error due to duplicate config keys")),
        false => Ok(()),
    }
}

/// The value of a setting that needs one.
pub(crate) fn given(name: &str, value: Option<&StrBytes>) -> Result<String, ApiError> {
    let refused = || ApiError::new(ResponseError::InvalidRequest, format!("Null value not supported for : {name}"));
    value.map(ToString::to_string).ok_or_else(refused)
}

async fn alter(
    context: &Context,
    (resource_type, name): (i8, &str),
    alteration: Alteration,
    validate_only: bool,
) -> Result<(), ApiError> {
    authorize(context, (resource_type, name), Operation::AlterConfigs)?;
    match resource_type {
        TOPIC => alter_topic(context, name, alteration, validate_only).await,
        BROKER => {
            let whose = whose(context, name)?;
            let level = if name.is_empty() { ALL_BROKERS_PREFIX } else { "" };
            alter_broker(context, (whose, level), alteration, validate_only).await
        }
        CLIENT_METRICS => alter_client_metrics(context, name, alteration, validate_only).await,
        GROUP => alter_group(context, name, alteration, validate_only).await,
        other => Err(unknown_type(other)),
    }
}

/// Whether that may be done with the settings of a resource: of all that are neither topics nor groups, on the cluster.
pub(crate) fn authorize(
    context: &Context,
    (resource_type, name): (i8, &str),
    operation: Operation,
) -> Result<(), ApiError> {
    match resource_type {
        TOPIC => context.topic_name(name, operation)?,
        GROUP => drop(context.group(name, operation)?),
        BROKER | BROKER_LOGGER | CLIENT_METRICS => drop(context.cluster(operation)?),
        _ => {}
    }
    Ok(())
}

/// The changes that are asked for, given what is set.
fn changes(set: &BTreeMap<String, String>, alteration: Alteration) -> Vec<ConfigChange> {
    match alteration {
        // To delete what is not set changes nothing, known or not.
        Alteration::Incremental(mut changes) => {
            changes.retain(|change| match change {
                ConfigChange::Delete(name) => set.contains_key(name),
                _ => true,
            });
            changes
        }
        Alteration::Replacement(settings) => {
            let dropped = set.keys().filter(|name| settings.iter().all(|(kept, _)| kept != *name));
            let dropped: Vec<_> = dropped.map(|name| ConfigChange::Delete(name.clone())).collect();
            let set = settings.into_iter().map(|(name, value)| ConfigChange::Set(name, value));
            dropped.into_iter().chain(set).collect()
        }
    }
}

/// The same change of a setting that is kept under another name.
fn renamed(change: ConfigChange, rename: impl Fn(&str) -> String) -> ConfigChange {
    match change {
        ConfigChange::Set(name, value) => ConfigChange::Set(rename(&name), value),
        ConfigChange::Delete(name) => ConfigChange::Delete(rename(&name)),
        ConfigChange::Append(name, value) => ConfigChange::Append(rename(&name), value),
        ConfigChange::Subtract(name, value) => ConfigChange::Subtract(rename(&name), value),
    }
}

fn not_a_list(name: &str) -> ApiError {
    let reason = format!("{name} is not a list: it can be set, but not appended to or subtracted from");
    ApiError::new(ResponseError::InvalidConfig, reason)
}

/// Groups and subscriptions need not be there to have settings. They are checked together, where changes are made one
/// after the other.
async fn alter_kept(
    context: &Context,
    (kept, name): (KeptSettings, &str),
    alteration: Alteration,
    validate_only: bool,
    check: impl Fn(&BTreeMap<String, String>) -> Result<(), ApiError> + Send + 'static,
) -> Result<(), ApiError> {
    let name = name.to_owned();
    let decide = move |all: &BTreeMap<String, String>| {
        let mut own = kept.among(all, &name);
        let changes = changes(&own, alteration.clone());
        for change in &changes {
            match change {
                ConfigChange::Set(setting, value) => drop(own.insert(setting.clone(), value.clone())),
                ConfigChange::Delete(setting) => drop(own.remove(setting)),
                ConfigChange::Append(setting, _) | ConfigChange::Subtract(setting, _) => {
                    let reason = format!("{setting} can be set, but not appended to or subtracted from");
                    return Err(ApiError::new(ResponseError::InvalidConfig, reason));
                }
            }
        }
        check(&own)?;
        let changes = changes.into_iter().map(|change| renamed(change, |setting| kept.name(&name, setting)));
        Ok(changes.collect())
    };
    context.administration().change_settings(Whose::Here, validate_only, decide).await
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
    let refuse = |reason| ApiError::new(ResponseError::InvalidConfig, reason);
    let settings = context.config().group_settings().map_err(|error| refuse(error.to_string()))?;
    let check = move |own: &BTreeMap<String, String>| group::check(&settings, own).map_err(refuse);
    alter_kept(context, (KEPT_GROUPS, name), alteration, validate_only, check).await
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
    alter_kept(context, (client_metrics::KEPT, name), alteration, validate_only, client_metrics::check).await
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
    check_topic_name(name)?;
    let unknown = |error| not_found(error, format!("The topic '{name}' does not exist."));
    let topic = context.topic(name, Operation::AlterConfigs).map_err(unknown)?;
    let changes = changes(&topic.overrides, alteration);
    context.administration().alter_topic(topic.id, changes, validate_only).await
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
    if !context.view().is_here(BrokerId(id)) {
        let expected = context.engine().node_id();
        return refuse(format!("Unexpected broker id, expected {expected}, but received {id}"));
    }
    Ok(())
}

/// Whose settings a broker resource names: any node's settings can be changed through any other.
fn whose(context: &Context, name: &str) -> Result<Whose, ApiError> {
    let id = name.parse().ok().filter(|id| *id != context.engine().node_id());
    match id {
        Some(id) if context.view().has(BrokerId(id)) => Ok(Whose::Node(id)),
        _ => check_broker(context, name).map(|()| Whose::Here),
    }
}

/// Alters the settings of one level: those of one node, or the defaults of all brokers, by what their names are kept
/// with.
async fn alter_broker(
    context: &Context,
    (whose, level): (Whose, &'static str),
    alteration: Alteration,
    validate_only: bool,
) -> Result<(), ApiError> {
    let config = context.config().clone();
    let must_agree = context.view().has_epochs() && level.is_empty();
    let decide = move |kept: &BTreeMap<String, String>| {
        // Only this node's own are kept under a name without a slash.
        let set = kept.iter().filter_map(|(name, value)| Some((name.strip_prefix(level)?, value)));
        let set = set.filter(|(name, _)| !is_kept(name)).map(|(name, value)| (name.to_owned(), value.clone()));
        let changes = changes(&set.collect(), alteration.clone());
        for change in &changes {
            if must_agree {
                broker::check_may_differ(change.name())?;
            }
            check_broker_change(change, &config)?;
        }
        Ok(changes.into_iter().map(|change| renamed(change, |name| format!("{level}{name}"))).collect())
    };
    context.administration().change_settings(whose, validate_only, decide).await
}

fn check_broker_change(change: &ConfigChange, config: &NetConfig) -> Result<(), ApiError> {
    match change {
        ConfigChange::Set(name, value) => {
            broker::check_is_dynamic(name, config)?;
            broker::check_value(name, value, config)
        }
        ConfigChange::Append(name, value) | ConfigChange::Subtract(name, value) => {
            if !broker::check_is_dynamic(name, config)? {
                return Err(not_a_list(name));
            }
            broker::check_value(name, value, config)
        }
        ConfigChange::Delete(_) => Ok(()),
    }
}
