//! `millrace config`: settings of topics, brokers and groups.

use std::io::{Write, stdout};

use clap::{Args, Subcommand};
use millrace_client::{Resource, ResourceKind};
use millrace_engine::config::{self as topic_config, Effect};

use super::broker::BrokerArgs;
use crate::{
    config::Setting,
    failure::{Failure, Outcome},
    output::Table,
};

/// Shows and changes settings of topics, brokers and groups
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

const EXAMPLES: &str = "\
Examples:
  millrace config describe --topic greetings
  millrace config describe --node 1 --docs
  millrace config alter --topic greetings --set flush.messages=10000
  millrace config alter --all-nodes --set log.retention.ms=86400000
  millrace config alter --group readers --set consumer.session.timeout.ms=50000
  millrace config known";

#[derive(Debug, Subcommand)]
enum Action {
    /// Show settings, their values and where these come from
    Describe(Describe),
    /// Set settings, or put them back to their defaults
    Alter(Alter),
    /// List every topic setting that millrace knows, and what it does here; asks no broker
    Known,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Whose {
    /// Settings of a topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Settings of a group
    #[arg(long, value_name = "ID")]
    group: Option<String>,
    /// Settings of one broker
    #[arg(long, value_name = "ID")]
    node: Option<i32>,
    /// Settings that all brokers share
    #[arg(long)]
    all_nodes: bool,
}

#[derive(Args, Debug)]
struct Describe {
    #[command(flatten)]
    whose: Whose,
    /// Only what was set, not what is inherited
    #[arg(long)]
    own: bool,
    /// Say what each setting means
    #[arg(long)]
    docs: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args, Debug)]
struct Alter {
    #[command(flatten)]
    whose: Whose,
    /// Setting to change; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Setting>,
    /// Setting to put back to its default; may be given several times
    #[arg(long, value_name = "KEY")]
    delete: Vec<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

impl ConfigCommand {
    pub(crate) fn run(self) -> Outcome {
        match self.action {
            Action::Describe(describe) => describe.run(),
            Action::Alter(alter) => alter.run(),
            Action::Known => known(),
        }
    }
}

/// What this build makes of each topic setting.
fn known() -> Outcome {
    let mut out = stdout().lock();
    for key in topic_config::keys() {
        let default = if key.default.is_empty() { "(empty)" } else { key.default };
        writeln!(out, "{}  default {default}", key.name)?;
        writeln!(out, "    {}", key.documentation)?;
        match key.effect {
            Effect::Full => {}
            Effect::None { reason } => writeln!(out, "    No effect: {reason}.")?,
            Effect::Only { reason, .. } => writeln!(out, "    Restricted: {reason}.")?,
        }
    }
    Ok(())
}

impl Whose {
    fn resource(&self) -> Resource {
        match (&self.topic, &self.group, self.node) {
            (Some(topic), ..) => Resource::topic(topic),
            (None, Some(id), _) => Resource { kind: ResourceKind::Group, name: id.clone() },
            (None, None, Some(id)) => Resource { kind: ResourceKind::Broker, name: id.to_string() },
            (None, None, None) => Resource { kind: ResourceKind::Broker, name: String::new() },
        }
    }
}

impl Describe {
    fn run(self) -> Outcome {
        let found = self.broker.cluster().describe_config(&self.whose.resource(), self.docs);
        let entries = found.map_err(Failure::failed)?;
        let mut out = stdout().lock();
        let shown = entries.iter().filter(|entry| entry.is_own || !self.own);
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        if self.docs {
            for entry in shown {
                writeln!(out, "{}={}  ({})", entry.name, value(&entry.value), entry.source)?;
                writeln!(out, "    {}", entry.documentation.as_deref().unwrap_or("no documentation"))?;
            }
            return Ok(());
        }
        let mut table = Table::new(&["NAME", "VALUE", "FROM", ""]);
        for entry in shown {
            let fixed = if entry.read_only { "read-only" } else { "" };
            table.row([entry.name.clone(), value(&entry.value), entry.source.to_owned(), fixed.to_owned()]);
        }
        table.write(&mut out)
    }
}

impl Alter {
    fn run(self) -> Outcome {
        if self.set.is_empty() && self.delete.is_empty() {
            return Err(Failure::usage("nothing to change: give --set or --delete"));
        }
        let resource = self.whose.resource();
        let set: Vec<_> = self.set.into_iter().map(Into::into).collect();
        self.broker.cluster().alter_config(&resource, &set, &self.delete).map_err(Failure::failed)
    }
}
