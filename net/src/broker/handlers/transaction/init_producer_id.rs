//! InitProducerId: ids of idempotent producers, and of those that write transactions, whose former selves it fences.

use kafka_protocol::{
    ResponseError,
    messages::{ApiKey, InitProducerIdRequest, InitProducerIdResponse, ProducerId},
};

use super::known_error;
use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::transaction::{InitProducerId, NO_PRODUCER, Producer, shell},
    wire::api::{
        Call, call,
        shape::{INT16, INT32, INT64, STRING, Shape},
    },
};

const SHAPE: Shape = &[STRING, INT32, INT64.since(3), INT16.since(3)];

/// InitProducerId.
pub(crate) static API: Api = Api {
    key: ApiKey::InitProducerId,
    version_min: 0,
    version_max: 5,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[
        (ResourceType::Cluster, Operation::IdempotentWrite),
        (ResourceType::Topic, Operation::Write),
        (ResourceType::TransactionalId, Operation::Write),
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

/// First version that says PRODUCER_FENCED.
const FENCED_VERSION: i16 = 4;

async fn handle(context: Context, call: Call<InitProducerIdRequest>) -> InitProducerIdResponse {
    let (producer, code) = match init(&context, &call.body).await {
        Ok(producer) => (producer, 0),
        Err(error) => (NO_PRODUCER, known_error(error, call.version() >= FENCED_VERSION).code()),
    };
    InitProducerIdResponse::default()
        .with_error_code(code)
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
}

async fn init(context: &Context, request: &InitProducerIdRequest) -> Result<Producer, ResponseError> {
    check(request)?;
    let Some(id) = &request.transactional_id else {
        may_write(context)?;
        let id = context.administration().next_producer_id().await.map_err(|error| error.error)?;
        // A producer that has an id and asks again gets another one: that fences its former self (KIP-360).
        return Ok(Producer { id, epoch: 0 });
    };
    let id = context.transactional_id(id, Operation::Write)?;
    let expected = Producer { id: request.producer_id.0, epoch: request.producer_epoch };
    let init = InitProducerId {
        timeout_ms: request.transaction_timeout_ms,
        expected: (expected != NO_PRODUCER).then_some(expected),
    };
    shell::init_producer_id(context.engine(), &id, init).await
}

/// Who may write idempotently, or to any topic, may have an id.
fn may_write(context: &Context) -> Result<(), ResponseError> {
    match context.cluster(Operation::IdempotentWrite) {
        Ok(_) => Ok(()),
        Err(_) if context.topics().visible("", Operation::Write).next().is_some() => Ok(()),
        Err(error) => Err(error),
    }
}

fn check(request: &InitProducerIdRequest) -> Result<(), ResponseError> {
    match &request.transactional_id {
        Some(id) if id.is_empty() => Err(ResponseError::InvalidRequest),
        _ if (request.producer_id.0 == -1) != (request.producer_epoch == -1) => Err(ResponseError::InvalidRequest),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{messages::TransactionalId, protocol::StrBytes};

    use super::*;

    #[test]
    fn an_empty_transactional_id_is_refused() {
        let with = |id| {
            let id = TransactionalId(StrBytes::from_static_str(id));
            InitProducerIdRequest::default().with_transactional_id(Some(id))
        };
        assert_eq!(check(&with("")), Err(ResponseError::InvalidRequest));
        assert_eq!(check(&with("id")), Ok(()));
    }

    #[test]
    fn an_id_without_an_epoch_is_refused() {
        let request = InitProducerIdRequest::default().with_transactional_id(None).with_producer_id(ProducerId(5));
        assert_eq!(check(&request), Err(ResponseError::InvalidRequest));
        assert_eq!(check(&request.with_producer_epoch(0)), Ok(()));
    }
}
