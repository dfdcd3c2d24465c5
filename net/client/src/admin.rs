//! Topics and settings: create, delete, grow, describe, alter.

use std::collections::BTreeMap;

use kafka_protocol::{
    messages::{
        CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
        IncrementalAlterConfigsRequest,
        create_partitions_request::CreatePartitionsTopic,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::DescribeConfigsResourceResult,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
    protocol::StrBytes,
};

use crate::{
    cluster::Cluster,
    error::ClientError,
    error_code::{UNKNOWN_SERVER_ERROR, UNKNOWN_TOPIC_OR_PARTITION},
    requests::topic_name,
};

/// A topic to create.
#[derive(Clone, Debug)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// `None`: the broker's default.
    pub partitions: Option<i32>,
    /// `None`: the broker's default.
    pub replicas: Option<i16>,
    /// Names and values.
    pub settings: Vec<(String, String)>,
}

/// What has settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// A topic.
    Topic,
    /// A broker, or all of them.
    Broker,
    /// A group.
    Group,
}

/// One topic, broker or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Which of them.
    pub kind: ResourceKind,
    /// A topic's name, a broker's id or a group's; of brokers, the empty name means all of them.
    pub name: String,
}

impl Resource {
    /// The topic of that name.
    pub fn topic(name: &str) -> Self {
        Self { kind: ResourceKind::Topic, name: name.to_owned() }
    }

    fn wire_kind(&self) -> i8 {
        match self.kind {
            ResourceKind::Topic => 2,
            ResourceKind::Broker => 4,
            ResourceKind::Group => 32,
        }
    }

    fn describe(&self) -> String {
        match (self.kind, self.name.as_str()) {
            (ResourceKind::Topic, name) => format!("topic '{name}'"),
            (ResourceKind::Group, id) => format!("group '{id}'"),
            (ResourceKind::Broker, "") => "all brokers".to_owned(),
            (ResourceKind::Broker, id) => format!("broker {id}"),
        }
    }
}

/// A setting as a broker describes it.
#[derive(Clone, Debug)]
pub struct ConfigEntry {
    /// Its name.
    pub name: String,
    /// `None` if it is not set, or a secret.
    pub value: Option<String>,
    /// Whether it was set for this topic, or for this or all brokers, and not inherited.
    pub is_own: bool,
    /// Where the value comes from, in a word or two.
    pub source: &'static str,
    /// Whether it cannot be changed.
    pub read_only: bool,
    /// What it does, if that was asked for and the broker says it.
    pub documentation: Option<String>,
}

