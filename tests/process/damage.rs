//! Files that are damaged or gone: the node does not start, or says what it cannot read; and it never makes it worse.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use millrace_bench::{
    batch::BatchShape,
    client::{self, FetchLimits},
};

use crate::{
    broker::{Broker, PATIENCE, binary, start_fails},
    disk_full::STORAGE_ERROR,
    writer::Writer,
};

fn broker_with_records(batches: usize) -> Broker {
    let broker = Broker::start("--shards 1 --reserve-bytes 1MiB");
    broker.create_topic_with("kept", 1, &[("segment.bytes", "1048576")]);
    let shape = BatchShape { records: 30, value_bytes: 10_000, key_bytes: 0 };
    Writer::new(broker.address, "kept", 1, 1, 0).shape(shape).write(batches);
    broker
}

/// All files below a folder whose names end like that.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_node_without_its_catalog_or_a_manifest_does_not_start_and_removes_nothing() {
    let mut broker = broker_with_records(20);
    assert!(broker.terminate().success());
    let segments = files(broker.data(), ".log");
    assert!(segments.len() > 2);
    for name in ["catalog", "manifest-1-0"] {
        let (path, aside) = (broker.data().join(name), broker.data().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let said = start_fails(&broker.command());
        assert!(said.contains(&path.display().to_string()) && said.contains("missing"), "not clear: {said}");
        fs::rename(&aside, &path).unwrap();
    }
    assert_eq!(files(broker.data(), ".log"), segments);
    broker.restart();
}

#[test]
fn a_lost_first_group_of_the_log_is_not_taken_for_an_empty_log() {
    let mut broker = Broker::start("--shards 1");
    broker.create_topic("kept", 1);
    let mut writer = Writer::new(broker.address, "kept", 1, 1, 0);
    for _ in 0..20 {
        writer.write(1);
    }
    broker.kill();
    let log = files(broker.data(), "00000001.wal").remove(0);
    let file = fs::OpenOptions::new().read(true).write(true).open(log).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 200).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 200).unwrap();
    let said = start_fails(&broker.command());
    assert!(said.contains("group 1 of run 2 was durable"), "not clear: {said}");
    let dumped = start_fails(&format!("'{}' log dump '{}'", binary().display(), broker.data().display()));
    assert!(dumped.contains("DAMAGED: group 1 of run 2"), "{dumped}");
    file.write_all_at(&byte, 200).unwrap();
    broker.restart();
    broker.verify("kept", 1, &writer.acknowledged);
}

#[test]
fn a_segment_that_is_gone_is_an_error_for_readers_and_for_the_operator() {
    let mut broker = broker_with_records(20);
    assert!(broker.terminate().success());
    let first = files(broker.data(), ".log").remove(0);
    fs::remove_file(&first).unwrap();
    broker.restart();
    let position = std::iter::once((0, 0));
    let fetched = client::fetch(&mut broker.connect(), "kept", position, FetchLimits::default()).unwrap();
    assert_eq!(fetched[0].code, STORAGE_ERROR);
    let log = broker.log();
    assert!(log.contains("ERROR") && log.contains(&first.display().to_string()), "{log}");
    // clients try again on this error until the time is over, which is that of each request as well
    let said = start_fails(&consume(&broker, "--timeout 15s"));
    assert!(said.contains("offset 0") && said.contains("KAFKA_STORAGE_ERROR"), "not clear: {said}");
}

/// The command that prints all records.
fn consume(broker: &Broker, options: &str) -> String {
    format!("'{}' consume kept --broker {} {options}", binary().display(), broker.address)
}

#[test]
fn a_damaged_batch_is_not_printed() {
    let mut broker = broker_with_records(20);
    assert!(broker.terminate().success());
    let segment = files(broker.data(), ".log").remove(0);
    let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
    file.write_all_at(b"?", 5_000).unwrap();
    broker.restart();
    let said = start_fails(&consume(&broker, ""));
    assert!(said.contains("checksum is wrong"), "not clear: {said}");
}

#[test]
fn log_lines_that_nobody_takes_are_lost_and_nothing_else_is() {
    let broker = broker_with_records(1);
    let folder = tempfile::tempdir().unwrap();
    let other = millrace_bench::server::free_address().unwrap();
    let command = broker.command().replace(&broker.address.to_string(), &other.to_string());
    let command = command.replace(&broker.data().display().to_string(), &folder.path().display().to_string());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut deaf =
        Command::new("sh").args(["-c", &format!("exec {command}")]).stdout(Stdio::null()).stderr(full).spawn().unwrap();
    let mut waits = 0..600;
    let mut connection = loop {
        match client::connect(other, PATIENCE) {
            Ok(connection) => break connection,
            Err(error) => assert!(waits.next().is_some() && deaf.try_wait().unwrap().is_none(), "{error}"),
        }
        sleep(Duration::from_millis(100));
    };
    for _ in 0..3 {
        TcpStream::connect(other).unwrap().write_all(b"this is no request of Kafka's").unwrap();
    }
    client::create_topic(&mut connection, "logged", 1, &[]).unwrap();
    assert!(deaf.try_wait().unwrap().is_none(), "it ended");
    deaf.kill().unwrap();
    deaf.wait().unwrap();
}
