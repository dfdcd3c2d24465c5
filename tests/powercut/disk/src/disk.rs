//! What the disk keeps and what it loses: a cache, a platter, and the writes that only the cache has.
//!
//! `cache` is what the host reads, `platter` what a power cut leaves. With the power on, the cache is the platter with
//! all of `pending` written over it, in order. After a cut they are equal and nothing is pending.

use std::{
    fs::{File, OpenOptions},
    io, mem,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::random::Random;

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// The disk.
#[derive(Debug)]
pub(crate) struct Disk {
    size: u64,
    cache: File,
    platter: File,
    /// In the order in which they came.
    pending: Vec<Write>,
    /// Of the newest write.
    sequence: u64,
    power: Power,
    plan: Option<Plan>,
    /// Flushes from now to the one that fails and forgets; 0: none does.
    forget_in: u64,
    /// What the last cut did, in words.
    last_cut: String,
    /// Since the start.
    counters: Counters,
}

#[derive(Debug)]
struct Write {
    sequence: u64,
    offset: u64,
    data: Vec<u8>,
}

#[derive(Debug, Default)]
struct Counters {
    reads: u64,
    writes: u64,
    flushes: u64,
    forgotten: u64,
}

/// Whether it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    /// It does.
    On,
    /// Nothing is answered any more.
    Hanging,
    /// Everything fails.
    Failing,
}

/// A cut that is still to come.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What it comes with.
    pub(crate) moment: Moment,
    /// The how manyth of those from now.
    pub(crate) count: u64,
    /// What happens then.
    pub(crate) cut: Cut,
}

/// When a cut comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A write reached the cache, and is not answered.
    Write,
    /// A flush was asked for, and is not done.
    Flush,
    /// A flush is done, and is not answered.
    Flushed,
}

/// A power cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Which writes the platter keeps.
    pub(crate) keep: Keep,
    /// Decides the rest.
    pub(crate) seed: u64,
    /// How the disk behaves from then on.
    pub(crate) then: Power,
}

/// Which of the pending writes a cut leaves on the platter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// None of them.
    Nothing,
    /// All of them.
    All,
    /// Those before a random one, which is torn.
    Prefix,
    /// Those behind a random one.
    Late,
    /// A part of each.
    Torn,
    /// A part of each, in runs of sectors or single ones.
    Sectors,
    /// Some, of which some are torn.
    Some,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// It is answered when the power is switched off.
    Never,
}

/// A flush under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flush {
    /// The newest write that it covers.
    until: u64,
    forgets: bool,
}

impl Disk {
    /// An empty one, whose images are in a folder.
    pub(crate) fn new(folder: &Path, size: u64) -> io::Result<Self> {
        let image = |name: &str| {
            let mut options = OpenOptions::new();
            let file = options.create(true).truncate(true).read(true).write(true).open(folder.join(name))?;
            file.set_len(size)?;
            io::Result::Ok(file)
        };
        Ok(Self {
            size,
            cache: image("cache.img")?,
            platter: image("platter.img")?,
            pending: Vec::new(),
            sequence: 0,
            power: Power::On,
            plan: None,
            forget_in: 0,
            last_cut: String::new(),
            counters: Counters::default(),
        })
    }

    /// The bytes at an offset, up to the disk's end.
    pub(crate) fn read(&mut self, offset: u64, length: u32) -> io::Result<Result<Vec<u8>, Answer>> {
        self.counters.reads += 1;
        if let Some(answer) = self.answer_without_power() {
            return Ok(Err(answer));
        }
        let length = u64::from(length).min(self.size.saturating_sub(offset));
        let mut bytes = vec![0; length as usize];
        self.cache.read_exact_at(&mut bytes, offset)?;
        Ok(Ok(bytes))
    }

    /// Takes a write into the cache.
    pub(crate) fn write(&mut self, offset: u64, data: Vec<u8>) -> io::Result<Answer> {
        self.counters.writes += 1;
        if let Some(answer) = self.answer_without_power() {
            return Ok(answer);
        }
        self.cache.write_all_at(&data, offset)?;
        self.sequence += 1;
        self.pending.push(Write { sequence: self.sequence, offset, data });
        self.comes(Moment::Write)
    }

    /// Begins a flush of all writes that came before it.
    pub(crate) fn begin_flush(&mut self) -> io::Result<Result<Flush, Answer>> {
        self.counters.flushes += 1;
        if let Some(answer) = self.answer_without_power() {
            return Ok(Err(answer));
        }
        if self.comes(Moment::Flush)? != Answer::Done {
            return Ok(Err(self.answer_without_power().unwrap_or(Answer::Failed)));
        }
        let forgets = self.forget_in == 1;
        self.forget_in = self.forget_in.saturating_sub(1);
        Ok(Ok(Flush { until: self.sequence, forgets }))
    }

    /// Ends it.
    pub(crate) fn end_flush(&mut self, flush: Flush) -> io::Result<Answer> {
        if let Some(answer) = self.answer_without_power() {
            return Ok(answer);
        }
        let covered = self.pending.partition_point(|write| write.sequence <= flush.until);
        let writes: Vec<Write> = self.pending.drain(..covered).collect();
        if flush.forgets {
            self.counters.forgotten += writes.len() as u64;
            self.read_back(&writes)?;
            // what was written since then stays
            self.pending.iter().try_for_each(|write| self.cache.write_all_at(&write.data, write.offset))?;
            return Ok(Answer::Failed);
        }
        writes.iter().try_for_each(|write| self.platter.write_all_at(&write.data, write.offset))?;
        self.comes(Moment::Flushed)
    }

