//! Which error codes a response holds, so that they can be counted: one line per API.

use kafka_protocol::messages::*;

/// A response whose errors can be counted.
pub(crate) trait ErrorCodes {
    /// Passes every error code to `each`, those of success too.
    fn each_code(&self, each: &mut dyn FnMut(i16));

    /// The codes of errors.
    fn errors(&self) -> Vec<i16> {
        let mut errors = Vec::new();
        self.each_code(&mut |code| errors.extend((code != 0).then_some(code)));
        errors
    }
}

/// Walks a response: `field` is a code, `field [ ... ]` an array whose elements are walked.
macro_rules! walk {
    ($value:expr, $each:ident,) => {};
    ($value:expr, $each:ident, $field:ident [ $($inner:tt)* ] $($rest:tt)*) => {
        for element in $value.$field.iter() {
            walk!(element, $each, $($inner)*);
        }
        walk!($value, $each, $($rest)*);
    };
    ($value:expr, $each:ident, $field:ident $($rest:tt)*) => {
        $each($value.$field);
        walk!($value, $each, $($rest)*);
    };
}

macro_rules! responses {
    ($($response:ident { $($path:tt)* })*) => {
        $(impl ErrorCodes for $response {
            fn each_code(&self, each: &mut dyn FnMut(i16)) {
                walk!(self, each, $($path)*);
            }
        })*
    };
}

responses! {
    ProduceResponse { responses [ partition_responses [ error_code ] ] }
    ListOffsetsResponse { topics [ partitions [ error_code ] ] }
    MetadataResponse { topics [ error_code partitions [ error_code ] ] error_code }
    OffsetCommitResponse { topics [ partitions [ error_code ] ] }
    TxnOffsetCommitResponse { topics [ partitions [ error_code ] ] }
    OffsetFetchResponse {
        topics [ partitions [ error_code ] ] error_code groups [ topics [ partitions [ error_code ] ] error_code ]
    }
    FindCoordinatorResponse { error_code coordinators [ error_code ] }
    JoinGroupResponse { error_code }
    HeartbeatResponse { error_code }
    LeaveGroupResponse { error_code members [ error_code ] }
    SyncGroupResponse { error_code }
    DescribeGroupsResponse { groups [ error_code ] }
    ListGroupsResponse { error_code }
    ApiVersionsResponse { error_code }
    CreateTopicsResponse { topics [ error_code ] }
    DeleteTopicsResponse { responses [ error_code ] }
    DeleteRecordsResponse { topics [ partitions [ error_code ] ] }
    InitProducerIdResponse { error_code }
    AddPartitionsToTxnResponse {
        error_code results_by_transaction [ topic_results [ results_by_partition [ partition_error_code ] ] ]
        results_by_topic_v3_and_below [ results_by_partition [ partition_error_code ] ]
    }
    AddOffsetsToTxnResponse { error_code }
    EndTxnResponse { error_code }
    WriteTxnMarkersResponse { markers [ topics [ partitions [ error_code ] ] ] }
    DescribeTransactionsResponse { transaction_states [ error_code ] }
    ListTransactionsResponse { error_code }
    OffsetForLeaderEpochResponse { topics [ partitions [ error_code ] ] }
    DescribeAclsResponse { error_code }
    CreateAclsResponse { results [ error_code ] }
    DeleteAclsResponse { filter_results [ error_code matching_acls [ error_code ] ] }
    DescribeConfigsResponse { results [ error_code ] }
    AlterConfigsResponse { responses [ error_code ] }
    DescribeLogDirsResponse { error_code results [ error_code ] }
    CreatePartitionsResponse { results [ error_code ] }
    DeleteGroupsResponse { results [ error_code ] }
    ElectLeadersResponse { error_code replica_election_results [ partition_result [ error_code ] ] }
    IncrementalAlterConfigsResponse { responses [ error_code ] }
    AlterPartitionReassignmentsResponse { error_code responses [ partitions [ error_code ] ] }
    ListPartitionReassignmentsResponse { error_code }
    OffsetDeleteResponse { error_code topics [ partitions [ error_code ] ] }
    DescribeClientQuotasResponse { error_code }
    DescribeUserScramCredentialsResponse { error_code results [ error_code ] }
    DescribeQuorumResponse { error_code topics [ partitions [ error_code ] ] }
    UpdateFeaturesResponse { error_code results [ error_code ] }
    DescribeClusterResponse { error_code }
    DescribeProducersResponse { topics [ partitions [ error_code ] ] }
    UnregisterBrokerResponse { error_code }
    ConsumerGroupHeartbeatResponse { error_code }
    ConsumerGroupDescribeResponse { groups [ error_code ] }
    ListConfigResourcesResponse { error_code }
    DescribeTopicPartitionsResponse { topics [ error_code partitions [ error_code ] ] }
    ShareGroupHeartbeatResponse { error_code }
    ShareGroupDescribeResponse { groups [ error_code ] }
    AlterShareGroupOffsetsResponse { error_code responses [ partitions [ error_code ] ] }
    DeleteShareGroupOffsetsResponse { error_code responses [ error_code ] }
    GetTelemetrySubscriptionsResponse { error_code }
    PushTelemetryResponse { error_code }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::metadata_response::{MetadataResponsePartition, MetadataResponseTopic};

    use super::*;

    #[test]
    fn every_error_of_a_response_is_found() {
        let partition = |code| MetadataResponsePartition::default().with_error_code(code);
        let topic = MetadataResponseTopic::default().with_error_code(3);
        let topic = topic.with_partitions(vec![partition(0), partition(5), partition(6)]);
        assert_eq!(MetadataResponse::default().with_topics(vec![topic]).errors(), [3, 5, 6]);
        assert!(MetadataResponse::default().errors().is_empty());
        assert_eq!(HeartbeatResponse::default().with_error_code(25).errors(), [25]);
    }
}
