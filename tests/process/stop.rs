//! SIGTERM: everything acknowledged is there afterwards, and the process ends by itself with success.

use std::{
    io::PipeReader,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use millrace_bench::server;

use crate::{
    broker::{Broker, PATIENCE, binary},
    writer::Writer,
};

#[test]
fn sigterm_under_load_stops_cleanly() {
    let mut broker = Broker::start("--shards 2");
    broker.create_topic("stopped", 4);
    let stop = AtomicBool::new(false);
    let writers: Vec<Writer> = std::thread::scope(|scope| {
        let (address, stop) = (broker.address, &stop);
        let run = |producer| scope.spawn(move || Writer::new(address, "stopped", 4, 1, producer).run(stop));
        let handles: Vec<_> = (0..3).map(run).collect();
        std::thread::sleep(Duration::from_millis(300));
        let status = broker.terminate();
        assert!(status.success(), "{status}\n{}", broker.log());
        broker.restart();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Relaxed);
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    for writer in &writers {
        // a request that comes in while the node stops may be refused, if with an error that clients try again on:
        // LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, REQUEST_TIMED_OUT, COORDINATOR_NOT_AVAILABLE, KAFKA_STORAGE_ERROR
        let fine = |code: &i16| [5, 6, 7, 15, 56].contains(code);
        assert!(writer.refusals.iter().all(fine), "{:?}", writer.refusals);
        let mut own = writer.acknowledged.clone();
        writers.iter().for_each(|other| own.merge(other.acknowledged.clone()));
        broker.verify("stopped", 1, &own);
    }
}

#[test]
fn sigterm_without_load_and_with_idle_connections_stops_cleanly() {
    let mut broker = Broker::start("--shards 2");
    let idle: Vec<_> = (0..5).map(|_| broker.connect()).collect();
    let status = broker.terminate();
    assert!(status.success(), "{status}\n{}", broker.log());
    drop(idle);
}

#[test]
fn a_line_on_standard_output_says_where_it_listens() {
    let broker = Broker::start("--shards 1");
    let address = broker.address.to_string();
    let said = || broker.log().lines().any(|line| line.contains("listening") && line.contains(&address));
    let start = Instant::now();
    while !said() {
        assert!(start.elapsed() < PATIENCE, "{}", broker.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A broker a shard of which waits for somebody to read what it logs, and behind it whoever else logs. Answers it with the
/// end that nobody reads.
fn deaf_broker(folder: &std::path::Path, stop_timeout: &str) -> (Child, PipeReader) {
    let address = server::free_address().unwrap();
    let (unread, log) = std::io::pipe().unwrap();
    let data = folder.join("data").display().to_string();
    let mut command = Command::new(binary());
    command.args(["serve", "--data", &data, "--listen", &address.to_string(), "--stop-timeout", stop_timeout]);
    command.args(["--shards", "2", "--wal-bytes", "32MiB", "--memory", "128MiB", "--log-level", "debug"]);
    let broker = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
    let start = Instant::now();
    while !server::answers(address, PATIENCE) {
        assert!(start.elapsed() < PATIENCE, "it does not start");
    }
    // twice in a row: a shard may also wait for a moment for another one's turn to write
    let waits = || waits_for_its_reader(broker.id());
    while !(waits() && {
        std::thread::sleep(Duration::from_millis(100));
        waits()
    }) {
        // whoever asks is logged, and whether there is an answer says nothing: the machine may be busy
        server::answers(address, Duration::from_millis(100));
        assert!(start.elapsed() < PATIENCE, "it goes on logging");
    }
    (broker, unread)
}

/// Whether a shard of that process is within a write to standard error.
fn waits_for_its_reader(pid: u32) -> bool {
    let write = format!("{} 0x2 ", libc::SYS_write);
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().any(|task| {
        let read = |name| std::fs::read_to_string(task.as_ref().unwrap().path().join(name)).unwrap_or_default();
        // the kernel tells the call of a thread that sleeps in it, and it sleeps in this one where there is no room
        read("comm").starts_with("shard-") && read("syscall").starts_with(&write)
    })
}

fn sigterm(broker: &Child) {
    assert!(Command::new("kill").args(["-TERM", &broker.id().to_string()]).status().unwrap().success());
}

/// Waits for its end, and now and then does something.
fn await_code(mut broker: Child, mut meanwhile: impl FnMut(&Child)) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = broker.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > PATIENCE {
            broker.kill().unwrap();
            panic!("it did not end");
        }
        meanwhile(&broker);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// SIGTERM waited for shards for ever.
#[test]
fn sigterm_ends_a_broker_whose_shards_stand_still() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _unread) = deaf_broker(folder.path(), "2s");
    sigterm(&broker);
    assert_eq!(await_code(broker, |_| {}), Some(3));
}

/// The first signal's own line in the log waited for its reader, and the second was never seen.
#[test]
fn a_second_signal_ends_a_broker_whose_shards_stand_still_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (broker, _unread) = deaf_broker(folder.path(), "1h");
    assert_eq!(await_code(broker, sigterm), Some(143));
}