const SET: i8 = 0;
const DELETE: i8 = 1;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl Cluster {
    /// Creates a topic.
    pub fn create_topic(&mut self, spec: &TopicSpec, validate_only: bool) -> Result<(), ClientError> {
        let setting = |(name, value): &(String, String)| {
            CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
        };
        let what = format!("topic '{}'", spec.name);
        self.retry(|cluster| {
            let timeout_ms = cluster.timeout_ms();
            let response = cluster.controller(|version| {
                // Before version 4 there is no word for the broker's default.
                let default = if version < 4 { 1 } else { -1 };
                let topic = CreatableTopic::default()
                    .with_name(topic_name(&spec.name))
                    .with_num_partitions(spec.partitions.unwrap_or(default.into()))
                    .with_replication_factor(spec.replicas.unwrap_or(default))
                    .with_configs(spec.settings.iter().map(setting).collect());
                CreateTopicsRequest::default()
                    .with_topics(vec![topic])
                    .with_timeout_ms(timeout_ms)
                    .with_validate_only(validate_only)
            })?;
            one(&what, response.topics.first().map(|t| (t.error_code, t.error_message.as_deref())))
        })
    }

    /// Deletes a topic.
    pub fn delete_topic(&mut self, name: &str) -> Result<(), ClientError> {
        let what = format!("topic '{name}'");
        self.retry(|cluster| {
            let timeout_ms = cluster.timeout_ms();
            let response = cluster.controller(|_| {
                DeleteTopicsRequest::default().with_topic_names(vec![topic_name(name)]).with_timeout_ms(timeout_ms)
            })?;
            one(&what, response.responses.first().map(|t| (t.error_code, t.error_message.as_deref())))
        })
    }

    /// Gives a topic more partitions.
    pub fn create_partitions(&mut self, name: &str, count: i32) -> Result<(), ClientError> {
        let what = format!("topic '{name}'");
        self.retry(|cluster| {
            let timeout_ms = cluster.timeout_ms();
            let topic =
                CreatePartitionsTopic::default().with_name(topic_name(name)).with_count(count).with_assignments(None);
            let response = cluster.controller(|_| {
                CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(timeout_ms)
            })?;
            one(&what, response.results.first().map(|t| (t.error_code, t.error_message.as_deref())))
        })
    }

    /// Settings of a topic or broker, sorted by name.
    pub fn describe_config(
        &mut self,
        resource: &Resource,
        documentation: bool,
    ) -> Result<Vec<ConfigEntry>, ClientError> {
        let what = resource.describe();
        let found = self.retry(|cluster| {
            let request = |version| {
                let resource = DescribeConfigsResource::default()
                    .with_resource_type(resource.wire_kind())
                    .with_resource_name(text(&resource.name))
                    .with_configuration_keys(None);
                DescribeConfigsRequest::default()
                    .with_resources(vec![resource])
                    .with_include_documentation(documentation && version >= 3)
            };
            let response = cluster.ask_for_settings(resource, request)?;
            let first = response.results.into_iter().next();
            let outcome = first.as_ref().map(|r| (r.error_code, r.error_message.as_deref()));
            one(&what, outcome)?;
            Ok(first.map(|r| r.configs).unwrap_or_default())
        });
        let mut entries: Vec<ConfigEntry> = found?.into_iter().map(|entry| entry_of(entry, resource.kind)).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One setting of several topics, by the topic's name. Topics that are gone have none.
    pub fn topic_settings(&mut self, topics: &[String], name: &str) -> Result<BTreeMap<String, String>, ClientError> {
        let response = self.retry(|cluster| {
            cluster.any(|_| {
                let resources = topics.iter().map(|topic| {
                    DescribeConfigsResource::default()
                        .with_resource_type(Resource::topic(topic).wire_kind())
                        .with_resource_name(text(topic))
                        .with_configuration_keys(Some(vec![text(name)]))
                });
                DescribeConfigsRequest::default().with_resources(resources.collect())
            })
        })?;
        let found = response.results.into_iter().filter_map(|result| {
            let value = result.configs.into_iter().find(|config| &*config.name == name)?.value?;
            Some((result.resource_name.to_string(), value.to_string()))
        });
        Ok(found.collect())
    }

    /// Sets and deletes settings of a topic or broker.
    pub fn alter_config(
        &mut self,
        resource: &Resource,
        set: &[(String, String)],
        delete: &[String],
    ) -> Result<(), ClientError> {
        let what = resource.describe();
        let set = set.iter().map(|(name, value)| (name.as_str(), SET, Some(value.as_str())));
        let changes: Vec<_> = set.chain(delete.iter().map(|key| (key.as_str(), DELETE, None))).collect();
        let change = |(name, operation, value): &(&str, i8, Option<&str>)| {
            AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(*operation)
                .with_value(value.map(text))
        };
        self.retry(|cluster| {
            let request = |_| {
                let resource = AlterConfigsResource::default()
                    .with_resource_type(resource.wire_kind())
                    .with_resource_name(text(&resource.name))
                    .with_configs(changes.iter().map(change).collect());
                IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
            };
            let response = cluster.ask_for_settings(resource, request)?;
            let outcome = response.responses.first().map(|r| (r.error_code, r.error_message.as_deref()));
            one(&what, outcome)
        })
    }

    /// Settings of one broker are that broker's business; of topics and of all brokers, anybody's.
    fn ask_for_settings<R: kafka_protocol::protocol::Request>(
        &mut self,
        resource: &Resource,
        request: impl FnOnce(i16) -> R,
    ) -> Result<R::Response, ClientError> {
        match (resource.kind, resource.name.parse()) {
            (ResourceKind::Broker, Ok(id)) => self.broker(id, request),
            _ => self.any(request),
        }
    }
}

/// The outcome of a request for one thing.
fn one(what: &str, answer: Option<(i16, Option<&str>)>) -> Result<(), ClientError> {
    let (code, message) = answer.unwrap_or((UNKNOWN_SERVER_ERROR, Some("the broker's answer is empty")));
    ClientError::check(what, code, message).map_err(|error| error.settled_if(UNKNOWN_TOPIC_OR_PARTITION))
}

fn entry_of(found: DescribeConfigsResourceResult, kind: ResourceKind) -> ConfigEntry {
    let source = match found.config_source {
        1 => "topic",
        2 => "broker",
        3 => "all brokers",
        4 => "broker's file",
        5 => "default",
        8 => "group",
        _ => "other",
    };
    ConfigEntry {
        name: found.name.to_string(),
        value: found.value.map(|value| value.to_string()),
        is_own: match kind {
            ResourceKind::Topic => found.config_source == 1,
            ResourceKind::Group => found.config_source == 8,
            ResourceKind::Broker => matches!(found.config_source, 2 | 3),
        },
        source,
        read_only: found.read_only,
        documentation: found.documentation.map(|text| text.to_string()),
    }
}
