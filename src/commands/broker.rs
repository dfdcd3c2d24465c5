//! How commands are told which broker to talk to.

use std::time::Duration;

use clap::Args;
use kafka_protocol::protocol::StrBytes;
use millrace_client::{Cluster, ClusterOptions, ConnectOptions};

use crate::config::{HostPort, Span};

/// Options of every command that talks to a broker.
#[derive(Args, Clone, Debug)]
pub(crate) struct BrokerArgs {
    /// A broker of the cluster; several with commas between, in case one is down
    #[arg(
        short,
        long,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9092",
        value_delimiter = ',',
        help_heading = "Connection"
    )]
    broker: Vec<HostPort>,

    /// How long to try
    #[arg(long, value_name = "TIME", default_value = "30s", help_heading = "Connection")]
    timeout: Span,
}

impl BrokerArgs {
    /// The cluster that these options mean. Connects to nobody yet.
    pub(crate) fn cluster(&self) -> Cluster {
        self.cluster_within(self.timeout.0)
    }

    /// The same, for questions that are not waited for longer than that.
    pub(crate) fn cluster_within(&self, most: Duration) -> Cluster {
        let brokers = self.broker.iter().cloned().map(Into::into).collect();
        Cluster::new(ClusterOptions { brokers, connect: connect_options(self.patience(most)) })
    }

    /// How long to wait for something that need not be waited for longer than that.
    pub(crate) fn patience(&self, most: Duration) -> Duration {
        self.timeout.0.min(most)
    }
}

/// How every command connects.
pub(crate) fn connect_options(timeout: Duration) -> ConnectOptions {
    ConnectOptions { client_id: StrBytes::from_static_str("millrace"), timeout }
}
