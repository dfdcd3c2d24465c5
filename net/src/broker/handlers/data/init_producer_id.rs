//! InitProducerId: ids of idempotent producers. Transactions are not served, and refused.

use kafka_protocol::{
    ResponseError,
    messages::{ApiKey, InitProducerIdRequest, InitProducerIdResponse, ProducerId},
};

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
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
    ]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<InitProducerIdRequest>) -> InitProducerIdResponse {
    let checked = check(&call.body).and_then(|()| may_write(&context));
    let given = match checked {
        Ok(()) => context.administration().next_producer_id().await.map_err(|error| error.error),
        Err(error) => Err(error),
    };
    let response = InitProducerIdResponse::default();
    match given {
        // A producer that has an id and asks again gets another one: that fences its former self (KIP-360).
        Ok(id) => response.with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(error) => response.with_error_code(error.code()).with_producer_id(ProducerId(-1)).with_producer_epoch(-1),
    }
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
        // Fatal to the client, which is not to try again.
        Some(_) => Err(ResponseError::UnsupportedVersion),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::{messages::TransactionalId, protocol::StrBytes};

    use super::*;

    #[test]
    fn transactional_ids_are_refused() {
        let request = InitProducerIdRequest::default().with_transactional_id(None);
        assert_eq!(check(&request), Ok(()));
        let with = |id| request.clone().with_transactional_id(Some(TransactionalId(StrBytes::from_static_str(id))));
        assert_eq!(check(&with("")), Err(ResponseError::InvalidRequest));
        assert_eq!(check(&with("id")), Err(ResponseError::UnsupportedVersion));
    }

    #[test]
    fn an_id_without_an_epoch_is_refused() {
        let request = InitProducerIdRequest::default().with_transactional_id(None).with_producer_id(ProducerId(5));
        assert_eq!(check(&request), Err(ResponseError::InvalidRequest));
        assert_eq!(check(&request.with_producer_epoch(0)), Ok(()));
    }
}
