//! A `millrace serve` of a test's own, and commands that talk to it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

/// The command under test.
pub(crate) fn millrace() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
    command
}

/// Runs the command with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Output {
    millrace().args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs it with something on standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = millrace();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // Somebody who fails early does not read all of it.
    let feeding = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running broker; killed when it goes out of scope.
pub(crate) struct Broker {
    child: Child,
    /// Where it listens.
    pub(crate) address: String,
    /// What it says of itself when it starts.
    pub(crate) banner: String,
    /// Collects the rest of what it says.
    rest: Option<thread::JoinHandle<String>>,
}

/// Options for a small broker on a folder and a free port.
pub(crate) fn small(data: &Path) -> Vec<String> {
    let data = data.display().to_string();
    ["--data", &data, "--listen", "127.0.0.1:0", "--shards", "2", "--wal-bytes", "32MiB", "--reserve-bytes", "16MiB"]
        .map(str::to_owned)
        .to_vec()
}

impl Broker {
    /// Starts one, and waits until it says that it answers.
    pub(crate) fn start(options: &[String]) -> Self {
        Self::start_command(millrace().arg("serve").args(options))
    }

    /// Starts one by a prepared command.
    pub(crate) fn start_command(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut before = String::new();
        let mut address = None;
        // The banner ends with how to stop it.
        while !before.contains("\n  stop ") {
            let mut line = String::new();
            if said.read_line(&mut line).unwrap() == 0 {
                let status = child.wait().unwrap();
                panic!("the broker did not start: {status}\n{before}{line}");
            }
            before.push_str(&line);
            if let Some(listening) = line.trim().strip_prefix("listening") {
                address = listening.trim().split(',').next().map(str::to_owned);
            }
        }
        let address = address.expect("it says where it listens");
        let banner = before;
        let rest = thread::spawn(move || {
            let mut rest = String::new();
            said.read_to_string(&mut rest).unwrap();
            rest
        });
        Self { child, address, banner, rest: Some(rest) }
    }

    /// Sends it a signal by its number.
    pub(crate) fn signal(&self, signal: i32) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// Waits for its end; returns its exit code and what it said.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.rest.take().unwrap().join().unwrap())
    }

    /// Stops it cleanly.
    pub(crate) fn stop(self) -> String {
        self.signal(15);
        let (code, said) = self.wait();
        assert_eq!(code, Some(0), "{said}");
        said
    }

    /// Runs a command against it that must work; returns its output.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with_input(arguments, b"")
    }

    /// The same with something on standard input.
    pub(crate) fn ok_with_input(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.command(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Runs a command against it that must fail with exit code 1; returns what it says.
    pub(crate) fn fails(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.command(arguments, input);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stdout(&output));
        stderr(&output)
    }

    fn command(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut all = arguments.to_vec();
        all.extend(["--broker", &self.address]);
        run_with_input(&all, input)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// All files below a folder whose names end so.
pub(crate) fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(end) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
