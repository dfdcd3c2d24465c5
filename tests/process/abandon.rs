//! A log that lost something durable: the node says what is in doubt and how to go on, and goes on when told so twice.

use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

use crate::{
    broker::{Broker, binary, start_fails},
    writer::Writer,
};

/// Records in each of the writer's batches.
const RECORDS: u64 = 3;

fn abandon(broker: &Broker, rest: &str) -> String {
    format!("'{}' log abandon '{}' {rest}", binary().display(), broker.data().display())
}

fn succeeds(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    said
}

/// Every file below a folder but the lock, with its bytes.
fn contents(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false if path.ends_with("lock") => {}
            false => found.push((path.clone(), fs::read(path).unwrap())),
        }
    }
    found.sort();
    found
}

/// The start was refused with the sequence of a group, and nothing was said of whose records were in it, nor of a way to
/// go on.
#[test]
fn a_log_that_lost_a_durable_group_is_given_up_only_when_told_twice() {
    let mut broker = Broker::start("--shards 1");
    broker.create_topic("hurt", 1);
    broker.create_topic("whole", 1);
    let mut hurt = Writer::new(broker.address, "hurt", 1, 1, 0);
    let mut whole = Writer::new(broker.address, "whole", 1, 2, 0);
    for _ in 0..10 {
        hurt.write(1);
        whole.write(1);
    }
    broker.kill();
    // Each batch is a group of its own, and a block: the ninth is the fifth of "hurt".
    let log = fs::OpenOptions::new().write(true).open(broker.data().join("wal-0/00000001.wal")).unwrap();
    log.write_all_at(b"power was cut", 8 * 4096 + 200).unwrap();

    let said = start_fails(&broker.command());
    assert!(said.contains("group 9 of run 2 was durable"), "{said}");
    assert!(said.contains("hurt/0: offsets 12 to 29 are in doubt: those before 15 are gone"), "{said}");
    assert!(said.contains("log abandon") && !said.contains("whole/0"), "{said}");

    let before = contents(broker.data());
    let shown = start_fails(&abandon(&broker, ""));
    assert!(shown.contains("hurt/0: offsets 12 to 29") && shown.contains("18 records are known"), "{shown}");
    let code = shown.trim_end().rsplit(' ').next().unwrap().to_owned();
    let refused = start_fails(&abandon(&broker, "--yes-lose 00000000"));
    assert!(refused.contains("stands for other records"), "{refused}");
    for answer in ["", "yes", "abandon it"] {
        let refused = start_fails(&format!("echo '{answer}' | {}", abandon(&broker, &format!("--yes-lose {code}"))));
        assert!(refused.contains("not confirmed"), "{refused}");
    }
    assert!(contents(broker.data()) == before, "nothing was agreed to, and something was changed");

    let done = succeeds(&format!("echo abandon | {}", abandon(&broker, &format!("--yes-lose {code}"))));
    let aside = Path::new(done.trim_end().rsplit(' ').next().unwrap());
    assert!(aside.parent() == Some(broker.data()), "{done}");
    for (path, bytes) in before.iter().filter(|(path, _)| !path.starts_with(broker.data().join("topics"))) {
        let kept = aside.join(path.strip_prefix(broker.data()).unwrap());
        assert!(fs::read(&kept).unwrap() == *bytes, "{} is not what it was", kept.display());
    }
    broker.restart();
    broker.verify("whole", 2, &whole.acknowledged);
    let tally = broker.verdict("hurt", 1, &hurt.acknowledged);
    assert_eq!((tally.records, tally.lost), (4 * RECORDS, 6 * RECORDS), "{tally}");
    whole.disconnect();
    whole.write(5);
    let mut after = Writer::new(broker.address, "hurt", 1, 3, 0);
    after.write(5);
    broker.kill();
    let dumped = succeeds(&format!("'{}' log dump '{}'", binary().display(), broker.data().display()));
    assert!(dumped.contains("no damage found"), "{dumped}");
    assert!(succeeds(&abandon(&broker, "")).contains("nothing is in doubt"));
    broker.restart();
    broker.verify("whole", 2, &whole.acknowledged);
    broker.verify("hurt", 3, &after.acknowledged);
}

#[test]
fn a_log_is_not_given_up_under_a_running_broker() {
    let broker = Broker::start("--shards 1");
    let said = start_fails(&abandon(&broker, ""));
    assert!(said.contains("is in use by pid"), "{said}");
    let nowhere = tempfile::tempdir().unwrap();
    let said = start_fails(&format!("'{}' log abandon '{}'", binary().display(), nowhere.path().display()));
    assert!(said.contains("no data folder"), "{said}");
    assert_eq!(fs::read_dir(nowhere.path()).unwrap().count(), 0);
}
