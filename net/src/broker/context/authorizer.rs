//! Who may do what. Nothing is forbidden to anybody yet.

use super::Check;
use crate::broker::session::Principal;

/// Whether a principal may do an operation on the resource of that name.
#[cfg(not(test))]
pub(super) fn allows(_principal: &Principal, _check: Check, _name: &str) -> bool {
    true
}

#[cfg(test)]
pub(super) fn allows(_principal: &Principal, check: Check, _name: &str) -> bool {
    trial::allows(check)
}

/// Lets a test forbid things, and tells it what handlers asked for on its thread.
#[cfg(test)]
pub(crate) mod trial {
    use std::{
        cell::{Cell, RefCell},
        collections::BTreeSet,
    };

    use kafka_protocol::messages::ApiKey;

    use super::Check;

    thread_local! {
        static FORBIDDEN: Cell<fn(Check) -> bool> = const { Cell::new(|_| false) };
        static ASKED: RefCell<BTreeSet<(i16, Check)>> = const { RefCell::new(BTreeSet::new()) };
    }

    /// From now on.
    pub(crate) fn forbid(forbidden: fn(Check) -> bool) {
        FORBIDDEN.set(forbidden);
    }

    /// All that the handler of an API has asked for.
    pub(crate) fn asked(api: ApiKey) -> BTreeSet<Check> {
        let all = ASKED.with_borrow(BTreeSet::clone);
        all.into_iter().filter(|(key, _)| *key == api as i16).map(|(_, check)| check).collect()
    }

    pub(in super::super) fn on_asked(api: ApiKey, check: Check) {
        ASKED.with_borrow_mut(|asked| asked.insert((api as i16, check)));
    }

    pub(super) fn allows(check: Check) -> bool {
        !FORBIDDEN.get()(check)
    }
}
