//! The newest offset of each key, by the key's hash, in memory of a fixed size.
//!
//! Two keys with the same hash would lose one's value, so the hash has 128 bits: two SipHash-1-3 with keys of their own,
//! drawn anew for every map. By chance that happens to one of 2^80 maps of a million keys; and nobody can choose keys to
//! make it happen, as they could with Kafka's MD5, because the hash's keys are random and never leave the process.

use std::hash::{BuildHasher, Hasher, RandomState};

/// See the module.
pub(crate) struct OffsetMap {
    hashers: [RandomState; 2],
    /// Open addressing, linear probing. A power of two is not needed: `place` scales.
    slots: Vec<Slot>,
    len: usize,
    /// Keys at most: a fuller table is slow.
    len_max: usize,
}

#[derive(Clone, Copy)]
struct Slot {
    hash: [u64; 2],
    /// Offset plus one; 0 is an empty slot, so that fresh memory need not be written.
    offset_plus_1: u64,
}

const EMPTY: Slot = Slot { hash: [0; 2], offset_plus_1: 0 };

/// Bytes of a slot.
pub(crate) const SLOT_BYTES: usize = size_of::<Slot>();
const _: () = assert!(SLOT_BYTES == 24);

/// Kafka's `log.cleaner.io.buffer.load.factor`.
const LOAD_NUMERATOR: usize = 9;
const LOAD_DENOMINATOR: usize = 10;
/// A map for less is not worth the division.
const KEYS_MIN: usize = 16;

impl OffsetMap {
    /// A map for `keys` keys, or fewer if they would take more than `bytes_max`.
    pub(crate) fn new(keys: u64, bytes_max: usize) -> Self {
        let affordable = (bytes_max / SLOT_BYTES / LOAD_DENOMINATOR).saturating_sub(1) * LOAD_NUMERATOR;
        let wanted = usize::try_from(keys).unwrap_or(usize::MAX);
        let len_max = wanted.min(affordable).max(KEYS_MIN);
        let slots = len_max / LOAD_NUMERATOR * LOAD_DENOMINATOR + LOAD_DENOMINATOR;
        Self { hashers: [RandomState::new(), RandomState::new()], slots: vec![EMPTY; slots], len: 0, len_max }
    }

    /// Sets the newest offset of a key, which is not below what was set before. `false` if the key is new and there is
    /// no room for it.
    pub(crate) fn put(&mut self, key: &[u8], offset: i64) -> bool {
        let hash = self.hash(key);
        let at = self.find(hash);
        if self.slots[at].offset_plus_1 == 0 {
            if self.len == self.len_max {
                return false;
            }
            self.len += 1;
        }
        self.slots[at] = Slot { hash, offset_plus_1: offset.cast_unsigned() + 1 };
        true
    }

    /// The newest offset of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<i64> {
        let slot = &self.slots[self.find(self.hash(key))];
        slot.offset_plus_1.checked_sub(1).map(u64::cast_signed)
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        self.hashers.each_ref().map(|state| {
            let mut hasher = state.build_hasher();
            hasher.write(key);
            hasher.finish()
        })
    }

    /// The slot that holds a hash, or the empty one where it would go.
    fn find(&self, hash: [u64; 2]) -> usize {
        let scaled = (u128::from(hash[0]) * self.slots.len() as u128) >> 64;
        let mut at = usize::try_from(scaled).expect("less than the number of slots");
        while self.slots[at].offset_plus_1 != 0 && self.slots[at].hash != hash {
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_newest_offset_of_every_key_is_found() {
        let mut map = OffsetMap::new(5_000, 1 << 20);
        let mut model = HashMap::new();
        for offset in 0..20_000i64 {
            let key = format!("key-{}", offset * 7_919 % 4_999);
            assert!(map.put(key.as_bytes(), offset));
            model.insert(key, offset);
        }
        assert_eq!(map.len(), model.len());
        for (key, offset) in model {
            assert_eq!(map.get(key.as_bytes()), Some(offset));
        }
        assert_eq!(map.get(b"key-5000"), None);
        assert_eq!(map.get(b""), None);
    }

    #[test]
    fn a_full_map_takes_known_keys_only() {
        let mut map = OffsetMap::new(1 << 40, 1 << 16);
        let mut count = 0;
        while map.put(&u64::to_le_bytes(count), count.cast_signed()) {
            count += 1;
        }
        assert!(map.slots.len() * SLOT_BYTES <= 1 << 16, "it stays within its budget");
        assert!(map.slots.len() * SLOT_BYTES > (1 << 16) / 10 * 9);
        assert_eq!(map.len(), usize::try_from(count).expect("it is small"));
        assert!(map.put(&u64::to_le_bytes(3), 1_000), "a known key is no new one");
        assert_eq!(map.get(&u64::to_le_bytes(3)), Some(1_000));
        assert_eq!(map.get(&u64::to_le_bytes(count)), None);
    }
}
