//! AddOffsetsToTxn: the offsets of a group come into a transaction, by the partition that the group is kept in.

use kafka_protocol::{
    ResponseError,
    messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, ApiKey},
};

use super::known_error;
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::{
        group::{Groups, OFFSETS_TOPIC},
        transaction::{Producer, shell},
    },
    wire::api::{
        Call, call,
        shape::{INT16, INT64, STRING, Shape},
    },
};

const SHAPE: Shape = &[STRING, INT64, INT16, STRING];

/// AddOffsetsToTxn.
pub(crate) static API: Api = Api {
    key: ApiKey::AddOffsetsToTxn,
    version_min: 0,
    version_max: 4,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::TransactionalId, Operation::Write),
        (ResourceType::Group, Operation::Read),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version that says PRODUCER_FENCED.
const FENCED_VERSION: i16 = 2;

async fn handle(context: Context, call: Call<AddOffsetsToTxnRequest>) -> AddOffsetsToTxnResponse {
    let added = add(&context, &call.body).await;
    let knows_fenced = call.version() >= FENCED_VERSION;
    AddOffsetsToTxnResponse::default()
        .with_error_code(added.err().map_or(0, |error| known_error(error, knows_fenced).code()))
}

async fn add(context: &Context, request: &AddOffsetsToTxnRequest) -> Result<(), ResponseError> {
    let id = context.transactional_id(&request.transactional_id, Operation::Write)?;
    let group = context.group(&request.group_id, Operation::Read)?;
    if id.is_empty() {
        return Err(ResponseError::InvalidRequest);
    }
    let partition = Groups::locate(context.engine(), &group).await?;
    let producer = Producer { id: request.producer_id.0, epoch: request.producer_epoch };
    let names = vec![(OFFSETS_TOPIC.to_owned(), partition.partition)];
    shell::add_partitions(context.engine(), &id, producer, names, 0).await
}
