//! How the other node reaches a store: over a connection, a line of JSON for each question and each answer.
//!
//! Whoever keeps a copy answers too, and says who leads, so that a former leader that comes back hears of it. A connection on
//! which a watch was begun brings what is watched, and takes no more questions.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::KeptStore;
use crate::cluster::{
    model::NodeId,
    store::{LeaseId, Outcome, Page, Store, StoreError, Transaction, Watch, Watched},
};

/// Version of the conversation.
const VERSION: u32 = 1;
/// Bytes of a line at most.
const LINE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of the first line, which may be a stranger's.
const HELLO_BYTES_MAX: u64 = 4 << 10;
/// Connections at most: two nodes need a handful.
const CONNECTIONS_MAX: usize = 64;
/// How long who is connected may say nothing before the connection is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a connection may be idle and is asked on again: well before the other end closes it.
const KEPT_MAX: Duration = Duration::from_secs(20);
const _: () = assert!(KEPT_MAX.as_secs() * 2 < IDLE_MAX.as_secs());
/// How often a watch says that there is nothing.
const QUIET_EVERY: Duration = Duration::from_secs(1);
/// How long a watch may say nothing before its connection is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// What a node is to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// How often the store went to another node.
    pub term: u64,
    /// Who keeps it, as far as this node knows.
    pub leader: NodeId,
    /// Who says so.
    pub node: NodeId,
}

#[derive(Serialize, Deserialize)]
struct Hello {
    version: u32,
    cluster: String,
}

#[derive(Serialize, Deserialize)]
enum Question {
    Transact(Transaction),
    Range { prefix: String, after: Option<String>, revision: i64, limit: usize },
    Watch(i64),
    Grant(Duration),
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    Compact(i64),
    Identity,
}

type Answer<T> = Result<T, StoreError>;

