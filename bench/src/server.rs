//! Starting, killing and stopping a broker's process.

use std::{
    fs::OpenOptions,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use kafka_protocol::messages::ApiVersionsRequest;

use crate::{client, payload::splitmix64, sys};

/// A broker that this tool started; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pid: u32,
    /// Where it serves.
    pub address: SocketAddr,
    /// When the command was started.
    pub started: Instant,
}

impl Server {
    /// Starts a broker by a shell command without waiting for it. The command either stays in the foreground, or it
    /// starts the broker in the background, ends, and `pid_command` prints the broker's pid. What it prints is appended
    /// to `log`, or thrown away.
    pub fn start(
        command: &str,
        pid_command: Option<&str>,
        address: SocketAddr,
        log: Option<&Path>,
    ) -> anyhow::Result<Server> {
        let output = || -> anyhow::Result<Stdio> {
            let Some(path) = log else { return Ok(Stdio::null()) };
            let file = OpenOptions::new().create(true).append(true).open(path);
            Ok(file.with_context(|| format!("{}", path.display()))?.into())
        };
        let mut child = Command::new("sh");
        let started = Instant::now();
        let child = child.arg("-c").arg(format!("exec {command}")).stdin(Stdio::null());
        let child = child.stdout(output()?).stderr(output()?);
        let mut child = child.spawn().with_context(|| format!("cannot start: {command}"))?;
        let mut pid = child.id();
        if let Some(pid_command) = pid_command {
            let status = child.wait()?;
            ensure!(status.success(), "{command}: {status}");
            let output = Command::new("sh").arg("-c").arg(pid_command).output()?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            pid = text.parse().with_context(|| format!("'{pid_command}' printed no pid but '{text}'"))?;
        }
        Ok(Server { child, pid, address, started })
    }

    /// The broker's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it answers a request.
    pub fn await_ready(&mut self, timeout: Duration) -> anyhow::Result<()> {
        while !answers(self.address, timeout) {
            ensure!(self.started.elapsed() < timeout, "no answer from {} within {timeout:?}", self.address);
            if self.pid == self.child.id()
                && let Some(status) = self.child.try_wait()?
            {
                bail!("the broker ended by itself: {status}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills it as a crash would (SIGKILL) and waits until it is gone.
    pub fn kill(mut self) -> anyhow::Result<()> {
        sys::signal(self.pid, libc::SIGKILL)?;
        self.wait(Duration::from_secs(60)).map(|_| ())
    }

    /// Asks it to stop (SIGTERM) and waits until it is gone; answers how it ended, where it is a child of ours.
    pub fn terminate(mut self, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
        sys::signal(self.pid, libc::SIGTERM)?;
        self.wait(timeout)
    }

    /// Waits until it is gone by itself; answers how it ended, where it is a child of ours.
    pub fn await_end(mut self, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.wait(timeout)
    }

    fn wait(&mut self, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            if self.pid == self.child.id() {
                if let Some(status) = self.child.try_wait()? {
                    return Ok(Some(status));
                }
            } else if sys::signal(self.pid, 0).is_err() {
                return Ok(None);
            }
            ensure!(start.elapsed() < timeout, "process {} still runs after {timeout:?}", self.pid);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // it may be gone already, and then there is nothing to do
        let reaped = matches!(self.child.try_wait(), Ok(Some(_)));
        if !reaped || self.pid != self.child.id() {
            let _ = sys::signal(self.pid, libc::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Whether a broker answers ApiVersions there.
pub fn answers(address: SocketAddr, timeout: Duration) -> bool {
    client::connect(address, timeout)
        .and_then(|mut connection| connection.call(0, &ApiVersionsRequest::default()))
        .is_ok()
}

/// Ports to listen on: below those that Linux gives to outgoing connections, which may take a port that a broker gave up
/// for the moment of a restart.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// Distance between the ports that are handed out: a broker whose shards are advertised takes those behind its own.
const PORTS_EACH: u32 = 16;

/// An address of this machine that nobody listens on; another one with every call.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let mut seed = u64::from(std::process::id());
    let start = splitmix64(&mut seed) as u32 % PORTS.len() as u32;
    for _ in PORTS {
        let port = PORTS.start + (start + PORTS_EACH * CALLS.fetch_add(1, Relaxed)) % PORTS.len() as u32;
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port in {PORTS:?}")
}
