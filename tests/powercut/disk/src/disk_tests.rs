//! What a cut may take, and what it may not.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;

const SIZE: u64 = 1 << 20;
const ALL: [Keep; 7] = [Keep::Nothing, Keep::All, Keep::Prefix, Keep::Late, Keep::Torn, Keep::Sectors, Keep::Some];

/// A disk in a folder that goes with it.
struct Rig {
    disk: Disk,
    folder: PathBuf,
}

impl Rig {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("powercut-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self { disk: Disk::new(&folder, SIZE).unwrap(), folder }
    }

    fn write(&mut self, offset: u64, byte: u8) -> Answer {
        self.disk.write(offset, vec![byte; 4096]).unwrap()
    }

    fn flush(&mut self) -> Answer {
        match self.disk.begin_flush().unwrap() {
            Ok(flush) => self.disk.end_flush(flush).unwrap(),
            Err(answer) => answer,
        }
    }

    fn read(&mut self, offset: u64) -> Vec<u8> {
        self.disk.read(offset, 4096).unwrap().unwrap()
    }

    fn cut(&mut self, keep: Keep, seed: u64) {
        self.disk.cut(Cut { keep, seed, then: Power::Hanging }).unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn what_was_flushed_outlives_every_cut() {
    for (keep, seed) in ALL.into_iter().flat_map(|keep| (0..20).map(move |seed| (keep, seed))) {
        let mut rig = Rig::new();
        for at in 0..8 {
            assert_eq!(rig.write(at * 4096, 1 + at as u8), Answer::Done);
        }
        assert_eq!(rig.flush(), Answer::Done);
        rig.cut(keep, seed);
        rig.disk.power_on().unwrap();
        for at in 0..8 {
            assert_eq!(rig.read(at * 4096), [1 + at as u8; 4096], "{keep:?}");
        }
    }
}

#[test]
fn a_cut_keeps_what_its_kind_says() {
    for (keep, min, max) in [(Keep::Nothing, 0, 0), (Keep::All, 8, 8), (Keep::Prefix, 0, 8), (Keep::Late, 0, 8)] {
        let mut seen = Vec::new();
        for seed in 0..40 {
            let mut rig = Rig::new();
            (0..8).for_each(|at| assert_eq!(rig.write(at * 4096, 9), Answer::Done));
            rig.cut(keep, seed);
            rig.disk.power_on().unwrap();
            let whole: Vec<bool> = (0..8).map(|at| rig.read(at * 4096) == [9; 4096]).collect();
            let ordered = whole.is_sorted_by(|a, b| if keep == Keep::Late { a <= b } else { a >= b });
            assert!(ordered, "{keep:?} {seed}: {whole:?}");
            seen.push(whole.iter().filter(|whole| **whole).count());
        }
        assert_eq!((seen.iter().min(), seen.iter().max()), (Some(&min), Some(&max)), "{keep:?}");
    }
}

#[test]
fn sectors_are_never_torn_themselves() {
    let mut partly = 0;
    for seed in 0..50 {
        let mut rig = Rig::new();
        rig.write(0, 7);
        rig.cut(Keep::Sectors, seed);
        rig.disk.power_on().unwrap();
        let bytes = rig.read(0);
        let kept = bytes.chunks(SECTOR).filter(|sector| **sector == [7; SECTOR]).count();
        let lost = bytes.chunks(SECTOR).filter(|sector| **sector == [0; SECTOR]).count();
        assert_eq!(kept + lost, bytes.len() / SECTOR);
        partly += usize::from(kept > 0 && lost > 0);
    }
    assert!(partly > 0);
}

#[test]
fn the_same_seed_leaves_the_same_platter() {
    let platter = |seed| {
        let mut rig = Rig::new();
        (0..16).for_each(|at| assert_eq!(rig.write(at * 4096, 3), Answer::Done));
        rig.cut(Keep::Some, seed);
        fs::read(rig.folder.join("platter.img")).unwrap()
    };
    assert!(platter(5) == platter(5));
    assert!((0..20).any(|seed| platter(seed) != platter(5)));
}

#[test]
fn nothing_is_done_without_power() {
    let mut rig = Rig::new();
    rig.cut(Keep::All, 0);
    assert_eq!(rig.write(0, 1), Answer::Never);
    assert_eq!(rig.flush(), Answer::Never);
    rig.disk.power_off();
    assert_eq!(rig.write(0, 1), Answer::Failed);
    assert_eq!(rig.disk.read(0, 512).unwrap(), Err(Answer::Failed));
    rig.disk.power_on().unwrap();
    assert_eq!(rig.read(0), [0; 4096]);
}

#[test]
fn a_cut_comes_when_it_is_planned_and_once() {
    for (moment, kept) in [(Moment::Write, 0), (Moment::Flush, 0), (Moment::Flushed, 2)] {
        let mut rig = Rig::new();
        let cut = Cut { keep: Keep::Nothing, seed: 0, then: Power::Failing };
        rig.disk.plan(Some(Plan { moment, count: if moment == Moment::Write { 2 } else { 1 }, cut }));
        assert_eq!(rig.write(0, 2), Answer::Done);
        let second = rig.write(0, 2);
        assert_eq!(second, if moment == Moment::Write { Answer::Failed } else { Answer::Done });
        assert_eq!(rig.flush(), Answer::Failed);
        rig.disk.power_on().unwrap();
        assert_eq!(rig.read(0), [kept; 4096], "{moment:?}");
        assert_eq!((rig.write(0, 5), rig.flush()), (Answer::Done, Answer::Done));
    }
}

#[test]
fn a_flush_that_forgets_takes_what_it_covers_and_nothing_else() {
    let mut rig = Rig::new();
    rig.write(0, 1);
    rig.disk.forget_in(2);
    assert_eq!(rig.flush(), Answer::Done);
    rig.write(0, 2);
    rig.write(4096, 2);
    let flush = rig.disk.begin_flush().unwrap().unwrap();
    rig.write(4096, 3);
    assert_eq!(rig.disk.end_flush(flush).unwrap(), Answer::Failed);
    assert_eq!(rig.flush(), Answer::Done);
    assert_eq!((rig.read(0), rig.read(4096)), (vec![1; 4096], vec![3; 4096]));
    rig.cut(Keep::Nothing, 0);
    rig.disk.power_on().unwrap();
    assert_eq!((rig.read(0), rig.read(4096)), (vec![1; 4096], vec![3; 4096]));
}
