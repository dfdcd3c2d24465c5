//! The etcd of a cluster under test: one member, on a folder of the test's.

use std::{net::SocketAddr, path::Path, process::Command, time::Instant};

use crate::node::{PATIENCE, Place, Process};

/// A running etcd; killed when dropped.
pub(crate) struct Etcd {
    process: Process,
    address: SocketAddr,
}

/// Whether there is an etcd to test with; says that it is not, once per test.
pub(crate) fn is_there() -> bool {
    let is_there = Command::new("etcd").arg("--version").output().is_ok_and(|output| output.status.success());
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
            "{wrapper}etcd --name one --data-dir '{data}' --listen-client-urls http://{address} \
             --advertise-client-urls http://{address} --listen-peer-urls http://{peer} \
             --initial-advertise-peer-urls http://{peer} --initial-cluster one=http://{peer} \
             --logger zap --log-outputs stderr --log-level warn",
            data = folder.join("etcd").display()
        );
        let mut etcd = Etcd { process: Process::new(command, folder.join("etcd.log")), address };
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

    /// Starts it on what it had.
    pub(crate) fn restart(&mut self) {
        self.process.start();
        let begun = Instant::now();
        while !self.is_healthy() {
            assert!(begun.elapsed() < PATIENCE, "no healthy etcd within {PATIENCE:?}\n{}", self.process.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
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
