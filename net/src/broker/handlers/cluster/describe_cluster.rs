//! DescribeCluster.

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, BrokerId, DescribeClusterRequest, DescribeClusterResponse,
        describe_cluster_response::DescribeClusterBroker,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        cluster,
        context::{Authorization, Context},
        table::{Api, OnDisconnect},
    },
    errors::ApiError,
    wire::api::{
        Call, call,
        shape::{BOOL, INT8, Shape},
    },
};

const SHAPE: Shape = &[BOOL, INT8.since(1), BOOL.since(2)];

/// DescribeCluster.
pub(crate) static API: Api = Api {
    key: ApiKey::DescribeCluster,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Open("Whoever may connect may know the brokers."),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

const ENDPOINT_BROKERS: i8 = 1;
const ENDPOINT_CONTROLLERS: i8 = 2;

async fn handle(context: Context, call: Call<DescribeClusterRequest>) -> DescribeClusterResponse {
    let response = DescribeClusterResponse::default().with_cluster_authorized_operations(cluster::NO_OPERATIONS);
    if let Err(error) = check_endpoint(call.body.endpoint_type) {
        return response
            .with_error_code(error.code())
            .with_error_message(error.message)
            .with_cluster_id(StrBytes::new())
            .with_controller_id(BrokerId(-1));
    }
    let view = context.view();
    let brokers = view.brokers().into_iter().map(|broker| {
        DescribeClusterBroker::default()
            .with_broker_id(broker.id)
            .with_host(broker.host)
            .with_port(broker.port)
            .with_rack(broker.rack)
    });
    let fenced = match call.body.include_fenced_brokers {
        true => view.fenced_brokers(),
        false => Vec::new(),
    };
    let fenced = fenced.into_iter().map(|(id, rack)| {
        DescribeClusterBroker::default().with_broker_id(id).with_port(-1).with_rack(rack).with_is_fenced(true)
    });
    let operations = match call.body.include_cluster_authorized_operations {
        true => context.cluster_operations(),
        false => cluster::NO_OPERATIONS,
    };
    response
        .with_cluster_id(view.id())
        .with_controller_id(view.controller())
        .with_brokers(brokers.chain(fenced).collect())
        .with_cluster_authorized_operations(operations)
}

fn check_endpoint(endpoint_type: i8) -> Result<(), ApiError> {
    match endpoint_type {
        ENDPOINT_BROKERS => Ok(()),
        ENDPOINT_CONTROLLERS => Err(ApiError::new(
            ResponseError::MismatchedEndpointType,
            "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER",
        )),
        other => {
            Err(ApiError::new(ResponseError::UnsupportedEndpointType, format!("Unsupported endpoint type {other}")))
        }
    }
}
