//! Client instances: who has asked for its subscription, and who may push when. Pure.
//!
//! Rules and errors are those of Kafka 4.3's `ClientMetricsManager`. Owned by shard 0. Bounded: the instance that
//! would be forgotten first makes room. A client's attributes are not kept; each of its requests brings them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kafka_protocol::ResponseError;
use uuid::Uuid;

use super::subscription::{Asked, Attributes, Subscription};

/// Bytes of one push at most, and of what it decompresses to (`telemetry.max.bytes`).
pub(crate) const TELEMETRY_BYTES_MAX: usize = 1 << 20;
/// Instances at most, as Kafka's cache.
const INSTANCES_MAX: usize = 16_384;
/// An instance is forgotten after three push intervals without a request, but not before this.
const EXPIRY_MS_MIN: i64 = 60_000;

/// Which connection a client is on: its shard and its number there.
pub(crate) type ConnectionId = (usize, u64);

struct Instance {
    subscription_id: i32,
    interval_ms: i32,
    /// Version of the subscriptions that this was made from.
    version: u64,
    last_get_ms: i64,
    last_push_ms: i64,
    is_terminating: bool,
    last_error: Option<ResponseError>,
    /// The connection over which it was made; it goes with that.
    connection: ConnectionId,
    expires_ms: i64,
}

/// Whose request this is.
pub(crate) struct Caller {
    pub(crate) attributes: Attributes,
    pub(crate) connection: ConnectionId,
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) subscription_id: i32,
    pub(crate) asked: Asked,
}

/// A push, before its metrics are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PushRequest {
    pub(crate) subscription_id: i32,
    pub(crate) is_terminating: bool,
    pub(crate) compression: i8,
    pub(crate) bytes: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Instances {
    subscriptions: Arc<BTreeMap<String, Subscription>>,
    version: u64,
    all: HashMap<Uuid, Instance>,
    by_connection: HashMap<ConnectionId, Uuid>,
    /// When each will be forgotten.
    expiries: BTreeSet<(i64, Uuid)>,
}

impl Instances {
    /// There are other subscriptions from now on.
    pub(crate) fn handle_subscriptions(&mut self, subscriptions: BTreeMap<String, Subscription>) {
        self.subscriptions = Arc::new(subscriptions);
        self.version += 1;
    }

    /// A client asks for its subscription.
    pub(crate) fn handle_get(&mut self, now_ms: i64, id: Uuid, caller: &Caller) -> Result<Granted, ResponseError> {
        let asked = self.heard_of(now_ms, id, caller);
        let instance = self.all.get_mut(&id).expect("just heard of");
        let last_ms = instance.last_get_ms.max(instance.last_push_ms);
        if now_ms - last_ms >= i64::from(instance.interval_ms) {
            instance.last_get_ms = now_ms;
        } else if !matches!(
            instance.last_error,
            Some(ResponseError::UnknownSubscriptionId | ResponseError::UnsupportedCompressionType)
        ) {
            return Err(ResponseError::ThrottlingQuotaExceeded);
        }
        instance.last_error = None;
        Ok(Granted { subscription_id: instance.subscription_id, asked })
    }

    /// A client pushes. Its push interval in ms, if what it sends is to be looked at.
    pub(crate) fn handle_push(
        &mut self,
        now_ms: i64,
        id: Uuid,
        caller: &Caller,
        push: PushRequest,
    ) -> Result<i32, ResponseError> {
        if is_reserved(id) {
            return Err(ResponseError::InvalidRequest);
        }
        self.heard_of(now_ms, id, caller);
        let instance = self.all.get_mut(&id).expect("just heard of");
        let checked = instance.check(now_ms, push);
        instance.last_error = checked.err();
        instance.is_terminating = push.is_terminating;
        checked.map(|()| instance.interval_ms)
    }

    /// What a client pushed was not understood.
    pub(crate) fn on_refused(&mut self, id: Uuid, error: ResponseError) {
        if let Some(instance) = self.all.get_mut(&id) {
            instance.last_error = Some(error);
        }
    }

    /// A connection was closed.
    pub(crate) fn on_closed(&mut self, connection: ConnectionId) {
        let Some(id) = self.by_connection.remove(&connection) else { return };
        if self.all.get(&id).is_some_and(|instance| instance.connection == connection) {
            self.forget(id);
        }
    }

