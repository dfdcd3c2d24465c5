//! Against a real etcd, if there is one on this machine.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::*;

mod faults;
mod sizes;
mod users;

use crate::cluster::conformance;

/// An etcd of our own, ended when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    data: tempfile::TempDir,
    arguments: Vec<String>,
    tls: EtcdTls,
}

impl Server {
    /// Starts one; `None`, and a line that says so, where there is no etcd.
    pub(crate) fn start(arguments: &[&str]) -> Option<Self> {
        Self::start_with(arguments, EtcdTls::default())
    }

    /// Starts one that is spoken to with these certificates.
    fn start_with(arguments: &[&str], tls: EtcdTls) -> Option<Self> {
        let binary = std::env::var("MILLRACE_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        if Command::new(&binary).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            println!("skipped: no etcd on this machine (apt-get install etcd-server)");
            return None;
        }
        let arguments: Vec<_> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        for _ in 0..5 {
            let port = free_port();
            let data = tempfile::tempdir().unwrap();
            let child = spawn(&binary, data.path(), port, &arguments);
            let mut server = Self { child, port, data, arguments: arguments.clone(), tls: tls.clone() };
            if server.wait_until_it_answers() {
                return Some(server);
            }
        }
        panic!("etcd does not start");
    }

    /// How to speak to it.
    pub(crate) fn options(&self) -> EtcdOptions {
        let secure = self.arguments.iter().any(|argument| argument == "--cert-file");
        EtcdOptions {
            endpoints: vec![format!("{}://127.0.0.1:{}", if secure { "https" } else { "http" }, self.port)],
            cluster: "test".to_owned(),
            timeout: Duration::from_secs(5),
            tls: self.tls.clone(),
            user: None,
        }
    }

    /// Has it stand still, and waits until it does: some of its threads still run as the signal was sent.
    fn pause(&self) {
        self.signal("-STOP");
        let deadline = Instant::now() + Duration::from_secs(30);
        let threads = format!("/proc/{}/task", self.child.id());
        let stands = |thread: std::io::Result<std::fs::DirEntry>| {
            let state = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            // behind the name, which is in parentheses
            state.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('T'))
        };
        while !std::fs::read_dir(&threads).unwrap().all(stands) {
            assert!(Instant::now() < deadline, "it does not stand still");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Has it go on.
    fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Kills it.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, with its data.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let binary = std::env::var("MILLRACE_ETCD").unwrap_or_else(|_| "etcd".to_owned());
        self.child = spawn(&binary, self.data.path(), self.port, &self.arguments);
        assert!(self.wait_until_it_answers());
    }

    /// It listens before it has a leader, and before that nothing is read or written.
    fn wait_until_it_answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut etcd = Etcd::new(&self.options()).unwrap();
        while Instant::now() < deadline {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            // one that asks for a user says so once it could answer
            if !matches!(etcd.range("", None, 0, 1), Err(StoreError::Away(_))) {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port of this machine that nobody listens on; another one with every call. It is below those that Linux gives to
/// outgoing connections, one of which could take it before the server does, or while that restarts.
fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // processes of neighbouring numbers begin far from each other
    let start = (std::process::id().wrapping_mul(7_919) % u32::from(count)) as u16;
    for _ in PORTS {
        let port = PORTS.start + (start + CALLS.fetch_add(1, Relaxed) % count) % count;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

fn spawn(binary: &str, data: &Path, port: u16, arguments: &[String]) -> Child {
    let scheme = if arguments.iter().any(|argument| argument == "--cert-file") { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:{port}");
    let mut command = Command::new(binary);
    command.args(["--data-dir".as_ref(), data.as_os_str()]);
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    // one member needs nobody: any free port will do
    command.args(["--listen-peer-urls", "http://127.0.0.1:0", "--log-level", "error"]);
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn etcd_does_what_a_store_must() {
    let Some(server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    conformance::check(&mut etcd, &mut thread::sleep);
    assert!(etcd.identity().unwrap() != 0);
    assert!(etcd.server_version().unwrap().starts_with("3."));
}

#[test]
fn keys_of_other_clusters_are_not_seen() {
    let Some(server) = Server::start(&[]) else { return };
    let mut ours = Etcd::new(&server.options()).unwrap();
    let mut others = Etcd::new(&EtcdOptions { cluster: "test2".to_owned(), ..server.options() }).unwrap();
    others.transact(&Transaction::new().put("nodes/1".to_owned(), vec![])).unwrap();
    ours.transact(&Transaction::new().put("nodes/2".to_owned(), vec![])).unwrap();
    let seen = ours.range("", None, 0, 10).unwrap().entries;
    assert_eq!(seen.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["nodes/2"]);
}

#[test]
fn certificates_are_asked_for_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(folder.path()).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let with_key = |rest: &[&'static str]| [&["req"][..], &key[..], rest].concat();
    let made = openssl(&with_key(&["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=ca"]))
        && openssl(&with_key(&["-keyout", "one.key", "-out", "one.csr", "-subj", "/CN=one"]))
        && std::fs::write(at("ext"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n").is_ok()
        && openssl(&[
            "x509",
            "-req",
            "-in",
            "one.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "one.pem",
            "-days",
            "30",
            "-extfile",
            "ext",
        ]);
    if !made {
        println!("skipped: no openssl on this machine");
        return;
    }
    let text = |name: &str| at(name).display().to_string();
    let (certificate, key, authority) = (text("one.pem"), text("one.key"), text("ca.pem"));
    let arguments =
        ["--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &authority, "--client-cert-auth"];
    let trusting = EtcdTls { authority: Some(at("ca.pem")), certificate: None };
    let whole = EtcdTls { certificate: Some((at("one.pem"), at("one.key"))), ..trusting.clone() };
    let Some(server) = Server::start_with(&arguments, whole.clone()) else { return };
    let with = |tls: EtcdTls| Etcd::new(&EtcdOptions { tls, ..server.options() }).unwrap();
    assert!(with(whole).identity().is_ok());
    assert!(with(trusting).identity().is_err(), "etcd asks for a certificate");
    assert!(with(EtcdTls::default()).identity().is_err(), "nobody is trusted unless told");
    let missing = EtcdTls { authority: Some(at("none.pem")), certificate: None };
    assert!(matches!(
        Etcd::new(&EtcdOptions { tls: missing, ..server.options() }),
        Err(ConnectError::Certificate { .. })
    ));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let options = |endpoint: &str, cluster: &str| EtcdOptions {
        endpoints: vec![endpoint.to_owned()],
        cluster: cluster.to_owned(),
        timeout: Duration::from_secs(1),
        tls: EtcdTls::default(),
        user: None,
    };
    for endpoint in ["", "etcd:2379", "ftp://etcd:2379", "http://etcd", "http://:2379", "http://etcd:port"] {
        assert!(matches!(Etcd::new(&options(endpoint, "a")), Err(ConnectError::Endpoint(_))), "{endpoint}");
    }
    for cluster in ["", "a/b", "a b"] {
        assert!(matches!(Etcd::new(&options("http://a:1", cluster)), Err(ConnectError::Cluster(_))), "{cluster}");
    }
}

#[test]
fn whether_history_was_ever_compacted_is_seen() {
    let Some(server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    for number in 0..5 {
        etcd.transact(&Transaction::new().put(format!("{number}"), Vec::new())).unwrap();
    }
    let revision = etcd.range("", None, 0, 1).unwrap().revision;
    assert_eq!(etcd.uncompacted_revisions(), Ok(Some(revision)));
    etcd.compact(revision).unwrap();
    assert_eq!(etcd.uncompacted_revisions(), Ok(None));
}
