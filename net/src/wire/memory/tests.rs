//! Tests of the budget: examples, and that it keeps its promises whatever peers do.

use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a node gives a shard by default.
const LIMIT: usize = 64 * MIB;

fn budget() -> Budget {
    Budget::new(LIMIT, frame_bytes_max(LIMIT))
}

#[test]
fn the_parts_make_the_whole() {
    for limit in [LIMIT_BYTES_MIN, LIMIT_BYTES_MIN + 7, 8 * MIB, LIMIT] {
        for frame in [KIB, limit / 2, frame_bytes_max(limit)] {
            let budget = Budget::new(limit, frame);
            assert_eq!(budget.parts.iter().map(|part| part.kept).sum::<usize>(), limit);
            assert_eq!(budget.room(Class::Whole), limit);
            assert!(budget.room(budget.class_of(frame)) >= frame);
            assert!(budget.part(Class::Whole).kept >= 2 * SMALL_FRAME_BYTES_MAX);
            assert!(budget.part(Class::Small).kept >= SMALL_FRAME_BYTES_MAX);
        }
    }
}

#[test]
fn waiters_of_a_class_are_served_in_order() {
    let mut budget = budget();
    assert!(budget.reserve(Class::Large, 40 * MIB));
    assert!(!budget.reserve(Class::Large, 30 * MIB));
    let first = budget.enqueue(Class::Large, 30 * MIB);
    let second = budget.enqueue(Class::Large, 2 * MIB);
    assert!(!budget.reserve(Class::Large, 2 * MIB), "nobody overtakes the queue");
    assert_eq!((budget.next_grant(), budget.shortage(Class::Large)), (None, 24 * MIB));
    budget.release(Class::Large, 40 * MIB);
    assert_eq!((budget.next_grant(), budget.next_grant(), budget.next_grant()), (Some(first), Some(second), None));
    assert_eq!(budget.used(), 32 * MIB);
}

#[test]
fn smaller_frames_use_what_larger_ones_leave() {
    let mut budget = budget();
    for class in [Class::Whole, Class::Small, Class::Medium] {
        let room = budget.room(class);
        assert!(room >= LIMIT - LIMIT / 8, "{class:?} {room}");
        assert!(budget.reserve(class, room));
        budget.release(class, room);
    }
}

#[test]
fn larger_frames_leave_what_is_kept_for_smaller_ones() {
    let mut budget = budget();
    for class in Class::ALL.into_iter().rev() {
        let room = budget.room(class);
        assert_eq!(room, budget.part(class).kept);
        assert!(budget.reserve(class, room) && !budget.reserve(class, 1));
    }
    assert_eq!(budget.used(), LIMIT);
}

#[test]
fn smaller_frames_get_no_more_than_theirs_while_a_larger_one_waits() {
    let mut budget = budget();
    assert!(budget.reserve(Class::Medium, 50 * MIB));
    let large = budget.enqueue(Class::Large, 20 * MIB);
    assert!(!budget.reserve(Class::Medium, MIB));
    assert!(budget.reserve(Class::Whole, MIB));
    assert!(budget.gives_way(Class::Medium, Class::Large) && !budget.gives_way(Class::Whole, Class::Large));
    budget.release(Class::Medium, 20 * MIB);
    assert_eq!(budget.next_grant(), Some(large));
}

#[test]
fn whoever_gives_up_leaves_the_queue() {
    let mut budget = budget();
    assert!(budget.reserve(Class::Large, 48 * MIB));
    let first = budget.enqueue(Class::Large, 48 * MIB);
    let second = budget.enqueue(Class::Large, 2 * MIB);
    budget.cancel(first);
    budget.release(Class::Large, 2 * MIB);
    assert_eq!(budget.next_grant(), Some(second));
}

#[test]
fn dropped_reservations_come_back() {
    let memory = ReceiveMemory::new(LIMIT, MIB);
    let mut all = memory.reserve(Class::Whole, LIMIT).now_or_never().expect("the budget is free");
    let part = all.split(30);
    assert!(memory.reserve(Class::Whole, 31).now_or_never().is_none());
    assert_eq!(memory.shortage(Class::Whole), 0, "a dropped wait leaves the queue");
    drop(part);
    let waiting = memory.reserve(Class::Large, 31);
    let mut waiting = std::pin::pin!(waiting);
    assert!((&mut waiting).now_or_never().is_none() && memory.contended().now_or_never().is_some());
    drop(all);
    assert!((&mut waiting).now_or_never().is_some());
    assert_eq!(memory.usage(), (0, LIMIT), "what nobody holds is free");
}

