//! What other brokers ask of the state of share partitions: of five APIs, each in its own words, the one handler.
//!
//! A share partition whose state is kept on another node is answered with NOT_COORDINATOR; nothing is passed on.

use futures_util::future::join_all;

use crate::{
    broker::{
        context::{Authorization, Context, Operation, ResourceType},
        table::{Api, OnDisconnect},
    },
    coordinator::share::{
        shell::states::{Work, ask_here},
        state::{Delete, Initialize, Read, ReadSummary, Refused, ShareKey, StateRequest, StateResponse, WriteState},
    },
    wire::api::{Call, call, shape::Shape},
};

/// InitializeShareGroupState: sets the state of share partitions anew.
pub(crate) static INITIALIZE: Api = api::<Initialize>(Initialize::SHAPE);

/// ReadShareGroupState: gives the state of share partitions to their leader.
pub(crate) static READ: Api = api::<Read>(Read::SHAPE);

/// WriteShareGroupState: takes over what the leader of share partitions has decided.
pub(crate) static WRITE: Api = api::<WriteState>(WriteState::SHAPE);

/// DeleteShareGroupState: forgets the state of share partitions.
pub(crate) static DELETE: Api = api::<Delete>(Delete::SHAPE);

/// ReadShareGroupStateSummary: gives the state of share partitions in brief.
pub(crate) static READ_SUMMARY: Api = api::<ReadSummary>(ReadSummary::SHAPE);

const fn api<P: Work>(shape: Shape) -> Api {
    Api {
        key: P::KEY,
        version_min: 0,
        version_max: P::VERSION_MAX,
        advertised_min: 0,
        shape,
        authorization: Authorization::Asks(&[(ResourceType::Cluster, Operation::ClusterAction)]),
        on_disconnect: OnDisconnect::Finish,
        handle: |context, request| call(context, request, handle::<P>),
    }
}

async fn handle<P: Work>(context: Context, call: Call<StateRequest<P>>) -> StateResponse<P::Answer> {
    let StateRequest { group, topics } = call.body;
    let allowed = context.cluster(Operation::ClusterAction).map(|_| ());
    let is_nothing = group.is_empty() || topics.iter().any(|(_, partitions)| partitions.is_empty());
    if is_nothing {
        // as Kafka does
        return StateResponse { topics: Vec::new() };
    }
    let (context, group) = (&context, group.as_str());
    let topics = topics.into_iter().map(|(topic, partitions)| async move {
        let answering = partitions.into_iter().map(|(partition, part)| async move {
            let answer = match allowed {
                Ok(()) => ask_here(context.engine(), &ShareKey::new(group, topic, partition), part).await,
                Err(error) => Err(error),
            };
            (partition, answer.map_err(Refused::from))
        });
        (topic, join_all(answering).await)
    });
    StateResponse { topics: join_all(topics).await }
}
