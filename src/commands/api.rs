//! `millrace api`: which requests are served, in which versions.

use std::io::stdout;

use clap::Args;
use kafka_protocol::messages::ApiKey;
use millrace_client::{Cluster, ClusterOptions};

use super::broker::connect_options;
use crate::{
    config::{HostPort, Span},
    failure::{Failure, Outcome},
    output::Table,
};

/// Lists every request of Kafka's protocol that is served, with its versions
///
/// By the broker that --broker names, or else by this build of millrace.
#[derive(Args, Debug)]
pub(crate) struct ApiCommand {
    /// A running broker to ask
    #[arg(short, long, value_name = "HOST:PORT")]
    broker: Option<HostPort>,
    /// How long to try
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: Span,
}

impl ApiCommand {
    pub(crate) fn run(self) -> Outcome {
        let mut table = Table::new(&["KEY", "API", "VERSIONS"]);
        for (key, min, max) in self.served()? {
            let name = ApiKey::try_from(key).map_or("-".to_owned(), |key| format!("{key:?}"));
            let versions = if min == max { min.to_string() } else { format!("{min}-{max}") };
            table.row([key.to_string(), name, versions]);
        }
        table.write(&mut stdout().lock())
    }

    fn served(&self) -> Outcome<Vec<(i16, i16, i16)>> {
        let Some(broker) = &self.broker else { return Ok(own_table()) };
        let options = ClusterOptions { brokers: vec![broker.clone().into()], connect: connect_options(self.timeout.0) };
        let mut cluster = Cluster::new(options);
        let connection = cluster.any_connection().map_err(Failure::failed)?;
        Ok(connection.versions().listed().into_iter().map(|(key, range)| (key, range.min, range.max)).collect())
    }
}

/// What this build serves.
fn own_table() -> Vec<(i16, i16, i16)> {
    millrace_net::api_table().into_iter().map(|api| (api.key, api.version_min, api.version_max)).collect()
}