/// What happens to a budget.
#[derive(Debug, Clone)]
enum Event {
    /// A request that a read finds whole, or a frame of which a part has come.
    Comes { is_whole: bool, bytes: usize },
    /// The peer of a waiter goes away.
    GivesUp(usize),
    /// One that was granted is answered, or ends.
    Ends(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let bytes = prop_oneof![1..SMALL_FRAME_BYTES_MAX, 1..2 * MIB, 1..=frame_bytes_max(8 * MIB)];
    let event = prop_oneof![
        4 => (any::<bool>(), bytes).prop_map(|(is_whole, bytes)| Event::Comes { is_whole, bytes }),
        1 => (0..100_usize).prop_map(Event::GivesUp),
        3 => (0..100_usize).prop_map(Event::Ends),
    ];
    proptest::collection::vec(event, 1..200)
}

/// A budget, who waits and who holds.
struct Model {
    budget: Budget,
    waiting: Vec<(WaiterId, Class, usize)>,
    held: Vec<(Class, usize)>,
}

impl Model {
    fn run(events: &[Event]) -> Model {
        let budget = Budget::new(8 * MIB, frame_bytes_max(8 * MIB));
        let mut model = Model { budget, waiting: Vec::new(), held: Vec::new() };
        for event in events {
            model.apply(event);
            model.grant();
        }
        model
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Comes { is_whole, bytes } => {
                let class = if is_whole { Class::Whole } else { self.budget.class_of(bytes) };
                let bytes = if is_whole { SMALL_FRAME_BYTES_MAX } else { bytes };
                if self.budget.reserve(class, bytes) {
                    self.held.push((class, bytes));
                } else {
                    self.waiting.push((self.budget.enqueue(class, bytes), class, bytes));
                }
            }
            Event::GivesUp(at) if !self.waiting.is_empty() => {
                let (id, ..) = self.waiting.remove(at % self.waiting.len());
                self.budget.cancel(id);
            }
            Event::Ends(at) if !self.held.is_empty() => {
                let (class, bytes) = self.held.remove(at % self.held.len());
                self.budget.release(class, bytes);
            }
            Event::GivesUp(_) | Event::Ends(_) => {}
        }
    }

    fn grant(&mut self) {
        while let Some(id) = self.budget.next_grant() {
            let at = self.waiting.iter().position(|(waiter, ..)| *waiter == id).expect("a waiter is granted");
            let (_, class, bytes) = self.waiting.remove(at);
            assert!(self.waiting.iter().all(|(waiter, other, _)| *other != class || *waiter > id), "in order");
            self.held.push((class, bytes));
        }
        let of = |class| self.held.iter().filter(|held| held.0 == class).map(|held| held.1).sum::<usize>();
        let mut above = 0;
        for class in Class::ALL.into_iter().rev() {
            assert_eq!(self.budget.part(class).used, of(class));
            above += of(class);
            assert!(above <= self.budget.part(class).ceiling, "{class:?} and above within their ceiling");
        }
        assert!(above <= 8 * MIB, "never above the budget");
    }
}

proptest! {
    /// Whatever has happened: if those that hold memory end, one after the other in any order, all who wait are served.
    #[test]
    fn whoever_is_patient_is_served(events in events(), order in proptest::collection::vec(0..100_usize, 400)) {
        let mut model = Model::run(&events);
        for at in order {
            model.apply(&Event::Ends(at));
            model.grant();
        }
        prop_assert!(model.waiting.is_empty(), "{:?}", model.waiting);
        prop_assert!(!model.budget.is_contended());
    }

    /// Peers that stop in the middle of frames hold up nobody whose frames are smaller than theirs, once those that
    /// take more than what is kept for them have been given up.
    #[test]
    fn stalled_frames_hold_up_no_smaller_ones(events in events(), class in 1..4_usize) {
        let stalled = Class::ALL[class];
        let mut model = Model::run(&events);
        let is_in_the_way = |model: &Model, held: &(Class, usize)| {
            held.0 < stalled || (held.0 == stalled && model.budget.part(stalled).used > model.budget.part(stalled).kept)
        };
        while let Some(at) = model.held.iter().position(|held| is_in_the_way(&model, held)) {
            model.apply(&Event::Ends(at));
            model.grant();
        }
        prop_assert!(model.waiting.iter().all(|(_, class, _)| *class >= stalled), "{:?}", model.waiting);
    }

    /// Whoever waits is served when enough of those that give way to it have given their bytes back.
    #[test]
    fn a_shortage_can_be_mended(events in events()) {
        let mut model = Model::run(&events);
        for class in Class::ALL {
            let Some(first) = model.waiting.iter().find(|waiting| waiting.1 == class).map(|waiting| waiting.0) else {
                continue;
            };
            prop_assert!(model.budget.shortage(class) > 0);
            while model.waiting.iter().any(|waiting| waiting.0 == first) {
                let at = model.held.iter().position(|held| model.budget.gives_way(held.0, class));
                model.apply(&Event::Ends(at.expect("somebody gives way")));
                model.grant();
            }
        }
    }
}
