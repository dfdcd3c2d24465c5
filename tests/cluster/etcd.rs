//! The etcd of a cluster under test: one member, on a folder of the test's.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use crate::node::{PATIENCE, Place, Process};

/// A running etcd; killed when dropped.
pub(crate) struct Etcd {
    process: Process,
    command: String,
    address: SocketAddr,
    peer: SocketAddr,
    /// Of all that is its own, and of backups.
    folder: PathBuf,
}

/// The etcd to test with: another one than that of the PATH, if it is named. Nodes that run their own take that of the PATH.
fn program() -> String {
    std::env::var("MILLRACE_ETCD").unwrap_or_else(|_| "etcd".to_owned())
}

/// Whether there is an etcd to test with; says that it is not, once per test.
pub(crate) fn is_there() -> bool {
    let is_there = Command::new(program()).arg("--version").output().is_ok_and(|output| output.status.success());
    if !is_there {
        println!("skipped: no etcd here to make a cluster with (apt-get install etcd-server)");
    }
    is_there
}

impl Etcd {
    /// Starts one and waits until it is healthy.
    pub(crate) fn start(folder: &Path, place: Place) -> Etcd {
        let Place { wrapper, client: address, peer } = place;
        let command = format!(
            "{wrapper}'{program}' --name one --data-dir '{data}' --listen-client-urls http://{address} \
             --advertise-client-urls http://{address} --listen-peer-urls http://{peer} \
             --initial-advertise-peer-urls http://{peer} --initial-cluster one=http://{peer} \
             --logger zap --log-outputs stderr --log-level warn",
            program = program(),
            data = folder.join("etcd").display()
        );
        let process = Process::new(command.clone(), folder.join("etcd.log"));
        let mut etcd = Etcd { process, command, address, peer, folder: folder.to_owned() };
        etcd.restart();
        etcd
    }

    /// Its address as nodes are told it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it on what it had, with more options.
    pub(crate) fn restart_with(&mut self, more: &str) {
        self.process.set_command(format!("{} {more}", self.command));
        self.restart();
    }

    /// Starts it on what it had.
    pub(crate) fn restart(&mut self) {
        self.process.start();
        let begun = Instant::now();
        while !self.is_healthy() {
            assert!(begun.elapsed() < PATIENCE, "no healthy etcd within {PATIENCE:?}\n{}", self.process.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Makes a backup, in place of an earlier one.
    pub(crate) fn save_backup(&self) {
        self.etcdctl(&["snapshot", "save", &self.folder.join("backup").display().to_string()]);
    }

    /// Kills it and starts it on what the backup has, as another etcd.
    pub(crate) fn restore_backup(&mut self) {
        self.restore(&[]);
    }

    /// The same as the etcd that it was: by the name, address and token that it had.
    pub(crate) fn restore_backup_as_it_was(&mut self) {
        let own = format!("http://{}", self.peer);
        let all = format!("one={own}");
        self.restore(&["--name", "one", "--initial-cluster", &all, "--initial-advertise-peer-urls", &own]);
    }

    fn restore(&mut self, options: &[&str]) {
        self.kill();
        self.lose_data();
        let [backup, data] = ["backup", "etcd"].map(|name| self.folder.join(name).display().to_string());
        let restore = ["snapshot", "restore", &backup, "--data-dir", &data];
        self.etcdctl(&[&restore, options].concat());
        self.restart();
    }

    /// Starts it on nothing.
    pub(crate) fn begin_anew(&mut self) {
        self.lose_data();
        self.restart();
    }

    fn lose_data(&self) {
        std::fs::remove_dir_all(self.folder.join("etcd")).unwrap();
    }

    /// Writes a key.
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", key, value]);
    }

    fn etcdctl(&self, arguments: &[&str]) {
        etcdctl(&[&["--endpoints", &self.url()], arguments].concat());
    }

    fn is_healthy(&self) -> bool {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url(), "--command-timeout", "1s", "get", "health"]);
        match command.output() {
            Ok(output) => output.status.success(),
            // it comes with a package of its own; a port that answers has to do
            Err(_) => std::net::TcpStream::connect(self.address).is_ok(),
        }
    }
}

/// Runs etcd's own client.
pub(crate) fn etcdctl(arguments: &[&str]) {
    let output = Command::new("etcdctl").env("ETCDCTL_API", "3").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
