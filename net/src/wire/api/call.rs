//! What a handler gets and gives: a request, its context, a reply.
//!
//! A handler sees no socket. It runs in two phases: what it does before it returns is done in the order in which
//! requests arrive on their connection; the future that it returns may finish at any time, and the connection puts the
//! replies in order.

use std::{
    cell::{Ref, RefMut},
    future::Future,
    rc::Rc,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::LocalBoxFuture;
use kafka_protocol::protocol::{self, Encodable, HeaderVersion, StrBytes};
use millrace_engine::api::Chunk;

use super::{Api, ErrorCodes};
use crate::wire::{frame::Malformed, peer::Peer, service::Service};

/// Where a request came from and what it may use.
pub(crate) struct Context<S: Service> {
    /// What stands behind the wire on the shard that the connection lives on.
    pub(crate) service: Rc<S>,
    /// The other end of the connection.
    pub(crate) peer: Rc<Peer<S::Session>>,
    /// What is called.
    pub(crate) api: &'static Api<S>,
}

impl<S: Service> Clone for Context<S> {
    fn clone(&self) -> Self {
        Context { service: self.service.clone(), peer: self.peer.clone(), api: self.api }
    }
}

impl<S: Service> Context<S> {
    /// What is known of the connection by now.
    pub(crate) fn session(&self) -> Ref<'_, S::Session> {
        self.peer.session.borrow()
    }

    /// As [`Context::session`], to be changed.
    pub(crate) fn session_mut(&self) -> RefMut<'_, S::Session> {
        self.peer.session.borrow_mut()
    }
}

/// What is known of a request before its body is decoded.
#[derive(Debug, Clone)]
pub(crate) struct RequestHeader {
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
    pub(crate) client_id: Option<StrBytes>,
}

/// A request whose body is still bytes; they are known to be of its API's shape.
pub(crate) struct Request {
    pub(crate) header: RequestHeader,
    pub(crate) body: Bytes,
}

/// A decoded request.
pub(crate) struct Call<M> {
    pub(crate) header: RequestHeader,
    pub(crate) body: M,
}

impl<M> Call<M> {
    /// The version of the API.
    pub(crate) fn version(&self) -> i16 {
        self.header.version
    }
}

/// A response as it goes out, length and header included.
#[derive(Debug)]
pub(crate) struct Response {
    head: Bytes,
    rest: Vec<Chunk>,
    /// Codes of the errors that it tells.
    errors: Vec<i16>,
}

impl Response {
    /// A response of several pieces, and the codes of the errors that it tells.
    pub(crate) fn new(pieces: Vec<Chunk>, errors: Vec<i16>) -> Response {
        Response { head: Bytes::new(), rest: pieces, errors }
    }

    /// Codes of the errors that it tells.
    pub(crate) fn errors(&self) -> &[i16] {
        &self.errors
    }

    /// The pieces, in order.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = Chunk> {
        std::iter::once(Chunk::Bytes(self.head)).chain(self.rest)
    }
}

/// How a request ends.
#[derive(Debug)]
pub(crate) enum Reply {
    /// With a response.
    Response(Response),
    /// With none: a produce request with acks = 0.
    Silence,
    /// The connection is closed, for that reason.
    Close(String),
    /// The connection is closed because the node is stopping, which is nobody's fault.
    Stopping,
}

impl Reply {
    /// A response in one piece, and the codes of the errors that it tells.
    pub(crate) fn new(encoded: Result<Bytes, String>, errors: Vec<i16>) -> Reply {
        match encoded {
            Ok(head) => Reply::Response(Response { head, rest: Vec::new(), errors }),
            Err(reason) => Reply::Close(format!("the response cannot be encoded: {reason}")),
        }
    }
}

/// What a handler returns.
pub(crate) enum Handling {
    /// The reply.
    Done(Reply),
    /// A future of it.
    Later(LocalBoxFuture<'static, Reply>),
    /// A future of a reply that may be large: of one connection, one such future at a time is run, and dropped with the
    /// connection.
    InTurn(LocalBoxFuture<'static, Reply>),
}

/// Decodes a request, runs `handle` on it and encodes what it answers.
pub(crate) fn call<S, M, H, F>(context: &Context<S>, request: Request, handle: H) -> Result<Handling, Malformed>
where
    S: Service,
    M: protocol::Request,
    H: FnOnce(Context<S>, Call<M>) -> F,
    F: Future<Output = M::Response> + 'static,
    M::Response: ErrorCodes + 'static,
{
    let Request { header, mut body } = request;
    let decoded = M::decode(&mut body, message_version::<M>(header.version))
        .map_err(|error| Malformed::Body(error.to_string()))?;
    let answer = handle(context.clone(), Call { header: header.clone(), body: decoded });
    Ok(Handling::Later(Box::pin(async move {
        let answer = answer.await;
        encode(&header, message_version::<M>(header.version), &answer)
    })))
}

/// The version of a message's layout: APIs whose newest versions changed meaning only are encoded as the newest
/// version that the library knows.
fn message_version<M: protocol::Message>(version: i16) -> i16 {
    version.min(M::VERSIONS.max)
}

/// Encodes a response with its length and header.
pub(crate) fn encode<M: Encodable + HeaderVersion + ErrorCodes>(
    header: &RequestHeader,
    version: i16,
    message: &M,
) -> Reply {
    Reply::new(encode_bytes(header, version, message), message.errors())
}

/// As [`encode`], for messages that are not yet as they go out.
pub(crate) fn encode_bytes<M: Encodable + HeaderVersion>(
    header: &RequestHeader,
    version: i16,
    message: &M,
) -> Result<Bytes, String> {
    const PREFIX_BYTES: usize = 9;
    let size = message.compute_size(version).map_err(|error| error.to_string())?;
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + size);
    bytes.put_i32(0);
    bytes.put_i32(header.correlation_id);
    if M::header_version(version) >= 1 {
        // No tagged fields.
        bytes.put_u8(0);
    }
    message.encode(&mut bytes, version).map_err(|error| error.to_string())?;
    let length = i32::try_from(bytes.len() - 4).map_err(|error| error.to_string())?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes.freeze())
}
