//! EndTxn: a transaction is committed or aborted. Answered when all its partitions know, on stable storage.

use kafka_protocol::{
    ResponseError,
    messages::{ApiKey, EndTxnRequest, EndTxnResponse, ProducerId},
};
use millrace_engine::transactions::Outcome;

use super::known_error;
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::transaction::{EndTransaction, NO_PRODUCER, Producer, shell},
    wire::api::{
        Call, call,
        shape::{BOOL, INT16, INT64, STRING, Shape},
    },
};

const SHAPE: Shape = &[STRING, INT64, INT16, BOOL];

/// EndTxn.
pub(crate) static API: Api = Api {
    key: ApiKey::EndTxn,
    version_min: 0,
    version_max: 5,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::TransactionalId, Operation::Write)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version that says PRODUCER_FENCED.
const FENCED_VERSION: i16 = 2;
/// First version of clients whose epoch goes up with each transaction (KIP-890).
const EPOCH_BUMP_VERSION: i16 = 5;

async fn handle(context: Context, call: Call<EndTxnRequest>) -> EndTxnResponse {
    let version = call.version();
    let (producer, code) = match end(&context, &call.body, version).await {
        Ok(producer) => (producer, 0),
        Err(error) => (NO_PRODUCER, known_error(error, version >= FENCED_VERSION).code()),
    };
    EndTxnResponse::default()
        .with_error_code(code)
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
}

async fn end(context: &Context, request: &EndTxnRequest, version: i16) -> Result<Producer, ResponseError> {
    let id = context.transactional_id(&request.transactional_id, Operation::Write)?;
    if id.is_empty() {
        return Err(ResponseError::InvalidRequest);
    }
    let end = EndTransaction {
        producer: Producer { id: request.producer_id.0, epoch: request.producer_epoch },
        outcome: if request.committed { Outcome::Commit } else { Outcome::Abort },
        client_version: if version >= EPOCH_BUMP_VERSION { 2 } else { 0 },
    };
    shell::end(context.engine(), &id, end).await
}
