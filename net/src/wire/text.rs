//! Text as clients send it: UTF-8, or bytes of which text is made all the same.
//!
//! Kafka's broker reads text with Java's `String(bytes, UTF_8)`, which refuses nothing: what is not UTF-8 becomes
//! U+FFFD. A client whose strings are of another encoding, or no text at all, is served like any other, and has its
//! own strings told to it in that form. What Java replaces by one character differs from what Rust does in surrogates:
//! their three bytes are one character to it, as to the Java clients that read what is kept.

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;

/// Bytes of the longest text that the protocol has: Kafka refuses longer ones even where a compact length could tell
/// of them.
pub(crate) const TEXT_BYTES_MAX: usize = i16::MAX as usize;

/// Bytes that a replacement has at most for each byte that it stands for.
pub(crate) const REPLACEMENT_BYTES: usize = char::REPLACEMENT_CHARACTER.len_utf8();

/// What bytes say, without a copy if they are UTF-8.
pub(crate) fn decode(bytes: Bytes) -> StrBytes {
    StrBytes::from_utf8(bytes.clone()).unwrap_or_else(|_| StrBytes::from_string(replace(&bytes)))
}

/// What bytes say, with U+FFFD for what is not UTF-8. Cut at the longest text there is, as it may grow threefold.
pub(crate) fn replace(bytes: &[u8]) -> String {
    let mut text = String::with_capacity((bytes.len() * REPLACEMENT_BYTES).min(TEXT_BYTES_MAX));
    // Continuation bytes that belong to a surrogate that was replaced.
    let mut surrogate_left = 0;
    for chunk in bytes.utf8_chunks() {
        let replacement = match chunk.invalid() {
            [] => None,
            [0x80..=0xbf] if surrogate_left > 0 && chunk.valid().is_empty() => {
                surrogate_left -= 1;
                None
            }
            invalid => {
                surrogate_left = if invalid == [SURROGATE_LEAD] { 2 } else { 0 };
                Some(char::REPLACEMENT_CHARACTER)
            }
        };
        for character in chunk.valid().chars().chain(replacement) {
            if text.len() + character.len_utf8() > TEXT_BYTES_MAX {
                return text;
            }
            text.push(character);
        }
    }
    text
}

/// First byte of what a surrogate would be in UTF-8. It stands alone as invalid only before one, or before what is no
/// continuation.
const SURROGATE_LEAD: u8 = 0xed;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Told by Apache Kafka 4.4.0, which was asked for the metadata of offsets that had been committed with these.
    #[test]
    fn replacements_are_those_of_java() {
        for (bytes, text) in [
            (&b"plain"[..], "plain"),
            (b"\xff\xfe", "??"),
            (b"\xe4", "?"),
            (b"\xc0\x80", "??"),
            (b"\xc3", "?"),
            (b"\xc3A", "?A"),
            (b"\xe2\x82", "?"),
            (b"\xe2\x82A", "?A"),
            (b"\xe0\x80\x80", "???"),
            (b"\xed\xa0\x80", "?"),
            (b"\xed\xa0", "?"),
            (b"\xed\xa0A", "?A"),
            (b"\xed\xbf\xbf\xed\xb0\x80", "??"),
            (b"\xed\x80", "?"),
            (b"\xed\xc0", "??"),
            (b"\xed\xa0\x80\x80", "??"),
            (b"\xf0\x9f\x98", "?"),
            (b"\xf0\x9fA", "?A"),
            (b"\xf0\x80\x80\x80", "????"),
            (b"\xf4\x8f\xbf", "?"),
            (b"\xf4\x90\x80\x80", "????"),
            (b"\xf8\x88\x80\x80", "????"),
            (b"A\xffB\xfeC", "A?B?C"),
            (b"\xc3\xa4\xe4", "\u{e4}?"),
            (b"\xf0\x9f\x98\x80\xed", "\u{1f600}?"),
        ] {
            assert_eq!(replace(bytes), text.replace('?', "\u{fffd}"), "{bytes:x?}");
        }
    }

    #[test]
    fn nothing_becomes_longer_than_text_may_be() {
        let long = replace(&[0xff; TEXT_BYTES_MAX]);
        assert_eq!(long.len(), TEXT_BYTES_MAX / REPLACEMENT_BYTES * REPLACEMENT_BYTES);
        assert_eq!(replace(&[b'a'; TEXT_BYTES_MAX]).len(), TEXT_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn utf8_stays_as_it_is_and_nothing_grows_more_than_threefold(
            text in ".{0,40}", bytes in vec(any::<u8>(), 0..40)
        ) {
            prop_assert_eq!(replace(text.as_bytes()), text.clone());
            prop_assert_eq!(&*decode(Bytes::from(text.clone())), &*text);
            prop_assert!(replace(&bytes).len() <= bytes.len() * REPLACEMENT_BYTES);
        }
    }
}
