//! From a frame to a request in flight: header, table, shape, text, handler.

use futures_util::{FutureExt, future::LocalBoxFuture};
use kafka_protocol::messages::ApiKey;

use super::{Answered, Connection, End, assembler::Frame};
use crate::wire::{
    api::{Api, Handling, OnDisconnect, Reply, Request, RequestHeader, find, shape},
    frame::{HeaderStart, Malformed, take_client_id},
    memory::Reservation,
    service::Service,
};

/// A frame, understood as far as the table goes.
pub(crate) enum Routed<S: Service> {
    /// A request for an API, at that place in the table, in a version that is served. Its handler cannot read it before it is mended if bytes of it
    /// are in text that is not UTF-8.
    Request { api: &'static Api<S>, place: usize, request: Request, foreign_bytes: usize },
    /// ApiVersions in a version that is not served; the answer says which are.
    UnknownApiVersions { place: usize, correlation_id: i32 },
}

/// What cannot be understood: the API's name if that much is known, and why.
pub(crate) type Refused = (Option<String>, Malformed);

/// Reads a frame's header, finds its API and checks the shape of its body.
pub(crate) fn route<S: Service>(frame: &Frame) -> Result<Routed<S>, Refused> {
    let mut body = frame.bytes.clone();
    let start = HeaderStart::take(&mut body).map_err(|reason| (None, reason))?;
    let (place, api) = find(start.api_key).ok_or((None, Malformed::UnknownApi(start.api_key)))?;
    let version = start.api_version;
    if version < api.version_min || version > api.version_max {
        if api.key == ApiKey::ApiVersions {
            return Ok(Routed::UnknownApiVersions { place, correlation_id: start.correlation_id });
        }
        return Err((Some(format!("{:?}", api.key)), Malformed::UnsupportedVersion { api: api.key, version }));
    }
    let header_version = api.key.request_header_version(version);
    let checked = take_client_id(&mut body, header_version).and_then(|client_id| {
        let foreign_bytes = shape::check(api.shape, version, is_flexible(api, version), &body)?;
        Ok((client_id, foreign_bytes))
    });
    let (client_id, foreign_bytes) = checked.map_err(|reason| refuse(api, reason))?;
    let header = RequestHeader { version, correlation_id: start.correlation_id, client_id };
    Ok(Routed::Request { api, place, request: Request { header, body }, foreign_bytes })
}

fn is_flexible<S: Service>(api: &Api<S>, version: i16) -> bool {
    api.key.request_header_version(version) >= 2
}

fn refuse<S: Service>(api: &Api<S>, reason: Malformed) -> Refused {
    (Some(format!("{:?}", api.key)), reason)
}

impl<S: Service> Routed<S> {
    /// Bytes of memory that [`Routed::mend`] takes; none if there is nothing to do. A request may not grow beyond
    /// `frame_bytes_max`, so that nobody is granted more memory than for a frame.
    pub(crate) fn mending_bytes(&self, frame_bytes_max: usize) -> Result<usize, Refused> {
        let Routed::Request { api, request, foreign_bytes: foreign @ 1.., .. } = self else {
            return Ok(0);
        };
        match shape::mended_bytes_max(&request.body, *foreign) {
            length if length > frame_bytes_max => {
                Err(refuse(api, Malformed::TextTooLarge { length, max: frame_bytes_max }))
            }
            length => Ok(length),
        }
    }

    /// Replaces what is not UTF-8 in the request's text.
    pub(crate) fn mend(&mut self) -> Result<(), Refused> {
        if let Routed::Request { api, request, foreign_bytes: foreign @ 1.., .. } = self {
            let version = request.header.version;
            let mended = shape::mend(api.shape, version, is_flexible(api, version), &request.body, *foreign);
            request.body = mended.map_err(|reason| refuse(api, reason))?;
            *foreign = 0;
        }
        Ok(())
    }
}

impl From<Refused> for End {
    fn from((api, reason): Refused) -> End {
        End::Malformed { api, reason }
    }
}

impl<S: Service> Connection<S> {
    /// Begins a request. When this returns, its place among the connection's requests is fixed.
    pub(super) fn dispatch(&self, frame: Frame, routed: Routed<S>) -> Result<(), End> {
        self.service.on_request();
        let counters = &self.wire().counters;
        let received = self.received.get();
        let (handling, on_disconnect, asked) = match routed {
            Routed::UnknownApiVersions { place, correlation_id } => {
                let asked = counters.on_request(place, received);
                let reply = S::unsupported_api_versions(correlation_id);
                (Handling::Done(reply), OnDisconnect::Drop, asked)
            }
            Routed::Request { api, place, request, .. } => {
                let asked = counters.on_request(place, received);
                let may_call = self.service.gate(&self.peer.session.borrow(), api);
                let handling = may_call.and_then(|()| (api.handle)(&self.context(api), request));
                let handling = handling.map_err(|reason| refuse(api, reason))?;
                (handling, api.on_disconnect, asked)
            }
        };
        let Frame { bytes, reservation } = frame;
        let request_bytes = bytes.len();
        // The handler keeps what it needs of the frame; the reservation ends with its future.
        drop(bytes);
        let answered = move |reply| Answered { reply, request_bytes, had_turn: false, asked };
        let begin = || counters.begin(asked);
        let reply: LocalBoxFuture<'static, Answered> = match (handling, on_disconnect) {
            (Handling::Done(reply), _) => Box::pin(std::future::ready(answered(reply))),
            (Handling::InTurn(future), _) => {
                let (turns, ticket) = (self.turns.clone(), self.turns.take_ticket());
                let under_way = begin();
                Box::pin(async move {
                    turns.wait(ticket).await;
                    let reply = future.await;
                    under_way.answered();
                    drop(reservation);
                    Answered { reply, request_bytes, had_turn: true, asked }
                })
            }
            (Handling::Later(future), OnDisconnect::Drop) => {
                let under_way = begin();
                Box::pin(async move {
                    let reply = future.await;
                    under_way.answered();
                    drop(reservation);
                    answered(reply)
                })
            }
            (Handling::Later(future), OnDisconnect::Finish) => {
                let under_way = begin();
                let reply = self.run_to_its_end(future, reservation);
                Box::pin(async move {
                    let reply = reply.await;
                    under_way.answered();
                    answered(reply)
                })
            }
        };
        self.push_reply(request_bytes, reply);
        Ok(())
    }

    /// Runs a request in a task of its own, which outlives the connection if need be. Its first step is taken here, so
    /// that requests of one connection begin in order.
    fn run_to_its_end(
        &self,
        mut future: LocalBoxFuture<'static, Reply>,
        reservation: Reservation,
    ) -> LocalBoxFuture<'static, Reply> {
        if let Some(reply) = (&mut future).now_or_never() {
            return Box::pin(std::future::ready(reply));
        }
        let service = self.service.clone();
        service.wire().on_finishing();
        let task = glommio::spawn_local(async move {
            let reply = future.await;
            drop(reservation);
            service.wire().on_finished();
            reply
        });
        let handle = task.detach();
        Box::pin(async move { handle.await.unwrap_or(Reply::Stopping) })
    }
}
