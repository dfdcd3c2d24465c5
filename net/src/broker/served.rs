//! The one table of APIs: key, versions, shape, handler. ApiVersions answers from it.

use crate::broker::{
    handlers::{admin, cluster, config, data, group, security, share, telemetry, transaction},
    table::Api,
};

/// Every API that is served, by rising key.
pub(crate) static TABLE: &[&Api] = &[
    &data::produce::API,
    &data::fetch::API,
    &data::list_offsets::API,
    &cluster::metadata::API,
    &group::offset_commit::API,
    &group::offset_fetch::API,
    &group::find_coordinator::API,
    &group::join_group::API,
    &group::heartbeat::API,
    &group::leave_group::API,
    &group::sync_group::API,
    &group::describe_groups::API,
    &group::list_groups::API,
    &cluster::api_versions::API,
    &admin::create_topics::API,
    &admin::delete_topics::API,
    &admin::delete_records::API,
    &transaction::init_producer_id::API,
    &data::offset_for_leader_epoch::API,
    &transaction::add_partitions_to_txn::API,
    &transaction::add_offsets_to_txn::API,
    &transaction::end_txn::API,
    &transaction::write_txn_markers::API,
    &group::txn_offset_commit::API,
    &security::acls::DESCRIBE,
    &security::acls::CREATE,
    &security::acls::DELETE,
    &config::describe_configs::API,
    &config::alter_configs::API,
    &admin::describe_log_dirs::API,
    &admin::create_partitions::API,
    &group::delete_groups::API,
    &admin::elect_leaders::API,
    &config::incremental_alter_configs::API,
    &admin::alter_partition_reassignments::API,
    &admin::list_partition_reassignments::API,
    &group::offset_delete::API,
    &security::describe_client_quotas::API,
    &security::describe_user_scram_credentials::API,
    &admin::describe_quorum::API,
    &admin::update_features::API,
    &cluster::describe_cluster::API,
    &admin::describe_producers::API,
    &admin::unregister_broker::API,
    &transaction::describe_transactions::API,
    &transaction::list_transactions::API,
    &group::consumer_group_heartbeat::API,
    &group::consumer_group_describe::API,
    &telemetry::get_telemetry_subscriptions::API,
    &telemetry::push_telemetry::API,
    &config::list_config_resources::API,
    &cluster::describe_topic_partitions::API,
    &share::heartbeat::API,
    &share::describe::API,
    &share::share_fetch::API,
    &share::share_acknowledge::API,
    &share::state_apis::INITIALIZE,
    &share::state_apis::READ,
    &share::state_apis::WRITE,
    &share::state_apis::DELETE,
    &share::state_apis::READ_SUMMARY,
    &share::describe_offsets::API,
    &share::alter_offsets::API,
    &share::delete_offsets::API,
];

/// One line of the list of what is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiListing {
    /// The API's key.
    pub key: i16,
    /// The API's name as Kafka writes it.
    pub name: String,
    /// Lowest version served.
    pub version_min: i16,
    /// Highest version served.
    pub version_max: i16,
}

/// Every API that is served, by rising key.
pub fn api_table() -> Vec<ApiListing> {
    TABLE
        .iter()
        .map(|api| ApiListing {
            key: api.key as i16,
            name: format!("{:?}", api.key),
            version_min: api.version_min,
            version_max: api.version_max,
        })
        .collect()
}

#[cfg(test)]
mod authorization;
#[cfg(test)]
mod shapes;
#[cfg(test)]
mod three_nodes;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{broker::shard::BrokerShard, wire};

    #[test]
    fn table_is_sorted_and_every_key_is_found() {
        assert!(TABLE.is_sorted_by_key(|api| api.key as i16));
        for api in TABLE {
            assert!(api.version_min <= api.version_max && api.advertised_min <= api.version_min);
            let (_, found) = wire::api::find::<BrokerShard>(api.key as i16).expect("it is in the table");
            assert!(std::ptr::eq(found, *api));
        }
        assert!([-1, 999].into_iter().all(|key| wire::api::find::<BrokerShard>(key).is_none()));
    }
}
