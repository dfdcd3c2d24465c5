//! ListTransactions: the transactional ids of the node, or of the shard that is asked where each shard is a broker of its
//! own.

use std::time::{SystemTime, UNIX_EPOCH};

use kafka_protocol::{
    ResponseError,
    messages::{
        ApiKey, ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
        list_transactions_response::TransactionState,
    },
    protocol::StrBytes,
};

use crate::{
    broker::{
        config::Advertise,
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::transaction::{Filter, Listed, State, shell},
    wire::api::{
        Call, call,
        shape::{INT64, INT64S, STRING, STRINGS, Shape},
    },
};

const SHAPE: Shape = &[STRINGS, INT64S, INT64.since(1), STRING.since(2)];

/// ListTransactions.
pub(crate) static API: Api = Api {
    key: ApiKey::ListTransactions,
    version_min: 0,
    version_max: 2,
    advertised_min: 0,
    shape: SHAPE,
    authorization: Authorization::Asks(&[(ResourceType::TransactionalId, Operation::Describe)]),
    on_disconnect: OnDisconnect::Drop,
    handle: |context, request| call(context, request, handle),
};

async fn handle(context: Context, call: Call<ListTransactionsRequest>) -> ListTransactionsResponse {
    let response = ListTransactionsResponse::default();
    let (filter, unknown) = match filter(&call.body, call.version()) {
        Ok(parsed) => parsed,
        Err(error) => return response.with_error_code(error.code()),
    };
    let is_any_known = unknown.len() < call.body.state_filters.len() || call.body.state_filters.is_empty();
    let response = response.with_unknown_state_filters(unknown);
    if !is_any_known {
        return response;
    }
    let engine = context.engine();
    // a client asks every broker: two must not tell of the same id
    let shards = match context.config().advertise {
        Advertise::Node => (0..engine.shards()).collect(),
        Advertise::Shard => vec![engine.shard()],
    };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let (listed, error) = shell::list(engine, shards, filter, i64::try_from(now_ms).unwrap_or(i64::MAX)).await;
    if let Some(error) = error {
        return response.with_error_code(error.code());
    }
    let is_seen = |listed: &Listed| context.transactional_id(&listed.id, Operation::Describe).is_ok();
    response.with_transaction_states(listed.into_iter().filter(is_seen).map(tell).collect())
}

/// The filter, and the names in it of states that there are not.
fn filter(request: &ListTransactionsRequest, version: i16) -> Result<(Filter, Vec<StrBytes>), ResponseError> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        request.state_filters.iter().partition(|name| State::of_name(name).is_some());
    let pattern = request.transactional_id_pattern.as_ref().filter(|pattern| !pattern.is_empty());
    let pattern = pattern.map(|pattern| compile(pattern)).transpose()?;
    let filter = Filter {
        states: known.into_iter().filter_map(|name| State::of_name(name)).collect(),
        producer_ids: request.producer_id_filters.iter().map(|id| id.0).collect(),
        longer_than_ms: (version >= 1 && request.duration_filter >= 0).then_some(request.duration_filter),
        pattern,
    };
    Ok((filter, unknown.into_iter().cloned().collect()))
}

/// A pattern must match all of an id.
fn compile(pattern: &str) -> Result<regex::Regex, ResponseError> {
    /// Bytes of a compiled pattern at most.
    const SIZE_MAX: usize = 1 << 20;
    let anchored = format!("^(?:{pattern})$");
    let compiled = regex::RegexBuilder::new(&anchored).size_limit(SIZE_MAX).build();
    compiled.map_err(|_| ResponseError::InvalidRegularExpression)
}

fn tell(listed: Listed) -> TransactionState {
    TransactionState::default()
        .with_transactional_id(TransactionalId(StrBytes::from_string(listed.id)))
        .with_producer_id(ProducerId(listed.producer_id))
        .with_transaction_state(StrBytes::from_static_str(listed.state.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_ids() {
        let pattern = compile("a|b.").unwrap();
        assert!(pattern.is_match("a") && pattern.is_match("bx"));
        assert!(!pattern.is_match("ab") && !pattern.is_match("xa"));
        assert_eq!(compile("(").unwrap_err(), ResponseError::InvalidRegularExpression);
    }

    #[test]
    fn unknown_states_are_named() {
        let request = ListTransactionsRequest::default()
            .with_state_filters(["Empty", "Nope"].map(StrBytes::from_static_str).to_vec())
            .with_duration_filter(-1);
        let (filter, unknown) = filter(&request, 1).unwrap();
        assert_eq!((filter.states, unknown), ([State::Empty].into(), vec![StrBytes::from_static_str("Nope")]));
        assert_eq!(filter.longer_than_ms, None);
    }
}
