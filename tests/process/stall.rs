//! A disk that stops: the broker says who waits for whom, once, feeds no watchdog, and can be stopped. Needs a file system
//! of its own that can be frozen: root, losetup, mkfs.ext4 and fsfreeze.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use millrace_bench::server;

use crate::{
    broker::{Broker, PATIENCE, binary},
    disk_full::{SmallDisk, run},
    writer::Writer,
};

/// A frozen file system: writes to it wait until this is dropped, or this process is gone in whatever way.
struct Frozen {
    thawer: Child,
}

impl Frozen {
    fn freeze(path: &Path) -> Result<Frozen, String> {
        let mut thawer = Command::new("sh");
        let thawer = thawer.args(["-c", "read _; exec fsfreeze -u \"$0\""]).arg(path).stdin(Stdio::piped());
        let thawer = thawer.stderr(Stdio::null()).spawn().map_err(|error| error.to_string())?;
        let frozen = Frozen { thawer };
        run("fsfreeze", &["-f", &path.display().to_string()])?;
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.thawer.stdin.take());
        let _ = self.thawer.wait();
    }
}

/// A producer that waits for its answer; killed when dropped.
struct Waiting(Child);

impl Waiting {
    fn start(broker: &Broker, topic: &str) -> Waiting {
        let mut command = Command::new(binary());
        command.args(["produce", topic, "--broker", &broker.address.to_string()]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"waits\n").unwrap();
        Waiting(child)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The disk, and whether it can be frozen; or nothing with a line that says why not.
fn disk_to_freeze() -> Option<SmallDisk> {
    let disk = SmallDisk::mount(400).and_then(|disk| Frozen::freeze(&disk.path()).map(|_| disk));
    match disk {
        Ok(disk) => Some(disk),
        Err(error) => {
            println!("skipped: no file system here that can be frozen ({error})");
            None
        }
    }
}

fn await_lines(broker: &Broker, words: &str, count: usize) {
    let start = Instant::now();
    while lines(broker, words) < count {
        assert!(start.elapsed() < PATIENCE, "not said: {words}\n{}", broker.log());
        sleep(Duration::from_millis(20));
    }
}

fn lines(broker: &Broker, words: &str) -> usize {
    broker.log().lines().filter(|line| line.contains(words)).count()
}

fn metric(address: SocketAddr, name: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let sample = page.lines().find_map(|line| line.strip_prefix(&format!("{name}{{shard=\"0\"}} ")));
    sample.unwrap_or_else(|| panic!("no {name} in\n{page}")).to_owned()
}

fn await_metric(address: SocketAddr, name: &str, value: &str) {
    let start = Instant::now();
    while metric(address, name) != value {
        assert!(start.elapsed() < PATIENCE, "{name} does not become {value}");
        sleep(Duration::from_millis(20));
    }
}

/// Messages to systemd that are there.
fn notices(socket: &UnixDatagram) -> Vec<String> {
    let next = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    std::iter::from_fn(next).collect()
}

/// Whether the watchdog was fed since the last look.
fn fed(socket: &UnixDatagram) -> bool {
    notices(socket).iter().any(|notice| notice == "WATCHDOG=1")
}

fn await_fed(broker: &Broker, socket: &UnixDatagram) {
    let start = Instant::now();
    while !fed(socket) {
        assert!(start.elapsed() < PATIENCE, "the watchdog is not fed\n{}", broker.log());
        sleep(Duration::from_millis(20));
    }
}

fn terminate(broker: &Broker) {
    assert!(Command::new("kill").args(["-TERM", &broker.pid().to_string()]).status().unwrap().success());
}

/// What the broker says of a stall, of the watchdog that starves by it, and of its end.
const STALLED: &str = "stalled: ";
const NOT_FED: &str = "systemd's watchdog is not fed: shards [0] are stalled";
const OVER: &str = "the stall is over";

#[test]
fn a_disk_that_stops_is_told_once_starves_the_watchdog_and_does_not_hold_up_a_stop() {
    let Some(disk) = disk_to_freeze() else { return };
    let folder = tempfile::tempdir().unwrap();
    let notify = folder.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_nonblocking(true).unwrap();
    let metrics = server::free_address().unwrap();
    let options = format!("--shards 1 --reserve-bytes 32MiB --stop-timeout 3s --metrics {metrics}");
    let environment = format!("WATCHDOG_USEC=400000 NOTIFY_SOCKET='{}'", notify.display());
    let mut broker = Broker::start_with(folder, disk.path().join("data"), &options, &environment);
    broker.create_topic("quiet", 1);
    broker.create_topic("kept", 1);
    let mut writer = Writer::new(broker.address, "kept", 1, 1, 0);
    writer.write(20);
    writer.disconnect();
    await_metric(metrics, "millrace_stalled", "0");
    await_fed(&broker, &socket);
    // a disk that others keep busy may have stalled before
    let count = |name| metric(metrics, name).parse::<usize>().unwrap();
    let (stalls, told) = (count("millrace_stalls_total"), lines(&broker, STALLED));
    let (hungry, over) = (lines(&broker, NOT_FED), lines(&broker, OVER));

    let frozen = Frozen::freeze(&disk.path()).unwrap();
    let waiting = Waiting::start(&broker, "quiet");
    await_lines(&broker, STALLED, told + 1);
    await_lines(&broker, NOT_FED, hungry + 1);
    drop(notices(&socket));
    sleep(Duration::from_secs(3));
    assert!(!fed(&socket), "{}", broker.log());
    assert_eq!(lines(&broker, STALLED), told + 1, "{}", broker.log());
    assert_eq!(metric(metrics, "millrace_stalled"), "1");
    assert_eq!(count("millrace_stalls_total"), stalls + 1);
    let log = broker.log();
    let line = log.lines().rfind(|line| line.contains(STALLED)).unwrap();
    for part in ["log files: ", "quiet-0 (1)", "live", "keeper: ", "shard=0"] {
        assert!(line.contains(part), "no '{part}' in {line}");
    }

    drop(frozen);
    await_lines(&broker, OVER, over + 1);
    await_fed(&broker, &socket);
    drop(waiting);
    await_metric(metrics, "millrace_stalled", "0");
    let told = lines(&broker, STALLED);

    let frozen = Frozen::freeze(&disk.path()).unwrap();
    let waiting = Waiting::start(&broker, "quiet");
    await_lines(&broker, STALLED, told + 1);
    terminate(&broker);
    await_lines(
        &broker,
        "not stopped after 3 s (--stop-timeout): ending at once; shard 0, which is stalled, leaves",
        1,
    );
    // a thread that waits in the kernel for the disk goes when the disk does
    drop(frozen);
    let status = broker.await_end();
    assert_eq!(status.code(), Some(3), "{}", broker.log());
    drop(waiting);
    broker.restart();
    broker.verify("kept", 1, &writer.acknowledged);
    assert!(broker.terminate().success(), "{}", broker.log());
}