    /// Forgets whom nothing was heard of for long.
    pub(crate) fn handle_time(&mut self, now_ms: i64) {
        while let Some((expires_ms, id)) = self.expiries.first().copied()
            && expires_ms <= now_ms
        {
            self.forget(id);
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    #[cfg(test)]
    fn contains(&self, id: Uuid) -> bool {
        self.all.contains_key(&id)
    }

    /// Finds or makes the instance of a request, anew if subscriptions have changed; says what is asked of it.
    fn heard_of(&mut self, now_ms: i64, id: Uuid, caller: &Caller) -> Asked {
        let asked = Asked::of(self.subscriptions.values(), &caller.attributes);
        let is_known = self.all.get(&id).is_some_and(|instance| instance.version == self.version);
        if !is_known {
            self.forget(id);
            if self.all.len() >= INSTANCES_MAX
                && let Some((_, oldest)) = self.expiries.first().copied()
            {
                self.forget(oldest);
            }
            let instance = Instance {
                subscription_id: asked.id(id),
                interval_ms: asked.interval_ms,
                version: self.version,
                last_get_ms: 0,
                last_push_ms: 0,
                is_terminating: false,
                last_error: None,
                connection: caller.connection,
                expires_ms: 0,
            };
            self.all.insert(id, instance);
            // another one that came over this connection (through a proxy) is left to time
            self.by_connection.insert(caller.connection, id);
        }
        let instance = self.all.get_mut(&id).expect("just made");
        self.expiries.remove(&(instance.expires_ms, id));
        instance.expires_ms = now_ms + expiry_ms(instance.interval_ms);
        self.expiries.insert((instance.expires_ms, id));
        asked
    }

    fn forget(&mut self, id: Uuid) {
        let Some(instance) = self.all.remove(&id) else { return };
        self.expiries.remove(&(instance.expires_ms, id));
        if self.by_connection.get(&instance.connection) == Some(&id) {
            self.by_connection.remove(&instance.connection);
        }
    }
}

impl Instance {
    fn check(&mut self, now_ms: i64, push: PushRequest) -> Result<(), ResponseError> {
        if self.is_terminating {
            return Err(ResponseError::InvalidRequest);
        }
        // The first push after a get may come at any time: clients spread themselves over the interval.
        let is_due = self.last_get_ms > self.last_push_ms || now_ms - self.last_push_ms >= i64::from(self.interval_ms);
        if is_due {
            self.last_push_ms = now_ms;
        } else if !push.is_terminating {
            return Err(ResponseError::ThrottlingQuotaExceeded);
        }
        if push.subscription_id != self.subscription_id {
            return Err(ResponseError::UnknownSubscriptionId);
        }
        if !(0..=4).contains(&push.compression) {
            return Err(ResponseError::UnsupportedCompressionType);
        }
        if push.bytes > TELEMETRY_BYTES_MAX {
            return Err(ResponseError::TelemetryTooLarge);
        }
        Ok(())
    }
}

/// How long a client is remembered that pushes every `interval_ms`.
pub(crate) fn expiry_ms(interval_ms: i32) -> i64 {
    EXPIRY_MS_MIN.max(3 * i64::from(interval_ms))
}

/// Ids that no client has: zero and one.
fn is_reserved(id: Uuid) -> bool {
    id.as_u128() <= 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000;
    const ID: Uuid = Uuid::from_u128(77);

    fn caller(connection: u64) -> Caller {
        Caller { attributes: Attributes::default(), connection: (0, connection) }
    }

    fn subscriptions(interval_ms: &str) -> BTreeMap<String, Subscription> {
        let own = [("metrics", "*"), ("interval.ms", interval_ms)];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        BTreeMap::from([("s".to_owned(), Subscription::parse(&own).unwrap())])
    }

    fn instances() -> Instances {
        let mut instances = Instances::default();
        instances.handle_subscriptions(subscriptions("1000"));
        instances
    }

    fn push(subscription_id: i32) -> PushRequest {
        PushRequest { subscription_id, is_terminating: false, compression: 0, bytes: 10 }
    }

    #[test]
    fn gets_and_pushes_keep_to_the_interval() {
        let mut instances = instances();
        let granted = instances.handle_get(NOW, ID, &caller(1)).unwrap();
        assert_eq!(granted.asked.interval_ms, 1000);
        let id = granted.subscription_id;
        let throttled = ResponseError::ThrottlingQuotaExceeded;
        assert_eq!(instances.handle_get(NOW + 999, ID, &caller(1)), Err(throttled));
        assert_eq!(instances.handle_push(NOW + 1, ID, &caller(1), push(id)), Ok(1000), "the first may be early");
        assert_eq!(instances.handle_push(NOW + 1000, ID, &caller(1), push(id)), Err(throttled));
        assert_eq!(instances.handle_push(NOW + 1001, ID, &caller(1), push(id)), Ok(1000));
    }

    #[test]
    fn changed_subscriptions_are_learnt_at_once() {
        let mut instances = instances();
        let old = instances.handle_get(NOW, ID, &caller(1)).unwrap();
        instances.handle_subscriptions(subscriptions("5000"));
        let refused = instances.handle_push(NOW + 1, ID, &caller(1), push(old.subscription_id));
        assert_eq!(refused, Err(ResponseError::UnknownSubscriptionId));
        let new = instances.handle_get(NOW + 2, ID, &caller(1)).expect("not throttled after that error");
        assert_ne!(new.subscription_id, old.subscription_id);
        assert_eq!(new.asked.interval_ms, 5000);
    }

    #[test]
    fn bad_pushes_are_refused_one_by_one() {
        let mut instances = instances();
        let id = instances.handle_get(NOW, ID, &caller(1)).unwrap().subscription_id;
        let mut refused = |at, push| instances.handle_push(NOW + at, ID, &caller(1), push).unwrap_err();
        let compression = PushRequest { compression: 5, ..push(id) };
        assert_eq!(refused(0, compression), ResponseError::UnsupportedCompressionType);
        let large = PushRequest { bytes: TELEMETRY_BYTES_MAX + 1, ..push(id) };
        assert_eq!(refused(1000, large), ResponseError::TelemetryTooLarge);
        assert_eq!(refused(2000, push(id + 1)), ResponseError::UnknownSubscriptionId);
        for reserved in [0, 1] {
            let reserved = instances.handle_push(NOW, Uuid::from_u128(reserved), &caller(1), push(id));
            assert_eq!(reserved, Err(ResponseError::InvalidRequest));
        }
    }

    #[test]
    fn nothing_follows_a_terminating_push() {
        let mut instances = instances();
        let id = instances.handle_get(NOW, ID, &caller(1)).unwrap().subscription_id;
        assert_eq!(instances.handle_push(NOW, ID, &caller(1), push(id)), Ok(1000));
        let last = PushRequest { is_terminating: true, ..push(id) };
        assert_eq!(instances.handle_push(NOW + 1, ID, &caller(1), last), Ok(1000), "it need not wait");
        assert_eq!(instances.handle_push(NOW + 2, ID, &caller(1), last), Err(ResponseError::InvalidRequest));
    }

    #[test]
    fn instances_go_with_time_with_their_connection_and_for_want_of_room() {
        let mut instances = instances();
        instances.handle_get(NOW, ID, &caller(1)).unwrap();
        instances.handle_time(NOW + EXPIRY_MS_MIN - 1);
        assert!(instances.contains(ID));
        instances.handle_time(NOW + EXPIRY_MS_MIN);
        assert_eq!(instances.count(), 0);
        instances.handle_get(NOW, ID, &caller(2)).unwrap();
        instances.on_closed((0, 1));
        assert!(instances.contains(ID));
        instances.on_closed((0, 2));
        assert_eq!((instances.count(), instances.expiries.len(), instances.by_connection.len()), (0, 0, 0));
        for number in 0..INSTANCES_MAX as u64 + 5 {
            let at = NOW + i64::try_from(number).unwrap();
            instances.handle_get(at, Uuid::from_u128(100 + u128::from(number)), &caller(number)).unwrap();
        }
        assert_eq!(instances.count(), INSTANCES_MAX);
        assert!(!instances.contains(Uuid::from_u128(104)) && instances.contains(Uuid::from_u128(105)));
        assert_eq!(instances.by_connection.len(), INSTANCES_MAX);
    }
}