/// Answers whoever connects: what it is, and, if it keeps the store, what that says. Ends with the process.
///
/// # Errors
/// If there is no thread for it.
pub fn answer(
    listener: TcpListener,
    cluster: String,
    standing: impl Fn() -> Standing + Send + Sync + 'static,
    store: Option<KeptStore>,
) -> io::Result<()> {
    let standing = Arc::new(standing);
    let open = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("mirror".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (cluster, standing, store, count) = (cluster.clone(), standing.clone(), store.clone(), open.clone());
            let talk = move || {
                // who asked hears of an error by the end of the connection
                let _ = converse(stream, &cluster, &*standing, store);
                count.fetch_sub(1, Ordering::Relaxed);
            };
            if thread::Builder::new().name("mirror-line".to_owned()).spawn(talk).is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

fn converse(
    stream: TcpStream,
    cluster: &str,
    standing: &dyn Fn() -> Standing,
    store: Option<KeptStore>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut reader = BufReader::new(stream);
    let hello: Hello = receive_up_to(&mut reader, HELLO_BYTES_MAX)?;
    if hello.version != VERSION || hello.cluster != cluster {
        let text = format!("this is cluster '{cluster}', version {VERSION}");
        return send(reader.get_mut(), &Answer::<Standing>::Err(StoreError::Refused(text)));
    }
    let stands = standing();
    send(reader.get_mut(), &Answer::Ok(stands))?;
    loop {
        let question: Question = receive(&mut reader)?;
        let Some(mut store) = store.clone() else {
            let text = format!("node {} does not lead: node {} does", stands.node, stands.leader);
            return send(reader.get_mut(), &Answer::<()>::Err(StoreError::Away(text)));
        };
        let stream = reader.get_mut();
        match question {
            Question::Transact(transaction) => send(stream, &store.transact(&transaction))?,
            Question::Range { prefix, after, revision, limit } => {
                send(stream, &store.range(&prefix, after.as_deref(), revision, limit))?;
            }
            Question::Grant(ttl) => send(stream, &store.grant(ttl))?,
            Question::KeepAlive(lease) => send(stream, &store.keep_alive(lease))?,
            Question::Revoke(lease) => send(stream, &store.revoke(lease))?,
            Question::Compact(revision) => send(stream, &store.compact(revision))?,
            Question::Identity => send(stream, &store.identity())?,
            Question::Watch(from) => {
                let mut watch = store.watch(from);
                send(stream, &watch.as_ref().map(|_| ()).map_err(Clone::clone))?;
                while let Ok(watch) = &mut watch {
                    send(stream, &watch.next(QUIET_EVERY))?;
                }
                return Ok(());
            }
        }
    }
}

fn send<T: Serialize>(stream: &mut TcpStream, what: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn receive<T: DeserializeOwned>(reader: &mut BufReader<TcpStream>) -> io::Result<T> {
    receive_up_to(reader, LINE_BYTES_MAX)
}

fn receive_up_to<T: DeserializeOwned>(reader: &mut BufReader<TcpStream>, bytes_max: u64) -> io::Result<T> {
    let mut line = Vec::new();
    reader.by_ref().take(bytes_max).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// The way to the store of the other node.
#[derive(Debug)]
pub struct FarStore {
    address: String,
    cluster: String,
    timeout: Duration,
    /// And when it was used last.
    line: Option<(BufReader<TcpStream>, Instant)>,
}

/// Another way to the same node, with a connection of its own.
impl Clone for FarStore {
    fn clone(&self) -> Self {
        Self::new(self.address.clone(), self.cluster.clone(), self.timeout)
    }
}

impl FarStore {
    /// One that connects when it is first asked. `address` is a host and a port.
    pub fn new(address: String, cluster: String, timeout: Duration) -> Self {
        Self { address, cluster, timeout, line: None }
    }

    /// What the node at the other end is, if there is one.
    ///
    /// # Errors
    /// If nobody answers there, or it is of another cluster.
    pub fn standing(&self) -> Result<Standing, StoreError> {
        self.connect().map(|(_, standing)| standing)
    }

    fn connect(&self) -> Result<(BufReader<TcpStream>, Standing), StoreError> {
        let away = |error: io::Error| StoreError::Away(format!("{}: {error}", self.address));
        let addresses: Vec<SocketAddr> = self.address.to_socket_addrs().map_err(away)?.collect();
        let mut stream = Err(io::Error::from(io::ErrorKind::NotFound));
        for address in addresses {
            stream = TcpStream::connect_timeout(&address, self.timeout);
            if stream.is_ok() {
                break;
            }
        }
        let mut stream = stream.map_err(away)?;
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(self.timeout)));
        prepared.and_then(|()| stream.set_write_timeout(Some(self.timeout))).map_err(away)?;
        send(&mut stream, &Hello { version: VERSION, cluster: self.cluster.clone() }).map_err(away)?;
        let mut reader = BufReader::new(stream);
        let standing: Answer<Standing> = receive(&mut reader).map_err(away)?;
        Ok((reader, standing?))
    }

    /// Asks, on the connection that is there or a new one. What fails may have been done.
    fn ask<T: DeserializeOwned>(&mut self, question: &Question) -> Result<T, StoreError> {
        let mut line = match self.line.take() {
            Some((line, used)) if used.elapsed() < KEPT_MAX => line,
            _ => self.connect()?.0,
        };
        let away = |error: io::Error| StoreError::Away(format!("{}: {error}", self.address));
        send(line.get_mut(), question).map_err(away)?;
        let answer: Answer<T> = receive(&mut line).map_err(away)?;
        self.line = Some((line, Instant::now()));
        answer
    }
}

impl Store for FarStore {
    type Watch = FarWatch;

    fn transact(&mut self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        self.ask(&Question::Transact(transaction.clone()))
    }

    fn range(&mut self, prefix: &str, after: Option<&str>, revision: i64, limit: usize) -> Result<Page, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.ask(&Question::Range { prefix, after, revision, limit })
    }

    fn watch(&mut self, from: i64) -> Result<FarWatch, StoreError> {
        let mut line = self.clone();
        line.ask::<()>(&Question::Watch(from))?;
        let (mut line, _) = line.line.expect("it was asked");
        let prepared = line.get_mut().set_read_timeout(Some(SILENCE_MAX));
        prepared.map_err(|error| StoreError::Away(error.to_string()))?;
        Ok(FarWatch(line))
    }

    fn grant(&mut self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(&Question::Grant(ttl))
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<i64, StoreError> {
        self.ask(&Question::KeepAlive(lease))
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(&Question::Revoke(lease))
    }

    fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        self.ask(&Question::Compact(revision))
    }

    fn identity(&mut self) -> Result<u64, StoreError> {
        self.ask(&Question::Identity)
    }
}

/// A watch over a connection of its own.
#[derive(Debug)]
pub struct FarWatch(BufReader<TcpStream>);

impl Watch for FarWatch {
    /// Waits for the next change; a word that there is none comes every second.
    fn next(&mut self, wait: Duration) -> Result<Watched, StoreError> {
        let begun = Instant::now();
        loop {
            let next: Answer<Watched> = receive(&mut self.0).map_err(|error| StoreError::Away(error.to_string()))?;
            match next {
                Ok(Watched::Quiet) if begun.elapsed() < wait => {}
                next => return next,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{conformance, kept::file::Contents};

    fn listen(store: Option<KeptStore>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let standing = || Standing { term: 3, leader: 1, node: 2 };
        answer(listener, "orders".to_owned(), standing, store).unwrap();
        address
    }

    fn far(address: &str, cluster: &str) -> FarStore {
        FarStore::new(address.to_owned(), cluster.to_owned(), Duration::from_secs(5))
    }

    #[test]
    fn a_store_of_another_node_does_what_a_store_must() {
        let folder = tempfile::tempdir().unwrap();
        let contents = Contents { identity: 7, revision: 1, entries: Vec::new() };
        let kept = KeptStore::open(&folder.path().join("store"), contents, Duration::from_secs(3)).unwrap();
        let address = listen(Some(kept.clone()));
        let mut sleep = |time: Duration| {
            let begun = Instant::now();
            while begun.elapsed() < time {
                thread::sleep(Duration::from_millis(20));
                kept.clone().identity().unwrap();
            }
        };
        conformance::check(&mut far(&address, "orders"), &mut sleep);
    }

    #[test]
    fn who_keeps_a_copy_says_who_leads_and_strangers_are_refused() {
        let address = listen(None);
        let mut own = far(&address, "orders");
        assert_eq!(own.standing(), Ok(Standing { term: 3, leader: 1, node: 2 }));
        assert!(own.identity().unwrap_err().to_string().contains("node 1 does"));
        let refused = far(&address, "invoices").standing().unwrap_err();
        assert!(refused.to_string().contains("this is cluster 'orders'"), "{refused}");
    }
}
