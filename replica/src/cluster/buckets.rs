//! A map that is cheap to copy and to change: a change copies one bucket out of 256, a copy shares them all.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

/// How many. With 10,000 keys a change copies 40 entries.
const BUCKETS: usize = 256;

/// What a key is spread over the buckets by.
pub trait Spread: Ord {
    /// Bytes that differ from key to key.
    fn bytes(&self) -> &[u8];
}

impl Spread for str {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Spread for String {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Spread for uuid::Uuid {
    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// The map. Iterates in no order that means anything, but always in the same for the same keys.
#[derive(Clone)]
pub struct Buckets<K, V> {
    buckets: Vec<Arc<BTreeMap<K, V>>>,
    len: usize,
}

impl<K: Spread + Clone, V: Clone> Buckets<K, V> {
    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get<Q: Spread + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.buckets[bucket(key)].get(key)
    }

    /// The value of a key, to be changed in this copy alone.
    pub fn get_mut<Q: Spread + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let bucket = &mut self.buckets[bucket(key)];
        bucket.contains_key(key).then(|| Arc::make_mut(bucket).get_mut(key))?
    }

    /// Sets a key; the value that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = Arc::make_mut(&mut self.buckets[bucket(&key)]).insert(key, value);
        self.len += usize::from(before.is_none());
        before
    }

    /// Takes a key out; the value that it had.
    pub fn remove<Q: Spread + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let bucket = &mut self.buckets[bucket(key)];
        let before = bucket.contains_key(key).then(|| Arc::make_mut(bucket).remove(key))?;
        self.len -= usize::from(before.is_some());
        before
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.buckets.iter().flat_map(|bucket| bucket.iter())
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }
}

impl<K, V> Default for Buckets<K, V> {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Arc::new(BTreeMap::new())).collect(), len: 0 }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Buckets<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.buckets == other.buckets
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Buckets<K, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_map().entries(self.buckets.iter().flat_map(|bucket| bucket.iter())).finish()
    }
}

fn bucket<K: Spread + ?Sized>(key: &K) -> usize {
    crc32c::crc32c(key.bytes()) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_does_not_see_later_changes() {
        let mut map = Buckets::<String, i32>::default();
        (0..1_000).for_each(|n| assert_eq!(map.insert(n.to_string(), n), None));
        let copy = map.clone();
        assert_eq!(map.insert("7".to_owned(), 70), Some(7));
        assert_eq!(map.remove("8"), Some(8));
        *map.get_mut("9").unwrap() = 90;
        assert_eq!((copy.get("7"), copy.get("8"), copy.get("9"), copy.len()), (Some(&7), Some(&8), Some(&9), 1_000));
        assert_eq!((map.get("7"), map.get("8"), map.get("9"), map.len()), (Some(&70), None, Some(&90), 999));
        assert_eq!(map.iter().count(), 999);
    }
}