    /// The Nth flush from now fails, and what it should have covered is lost, although later ones succeed.
    pub(crate) fn forget_in(&mut self, flushes: u64) {
        self.forget_in = flushes;
    }

    /// A cut in the future, instead of another.
    pub(crate) fn plan(&mut self, plan: Option<Plan>) {
        self.plan = plan;
    }

    /// Cuts the power now. One that is cut already stays as it is.
    pub(crate) fn cut(&mut self, cut: Cut) -> io::Result<()> {
        if self.power != Power::On {
            return Ok(());
        }
        let mut random = Random(cut.seed);
        let pending = mem::take(&mut self.pending);
        let fates = cut.keep.fates(pending.len(), &mut random);
        let (mut torn, mut lost) = (0, 0);
        for (write, fate) in pending.iter().zip(fates) {
            match fate {
                Fate::Kept => self.platter.write_all_at(&write.data, write.offset)?,
                Fate::Lost => lost += 1,
                Fate::Torn => {
                    torn += 1;
                    self.tear(write, cut.keep == Keep::Sectors, &mut random)?;
                }
            }
        }
        self.read_back(&pending)?;
        self.power = cut.then;
        self.plan = None;
        self.forget_in = 0;
        self.last_cut = format!("{:?}, {} unflushed writes: {torn} torn, {lost} lost", cut.keep, pending.len());
        Ok(())
    }

    /// From now on everything fails.
    pub(crate) fn power_off(&mut self) {
        self.power = Power::Failing;
    }

    /// The power is back; without a cut before it, what was not flushed is lost.
    pub(crate) fn power_on(&mut self) -> io::Result<()> {
        let pending = mem::take(&mut self.pending);
        self.read_back(&pending)?;
        self.power = Power::On;
        Ok(())
    }

    /// In words: "on", or "cut" and what the cut did.
    pub(crate) fn status(&self) -> String {
        match self.power {
            Power::On => "on".to_owned(),
            Power::Hanging => format!("cut, hangs: {}", self.last_cut),
            Power::Failing => format!("cut, fails: {}", self.last_cut),
        }
    }

    /// In words.
    pub(crate) fn statistics(&self) -> String {
        let Counters { reads, writes, flushes, forgotten } = self.counters;
        format!("reads={reads} writes={writes} flushes={flushes} forgotten={forgotten} pending={}", self.pending.len())
    }

    fn answer_without_power(&self) -> Option<Answer> {
        match self.power {
            Power::On => None,
            Power::Hanging => Some(Answer::Never),
            Power::Failing => Some(Answer::Failed),
        }
    }

    /// A moment for which a cut may be planned.
    fn comes(&mut self, moment: Moment) -> io::Result<Answer> {
        match &mut self.plan {
            Some(plan) if plan.moment == moment && plan.count > 1 => plan.count -= 1,
            Some(plan) if plan.moment == moment => {
                let cut = plan.cut;
                self.cut(cut)?;
            }
            _ => {}
        }
        Ok(self.answer_without_power().unwrap_or(Answer::Done))
    }

    /// Makes the cache the platter again where these writes were.
    fn read_back(&self, writes: &[Write]) -> io::Result<()> {
        for write in writes {
            let mut bytes = vec![0; write.data.len()];
            self.platter.read_exact_at(&mut bytes, write.offset)?;
            self.cache.write_all_at(&bytes, write.offset)?;
        }
        Ok(())
    }

    /// Brings a part of a write to the platter: its beginning, its end, or runs of its sectors.
    fn tear(&self, write: &Write, always_runs: bool, random: &mut Random) -> io::Result<()> {
        let sectors = write.data.len().div_ceil(SECTOR);
        let style = if always_runs { 2 } else { random.below(4) };
        let (edge, share) = (random.below(sectors as u64 + 1) as usize, random.unit());
        for (at, sector) in write.data.chunks(SECTOR).enumerate() {
            let is_kept = match style {
                0 => at < edge,
                1 => at >= edge,
                _ => random.unit() < share,
            };
            if is_kept {
                self.platter.write_all_at(sector, write.offset + (at * SECTOR) as u64)?;
            }
        }
        Ok(())
    }
}

/// What a cut does to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Torn,
    Lost,
}

impl Keep {
    /// Of each pending write.
    fn fates(self, writes: usize, random: &mut Random) -> Vec<Fate> {
        let (kept, torn) = (0.1 + 0.8 * random.unit(), random.unit());
        let edge = random.below(writes as u64 + 1) as usize;
        let fate = |at: usize| match self {
            Keep::Nothing => Fate::Lost,
            Keep::All => Fate::Kept,
            Keep::Prefix if at == edge => Fate::Torn,
            Keep::Prefix if at < edge => Fate::Kept,
            Keep::Late if at >= edge => Fate::Kept,
            Keep::Prefix | Keep::Late => Fate::Lost,
            Keep::Torn | Keep::Sectors => Fate::Torn,
            Keep::Some if random.unit() >= kept => Fate::Lost,
            Keep::Some if random.unit() < torn => Fate::Torn,
            Keep::Some => Fate::Kept,
        };
        (0..writes).map(fate).collect()
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
