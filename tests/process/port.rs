//! One address, one broker, however close together two of them start.

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use millrace_bench::server::free_address;

use crate::broker::{PATIENCE, binary, rounds};

/// What became of a broker: it serves, or it ended with what it said.
enum Fate {
    Serves,
    Ended(Option<i32>, String),
}

fn start(data: &Path, listen: &str, more: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.args(["serve", "--data", data.to_str().unwrap(), "--listen", listen, "--shards", "2"]);
    command.args(["--wal-bytes", "32MiB", "--memory", "128MiB"]).args(more);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads what a broker says until it is ready or has ended.
fn fate(child: &mut Child) -> Fate {
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut before = String::new();
    loop {
        let mut line = String::new();
        if said.read_line(&mut line).unwrap() == 0 {
            return Fate::Ended(child.wait().unwrap().code(), before);
        }
        before.push_str(&line);
        if line.starts_with("  stop ") {
            // what it says from now on must not block it
            thread::spawn(move || drop(said.read_to_string(&mut String::new())));
            return Fate::Serves;
        }
    }
}

/// Starts brokers at once, each on data of its own; answers how many serve, and what the others said.
fn start_at_once(listens: &[String], more: &[&str]) -> (usize, Vec<String>) {
    let folder = tempfile::Builder::new().prefix("millrace-process-").tempdir().unwrap();
    let at = |at: usize| folder.path().join(at.to_string());
    let mut children: Vec<Child> =
        listens.iter().enumerate().map(|(number, listen)| start(&at(number), listen, more)).collect();
    let (fates, decided) = mpsc::channel();
    thread::scope(|scope| {
        for child in &mut children {
            let fates = fates.clone();
            scope.spawn(move || fates.send((child.id(), fate(child))).unwrap());
        }
    });
    drop(fates);
    let mut serving = Vec::new();
    let mut refused = Vec::new();
    while let Ok((pid, fate)) = decided.recv_timeout(PATIENCE) {
        match fate {
            Fate::Serves => serving.push(pid),
            Fate::Ended(code, said) => {
                assert_eq!(code, Some(1), "{said}");
                refused.push(said);
            }
        }
    }
    for child in &mut children {
        drop(child.kill()); // it may have ended
        child.wait().unwrap();
    }
    if let [pid] = serving[..] {
        for said in &refused {
            assert!(said.contains(&format!("is taken by process {pid} (millrace)")), "{said}");
        }
    }
    (serving.len(), refused)
}

fn on(address: SocketAddr, host: &str) -> String {
    format!("{host}:{}", address.port())
}

#[test]
fn of_brokers_that_start_at_once_on_one_address_one_serves() {
    for _ in 0..rounds(5) {
        let address = free_address().unwrap();
        let (serving, refused) = start_at_once(&vec![address.to_string(); 4], &[]);
        assert_eq!((serving, refused.len()), (1, 3), "{refused:?}");
    }
}

#[test]
fn an_address_within_another_one_is_taken_with_it() {
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    for hosts in [["0.0.0.0", "127.0.0.1"], ["127.0.0.1", "[::]"]] {
        if hosts.contains(&"[::]") && !has_ipv6 {
            continue;
        }
        let address = free_address().unwrap();
        let (serving, refused) = start_at_once(&hosts.map(|host| on(address, host)), &[]);
        assert_eq!((serving, refused.len()), (1, 1), "{hosts:?}: {refused:?}");
    }
}

#[test]
fn ports_of_single_shards_are_taken_too() {
    let first = free_address().unwrap();
    let second = SocketAddr::new(first.ip(), first.port() + 1);
    let (serving, refused) = start_at_once(&[first, second].map(|a| a.to_string()), &["--advertise", "shard"]);
    assert_eq!((serving, refused.len()), (1, 1), "{refused:?}");
}

#[test]
fn every_listener_takes_its_address() {
    let (first, second) = (free_address().unwrap(), free_address().unwrap());
    let both = format!("INSIDE://{first},OUTSIDE://{second}");
    let (serving, refused) = start_at_once(&[both, second.to_string()], &[]);
    assert_eq!((serving, refused.len()), (1, 1), "{refused:?}");
}

#[test]
fn addresses_that_do_not_meet_can_share_a_port() {
    let address = free_address().unwrap();
    let (serving, refused) = start_at_once(&["127.0.0.1", "127.0.0.2"].map(|host| on(address, host)), &[]);
    assert_eq!(serving, 2, "{refused:?}");
}
