//! Messages of gRPC within the bytes of a stream: each has a flag before it, and its length.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::failure::CallError;

/// Bytes of one message at most: a page of keys with their values, several times over. What a watch brings comes in messages of
/// 1.5 MiB or so.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What is before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A message as it is sent.
pub(super) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("transactions are far shorter"));
    message.encode(&mut bytes).expect("there is room");
    bytes.freeze()
}

/// Bytes that came, of which messages are taken when they are whole.
#[derive(Debug, Default)]
pub(super) struct Arrived(BytesMut);

impl Arrived {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next message, if it is whole.
    pub(super) fn take(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(mut prefix) = self.0.get(..PREFIX_BYTES) else { return Ok(None) };
        if prefix.get_u8() != 0 {
            return Err(CallError::lost("a compressed answer, which nobody asked for"));
        }
        let length = prefix.get_u32() as usize;
        if length > MESSAGE_BYTES_MAX {
            let text = format_args!("an answer of {length} bytes; at most {MESSAGE_BYTES_MAX} are taken");
            return Err(CallError::lost(text));
        }
        let whole = PREFIX_BYTES + length;
        if self.0.len() < whole {
            self.0.reserve(whole - self.0.len());
            return Ok(None);
        }
        self.0.advance(PREFIX_BYTES);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::etcd::messages::{AuthenticateResponse, Empty};

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let token = |length: usize| AuthenticateResponse { token: "x".repeat(length) };
        let sent = [&framed(&token(300))[..], &framed(&Empty {}), &framed(&token(1))].concat();
        for cut in 1..=sent.len() {
            let (mut arrived, mut taken) = (Arrived::default(), Vec::new());
            for piece in sent.chunks(cut) {
                arrived.push(piece);
                while let Some(message) = arrived.take().unwrap() {
                    taken.push(message.len());
                }
            }
            assert_eq!(taken, [303, 0, 3], "in pieces of {cut}");
            assert!(arrived.is_empty());
        }
    }

    #[test]
    fn what_nobody_can_want_is_refused_by_its_first_bytes() {
        for (prefix, is_taken) in [([0, 4, 0, 0, 0], true), ([0, 4, 0, 0, 1], false), ([1, 0, 0, 0, 1], false)] {
            let mut arrived = Arrived::default();
            arrived.push(&prefix);
            assert_eq!(arrived.take().is_ok(), is_taken, "{prefix:?}");
        }
    }
}
