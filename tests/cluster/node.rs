//! A process under test, and a node as one.

use std::{
    fs::OpenOptions,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use millrace_bench::{server, sys};

/// Longest wait for anything: a test that gets there has found a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Path of the binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("MILLRACE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_millrace").into(), PathBuf::from)
}

/// Rounds of a test that relies on chance: more of them in long runs.
pub(crate) fn rounds(few: u32) -> u32 {
    let factor = std::env::var("MILLRACE_ROUNDS").ok().map(|text| text.parse::<u32>().unwrap());
    few * factor.unwrap_or(1)
}

/// A command and, while it runs, its process; killed when dropped.
pub(crate) struct Process {
    command: String,
    log: PathBuf,
    child: Option<Child>,
    is_paused: bool,
}

impl Process {
    /// One that does not run yet; what it prints goes to `log`.
    pub(crate) fn new(command: String, log: PathBuf) -> Process {
        Process { command, log, child: None, is_paused: false }
    }

    /// Replaces the command for the next start.
    pub(crate) fn set_command(&mut self, command: String) {
        self.command = command;
    }

    /// Starts it without waiting for anything.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "it runs: {}", self.command);
        let output = || OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("exec {}", self.command)).stdin(Stdio::null());
        self.child = Some(command.stdout(output()).stderr(output()).spawn().unwrap());
    }

    /// Whether it was started and not ended by us.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    fn signal(&self, signal: i32) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("does not run: {}", self.command));
        sys::signal(child.id(), signal).unwrap();
    }

    /// kill -9, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.is_paused = false;
        self.child.take().unwrap().wait().unwrap();
    }

    /// kill -9 of a process that it started, by the name of that.
    pub(crate) fn kill_child(&self, name: &str) {
        let id = self.child.as_ref().unwrap_or_else(|| panic!("does not run: {}", self.command)).id();
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten();
        let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<u32> =
            children.collect::<String>().split_whitespace().map(|it| it.parse().unwrap()).collect();
        let is_it = |id: &&u32| std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|it| it.trim() == name);
        let child = children.iter().find(is_it).unwrap_or_else(|| panic!("no {name} among {children:?}"));
        sys::signal(*child, libc::SIGKILL).unwrap();
    }

    /// SIGTERM without waiting for the end.
    pub(crate) fn begin_stop(&mut self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits until it ended; answers how.
    pub(crate) fn await_end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        let mut child = self.child.take().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if begun.elapsed() > PATIENCE {
                self.child = Some(child);
                panic!("still runs after {PATIENCE:?}: {}\n{}", self.command, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self) {
        self.signal(libc::SIGSTOP);
        self.is_paused = true;
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self) {
        self.signal(libc::SIGCONT);
        self.is_paused = false;
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }

    /// What it printed, over all its lives.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may be gone already
            let _ = child.wait();
        }
    }
}

/// One node: its folder, its addresses, its life.
pub(crate) struct Node {
    /// Its id.
    pub(crate) id: i32,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Its process.
    pub(crate) process: Process,
    /// What starts it alone, and what beside that starts it in its cluster.
    commands: (String, String),
    data: PathBuf,
}

/// Where a process is: its addresses, and what is before its command to bring it there.
pub(crate) struct Place {
    pub(crate) wrapper: String,
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl Place {
    /// On this machine like any process.
    pub(crate) fn here() -> Place {
        let (client, peer) = (server::free_address().unwrap(), server::free_address().unwrap());
        Place { wrapper: String::new(), client, peer }
    }
}

/// What all nodes of a cluster are started with.
pub(crate) struct NodeOptions<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) etcd: String,
    pub(crate) more: &'a str,
}

impl Node {
    /// A node that does not run yet.
    pub(crate) fn new(id: i32, place: Place, options: &NodeOptions<'_>) -> Node {
        let Place { wrapper, client: address, peer } = place;
        let folder = options.folder.join(format!("node-{id}"));
        std::fs::create_dir_all(&folder).unwrap();
        let data = folder.join("data");
        // small logs and little memory: three nodes run at once, and small logs wrap around
        let alone = format!(
            "{wrapper}'{binary}' serve --data '{data}' --listen {address} --node-id {id} --wal-bytes 32MiB --memory 64MiB \
             --reserve-bytes 16MiB {more}",
            binary = binary().display(),
            data = data.display(),
            more = options.more,
        );
        let in_cluster = format!("--cluster tested --etcd {} --peer-listen {peer}", options.etcd);
        let process = Process::new(format!("{alone} {in_cluster}"), folder.join("log"));
        Node { id, address, process, commands: (alone, in_cluster), data }
    }

    /// Has it started without its cluster, until [`Node::join`].
    pub(crate) fn stay_alone(&mut self) {
        self.process.set_command(self.commands.0.clone());
    }

    /// Has it started in its cluster from now on.
    pub(crate) fn join(&mut self) {
        let (alone, in_cluster) = &self.commands;
        self.process.set_command(format!("{alone} {in_cluster}"));
    }

    /// Whether its data directory has that written down of its lives in the cluster.
    pub(crate) fn remembers(&self, what: &str) -> bool {
        std::fs::read_to_string(self.data.join("member.toml")).is_ok_and(|text| text.contains(what))
    }

    /// Runs another command than `serve` with the node's options, while it does not run. Whether it went well, and what it
    /// said.
    pub(crate) fn offline(&self, command: &str) -> (bool, String) {
        let (alone, in_cluster) = &self.commands;
        let line = format!("{alone} {in_cluster}").replacen(" serve ", &format!(" {command} "), 1);
        let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    }

    /// A path in its data directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    /// Takes a folder out of its data directory, as a disk that died would.
    pub(crate) fn lose(&self, folder: &str) {
        let begun = Instant::now();
        // who still writes there is about to end
        while let Err(error) = std::fs::remove_dir_all(self.data.join(folder)) {
            assert!(begun.elapsed() < PATIENCE, "{folder}: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it answers clients.
    pub(crate) fn await_ready(&mut self) {
        let begun = Instant::now();
        while !server::answers(self.address, Duration::from_secs(1)) {
            if let Some(status) = self.process.ended() {
                panic!("node {} ended by itself: {status}\n{}", self.id, self.process.log());
            }
            assert!(begun.elapsed() < PATIENCE, "node {} does not answer\n{}", self.id, self.process.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
