//! Whom a node takes for gone: what one shard saw is told to all of them, and who serves clients hears of every change.

use std::rc::Rc;

use futures_util::future::select;
use glommio::timer::sleep;
use millrace_engine::engine::Engine;

use super::Shell;
use crate::{channel::doubts::Sign, cluster::model::Member};

impl Shell {
    /// Takes a sign that this shard saw, and passes it on if it changed something here: all others have heard what this one has.
    pub(super) fn heed(self: &Rc<Self>, member: Member, sign: Sign) {
        if !self.note_sign(member, sign) {
            return;
        }
        for shard in (0..self.engine.shards()).filter(|shard| *shard != self.engine.shard()) {
            let shell = self.clone();
            self.tasks.spawn(async move {
                let told = std::pin::pin!(shell.engine.on_shard(shard, move |engine: Engine| async move {
                    if let Some(shell) = engine.attached::<Shell>() {
                        shell.note_sign(member, sign);
                    }
                }));
                select(told, std::pin::pin!(shell.ending.clone().wait())).await;
            });
        }
    }

    /// Whether it changed whom this shard doubts.
    fn note_sign(self: &Rc<Self>, member: Member, sign: Sign) -> bool {
        let changed = self.lives(member) && self.doubts.borrow_mut().note(self.now_ms(), member, sign);
        if changed {
            self.tell_doubts();
        }
        if changed && sign == Sign::Gone {
            self.tell(|core, _, _| core.handle_doubted(member));
            let shell = self.clone();
            self.tasks.spawn(async move {
                let late = std::pin::pin!(sleep(shell.options.doubt_max));
                select(late, std::pin::pin!(shell.ending.clone().wait())).await;
                shell.forget_doubts();
            });
        }
        changed
    }

    /// Time has gone by, or lives are over.
    pub(super) fn forget_doubts(&self) {
        let age_ms_max = u64::try_from(self.options.doubt_max.as_millis()).unwrap_or(u64::MAX);
        let changed = self.doubts.borrow_mut().forget(self.now_ms(), age_ms_max, |member| self.lives(member));
        if changed {
            self.tell_doubts();
        }
    }

    fn tell_doubts(&self) {
        (self.hooks.on_doubts)(self.doubts.borrow().nodes());
    }

    /// Whether that is the life of its node that the newest image has.
    fn lives(&self, member: Member) -> bool {
        let image = self.image.borrow();
        image.as_ref().and_then(|image| image.nodes.get(&member.node)).is_some_and(|node| node.member() == member)
    }
}
