//! Brings markers to the partitions that they are for, wherever these are. One of a partition that a group coordinator
//! keeps its state in goes through that, which is to know of it.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use futures_util::future::{Either, join_all, select};
use kafka_protocol::error::ResponseError;
use millrace_engine::{engine::Engine, transactions::Marker};

use super::MarkerSender;
use crate::{
    client::{Leader, OtherBrokers},
    coordinator::{
        group::Groups,
        transaction::{Marked, Marking, Questions},
    },
    errors::log_error,
};

/// How long a marker may take that waits for replicas; the coordinator has it written again then.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// By transactional id: whether one of these markers is in its partition.
pub(super) async fn find(engine: &Engine, asked: Questions) -> Vec<(Rc<str>, bool)> {
    let markers = asked.iter().flat_map(|(_, markers)| markers.iter().copied()).collect();
    let mut found = engine.have_markers(markers).await.into_iter();
    let of_id = |(id, markers): (Rc<str>, Vec<Marker>)| {
        // all of them are taken, found or not
        let found = found.by_ref().take(markers.len()).filter(|is_there| *is_there).count();
        (id, found > 0)
    };
    asked.into_iter().map(of_id).collect()
}

/// Writes the markers of a transaction; one answer each.
pub(super) async fn mark(engine: &Engine, marking: &Marking) -> Marked {
    match (engine.attached::<OtherBrokers>(), engine.attached::<MarkerSender>()) {
        (Some(others), Some(sender)) => mark_in_cluster(engine, &others, &sender, marking).await,
        _ => mark_here(engine, marking).await,
    }
}

/// Each goes to the leader of its partition. One that has its marker already may get it again: that its leader has it says
/// nothing of the replicas, of which the next leader is one.
async fn mark_in_cluster(
    engine: &Engine,
    others: &OtherBrokers,
    sender: &Rc<MarkerSender>,
    marking: &Marking,
) -> Marked {
    let marked = marking.markers.iter().map(|(name, marker)| async move {
        let result = match others.leader(marker.partition) {
            Leader::Here => write_in_time(engine, *marker).await,
            Leader::Node(node) => sender.send(node, name.clone(), *marker).await,
            Leader::Nobody => Err(ResponseError::LeaderNotAvailable),
        };
        (name.clone(), result)
    });
    join_all(marked).await
}

async fn mark_here(engine: &Engine, marking: &Marking) -> Marked {
    let (names, mut markers): (Vec<_>, Vec<_>) = marking.markers.iter().cloned().unzip();
    let mut results = vec![Ok(()); markers.len()];
    let mut places: Vec<usize> = (0..markers.len()).collect();
    if marking.only_where_open {
        let open = engine.open_transactions().await;
        let open: BTreeSet<_> = open.into_iter().map(|open| (open.partition, open.producer_id)).collect();
        places.retain(|place| open.contains(&(markers[*place].partition, markers[*place].producer_id)));
        markers = places.iter().map(|place| markers[*place]).collect();
    }
    for (place, result) in places.into_iter().zip(write_markers(engine, markers).await) {
        results[place] = result;
    }
    names.into_iter().zip(results).collect()
}

/// Writes markers that others decided on; one answer each, in their order: of each when it is on stable storage and its
/// replicas have it, or that it took too long.
pub(crate) async fn write_markers_in_time(engine: &Engine, markers: Vec<Marker>) -> Vec<Result<(), ResponseError>> {
    join_all(markers.into_iter().map(|marker| write_in_time(engine, marker))).await
}

async fn write_in_time(engine: &Engine, marker: Marker) -> Result<(), ResponseError> {
    let written = std::pin::pin!(write_markers(engine, vec![marker]));
    match select(written, std::pin::pin!(glommio::timer::sleep(WRITE_PATIENCE))).await {
        Either::Left((written, _)) => written.into_iter().next().unwrap_or(Err(ResponseError::UnknownServerError)),
        Either::Right(_) => Err(ResponseError::RequestTimedOut),
    }
}

/// Writes markers; one answer each, in their order, when they are on stable storage.
async fn write_markers(engine: &Engine, markers: Vec<Marker>) -> Vec<Result<(), ResponseError>> {
    let offsets = Groups::topic(engine).map(|topic| topic.id);
    let mut results = vec![Ok(()); markers.len()];
    let is_of_group = |marker: &Marker| Some(marker.partition.topic) == offsets;
    let (of_groups, others): (Vec<_>, Vec<_>) =
        markers.into_iter().enumerate().partition(|(_, marker)| is_of_group(marker));
    let (places, others): (Vec<_>, Vec<_>) = others.into_iter().unzip();
    let written = async {
        match others.is_empty() {
            true => Vec::new(),
            false => engine.write_markers(others).await,
        }
    };
    let through_groups =
        of_groups.into_iter().map(|(place, marker)| async move { (place, write_through_group(engine, marker).await) });
    let (written, through_groups) = futures_util::future::join(written, join_all(through_groups)).await;
    for (place, result) in places.into_iter().zip(written) {
        results[place] = result.map(|_| ()).map_err(|error| log_error(&error));
    }
    for (place, result) in through_groups {
        results[place] = result;
    }
    results
}

async fn write_through_group(engine: &Engine, marker: Marker) -> Result<(), ResponseError> {
    let owner = engine.owner(marker.partition);
    let written = move |engine| async move { Groups::here(&engine).await.write_marker(marker).await };
    engine.on_shard(owner, written).await
}
