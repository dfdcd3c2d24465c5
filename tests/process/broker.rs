//! A broker under test: its folder, its options, its life.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use millrace_bench::{
    client::{self, Connection, FetchLimits, Leaders},
    ledger::{Acknowledged, Tally},
    meter::{self, Usage},
    reader,
    server::{self, Server},
};
use tempfile::TempDir;

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

/// Runs a command that is to end by itself, in failure. Answers what it printed.
pub(crate) fn start_fails(command: &str) -> String {
    let limit = PATIENCE.as_secs().to_string();
    let output = Command::new("timeout").arg(limit).args(["sh", "-c", command]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(matches!(output.status.code(), Some(code) if code != 0 && code != 124), "{:?}: {said}", output.status);
    said
}

/// A folder and how its broker is started; the broker runs while `server` is there.
pub(crate) struct Broker {
    folder: TempDir,
    data: PathBuf,
    pub(crate) address: SocketAddr,
    options: String,
    /// What is before the command that starts it, and may need it as its arguments.
    wrapper: String,
    server: Option<Server>,
}

impl Broker {
    /// Starts a broker on an empty folder with further options.
    pub(crate) fn start(options: &str) -> Broker {
        let folder = tempfile::Builder::new().prefix("millrace-process-").tempdir().unwrap();
        let data = folder.path().join("data");
        Broker::start_in(folder, data, options)
    }

    /// Starts a broker on that data directory; `folder` keeps its log.
    pub(crate) fn start_in(folder: TempDir, data: PathBuf, options: &str) -> Broker {
        Broker::start_with(folder, data, options, "")
    }

    /// The same with variables of the environment, `NAME=VALUE` with spaces between.
    pub(crate) fn start_with(folder: TempDir, data: PathBuf, options: &str, environment: &str) -> Broker {
        let address = server::free_address().unwrap();
        let wrapper = format!("env {environment} ");
        let mut broker = Broker { folder, data, address, options: options.to_owned(), wrapper, server: None };
        broker.restart();
        broker
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().pid()
    }

    /// The command that starts it.
    pub(crate) fn command(&self) -> String {
        // small logs and little memory: several brokers run at once, and small logs wrap around
        format!(
            "{}'{}' serve --data '{}' --listen {} --wal-bytes 32MiB --memory 128MiB {}",
            self.wrapper,
            binary().display(),
            self.data.display(),
            self.address,
            self.options
        )
    }

    /// Changes the options for the next start.
    pub(crate) fn set_options(&mut self, options: &str) {
        self.options = options.to_owned();
    }

    /// Has another command start it from now on, which gets this one behind it.
    pub(crate) fn wrap(&mut self, wrapper: String) {
        self.wrapper = wrapper;
    }

    /// Starts it without waiting until it serves.
    pub(crate) fn launch(&mut self) {
        let log = self.folder.path().join("log");
        self.server = Some(Server::start(&self.command(), None, self.address, Some(&log)).unwrap());
    }

    /// Starts it and waits until it serves.
    pub(crate) fn restart(&mut self) {
        self.launch();
        self.await_ready();
    }

    /// Waits until it serves.
    pub(crate) fn await_ready(&mut self) {
        if let Err(error) = self.server.as_mut().unwrap().await_ready(PATIENCE) {
            panic!("{error:#}\n{}", self.log());
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.server.take().unwrap().kill().unwrap();
    }

    /// SIGTERM; answers how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let result = self.server.take().unwrap().terminate(PATIENCE);
        result.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log())).unwrap()
    }

    /// Waits until it ends by itself; answers how.
    pub(crate) fn await_end(&mut self) -> ExitStatus {
        let result = self.server.take().unwrap().await_end(PATIENCE);
        result.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log())).unwrap()
    }

    /// What it printed, over all its lives.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its CPU time and memory.
    pub(crate) fn usage(&self) -> Usage {
        meter::usage(self.server.as_ref().unwrap().pid()).unwrap()
    }

    /// A new connection.
    pub(crate) fn connect(&self) -> Connection {
        client::connect(self.address, PATIENCE).unwrap_or_else(|error| panic!("{error}\n{}", self.log()))
    }

    /// Creates a topic and waits until it is served.
    pub(crate) fn create_topic(&self, topic: &str, partitions: i32) -> Leaders {
        self.create_topic_with(topic, partitions, &[])
    }

    /// Creates a topic with settings and waits until it is served.
    pub(crate) fn create_topic_with(&self, topic: &str, partitions: i32, configs: &[(&str, &str)]) -> Leaders {
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let configs: Vec<_> = configs.iter().map(own).collect();
        let mut connection = self.connect();
        client::create_topic(&mut connection, topic, partitions, &configs).unwrap();
        self.leaders(topic)
    }

    /// Where a topic's partitions are led.
    pub(crate) fn leaders(&self, topic: &str) -> Leaders {
        client::await_leaders(&mut self.connect(), topic, PATIENCE).unwrap()
    }

    /// Reads a whole topic back and holds it against what was acknowledged.
    pub(crate) fn verdict(&self, topic: &str, run: u64, acknowledged: &Acknowledged) -> Tally {
        let back = reader::read_back(topic, &self.leaders(topic), run, 1, FetchLimits::default(), PATIENCE);
        let back = back.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        back.ledger.verdict(acknowledged)
    }

    /// Like [`Broker::verdict`], and fails unless all is well.
    pub(crate) fn verify(&self, topic: &str, run: u64, acknowledged: &Acknowledged) -> Tally {
        let tally = self.verdict(topic, run, acknowledged);
        assert!(tally.is_clean(), "{tally}\n{}", self.log());
        tally
    }
}
