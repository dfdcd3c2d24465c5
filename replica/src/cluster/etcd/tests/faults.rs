//! Members that are away, stand still, or have no leader.

use std::fs;

use super::*;
use crate::cluster::{
    etcd::{endpoint::Endpoint, framing::framed},
    store::{Change, Watch, Watched},
};

/// So long whatever has to happen may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn put(key: &str) -> Transaction {
    Transaction::new().put(key.to_owned(), vec![1])
}

/// What ends a watch.
fn end_of(watch: &mut EtcdWatch) -> StoreError {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        if let Err(error) = watch.next(Duration::from_secs(1)) {
            return error;
        }
    }
    panic!("the watch goes on");
}

/// Answers whoever comes, until that one goes.
async fn answer_without_leader(stream: std::net::TcpStream) -> Result<(), h2::Error> {
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let mut connection = h2::server::handshake(stream).await?;
    let mut watches = Vec::new();
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let response = http::Response::builder().header("content-type", "application/grpc");
        if request.uri().path() == "/etcdserverpb.Watch/Watch" {
            let mut answer = respond.send_response(response.body(()).unwrap(), false)?;
            answer.send_data(framed(&Empty {}), false)?;
            watches.push((request, answer)); // and nothing more comes
        } else {
            let response = response.header("grpc-status", "14").header("grpc-message", "etcdserver: no leader");
            respond.send_response(response.body(()).unwrap(), true)?;
        }
    }
    Ok(())
}

/// An etcd that is there and has no leader: it takes watches, and refuses all else. Answers its address; it ends with the test.
fn without_leader() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer = |stream| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _the_client_went = runtime.block_on(answer_without_leader(stream));
    };
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || answer(stream)))));
    address
}

#[test]
fn a_member_without_a_leader_is_left_for_one_that_has_it() {
    let Some(server) = Server::start(&[]) else { return };
    let own = server.options();
    let endpoints = [vec![without_leader()], own.endpoints.clone()].concat();
    let mut etcd = Etcd::new(&EtcdOptions { endpoints: endpoints.clone(), ..own.clone() }).unwrap();
    let refused = etcd.transact(&put("a")).unwrap_err();
    assert!(refused.is_unknown(), "whether it was done, nobody knows: {refused}");
    etcd.transact(&put("b")).expect("the next one goes to the other");
    let mut etcd = Etcd::new(&EtcdOptions { endpoints, ..own }).unwrap();
    let mut watch = etcd.watch(2).unwrap();
    let begun = Instant::now();
    let mut seen = Vec::new();
    while seen.is_empty() && begun.elapsed() < PATIENCE {
        if let Watched::Changes(changes) = watch.next(Duration::from_secs(1)).unwrap() {
            seen = changes;
        }
    }
    assert_eq!(seen.iter().map(Change::key).collect::<Vec<_>>(), ["b"]);
}

/// A member that is cut off from the others brings nothing any more, and kept its watches for as long as that lasted.
#[test]
fn a_watch_ends_when_its_member_loses_its_leader() {
    let [one, two] = [(); 2].map(|()| format!("http://127.0.0.1:{}", free_port()));
    let cluster = format!("one={one},two={two}");
    let member = |name: &'static str, peer: &str| {
        let arguments = ["--name", name, "--initial-advertise-peer-urls", peer, "--initial-cluster", &cluster];
        let peer_listens = ["--listen-peer-urls", peer];
        [arguments.as_slice(), &peer_listens].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let start = |name, peer: &str| {
        let arguments = member(name, peer);
        Server::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // neither answers before both are there
    let started = thread::scope(|scope| {
        let first = scope.spawn(|| start("one", &one));
        (start("two", &two), first.join().unwrap())
    });
    let (Some(mut second), Some(first)) = started else { return };
    let mut etcd = Etcd::new(&first.options()).unwrap();
    let mut watch = etcd.watch(1).unwrap();
    etcd.transact(&put("a")).unwrap();
    second.stop();
    let ended = end_of(&mut watch);
    assert!(matches!(ended, StoreError::Away(_)), "{ended:?}");
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    let Some(server) = Server::start(&[]) else { return };
    let mut options = server.options();
    options.endpoints.insert(0, "http://127.0.0.1:1".to_owned());
    let mut etcd = Etcd::new(&options).unwrap();
    etcd.transact(&put("a")).unwrap();
    assert_eq!(etcd.range("", None, 0, 10).unwrap().entries.len(), 1);
}

#[test]
fn an_endpoint_that_takes_connections_and_never_answers_is_passed_over_by_questions() {
    let Some(server) = Server::start(&[]) else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = server.options();
    let endpoints = [vec![format!("http://{}", silent.local_addr().unwrap())], own.endpoints.clone()].concat();
    let options = EtcdOptions { endpoints, ..own };
    let mut etcd = Etcd::new(&options).unwrap();
    // the etcd that answers gets the time that it gets everywhere
    let patient = std::mem::replace(&mut etcd.caller.timeout, Duration::from_secs(1));
    let outcome = etcd.transact(&put("a"));
    assert!(outcome.as_ref().is_err_and(StoreError::is_unknown), "it may have arrived: {outcome:?}");
    etcd.caller.timeout = patient;
    etcd.transact(&put("b")).expect("the next one goes to the other");
    let mut etcd = Etcd::new(&options).unwrap();
    let seen = etcd.range("", None, 0, 10).expect("a question may be put twice").entries;
    assert_eq!(seen.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(Etcd::new(&options).unwrap().watch(1).is_ok());
}

#[test]
fn an_etcd_that_is_away_is_said_to_be() {
    let Some(mut server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    let mut watch = etcd.watch(1).unwrap();
    server.stop();
    assert!(matches!(etcd.identity(), Err(StoreError::Away(_))));
    let outcome = etcd.transact(&put("a"));
    assert!(outcome.unwrap_err().is_unknown());
    let ended = end_of(&mut watch);
    assert!(matches!(ended, StoreError::Away(_)), "{ended:?}");
    server.restart();
    assert!(etcd.identity().is_ok());
}

/// A request that went into a connection whose other end was gone was lost, and with it what it asked for.
#[test]
fn a_connection_that_its_member_closed_is_made_anew_before_anything_is_sent() {
    let Some(mut server) = Server::start(&[]) else { return };
    let mut etcd = Etcd::new(&server.options()).unwrap();
    for key in ["a", "b", "c"] {
        etcd.transact(&put(key)).unwrap();
        server.restart();
    }
    assert_eq!(etcd.range("", None, 0, 10).unwrap().entries.len(), 3);
}

#[test]
fn a_member_that_stands_still_is_left() {
    let (Some(stopped), Some(server)) = (Server::start(&[]), Server::start(&[])) else { return };
    // until it stands still there is no other that a slow answer could make them turn to
    let mut etcd = Etcd::new(&stopped.options()).unwrap();
    etcd.caller.watch_silence_max = Duration::from_secs(1);
    let mut watch = etcd.watch(1).unwrap();
    etcd.transact(&put("a")).unwrap();
    let mut writer = Etcd::new(&stopped.options()).unwrap();
    writer.transact(&put("b")).unwrap();
    stopped.pause();
    for caller in [&mut etcd.caller, &mut writer.caller] {
        caller.endpoints.extend(server.options().endpoints.iter().map(|endpoint| Endpoint::parse(endpoint).unwrap()));
    }
    assert_eq!(etcd.range("", None, 0, 10).unwrap().entries.len(), 0, "the other one has nothing");
    let outcome = writer.transact(&put("c"));
    assert!(outcome.as_ref().is_err_and(StoreError::is_unknown), "{outcome:?}");
    writer.transact(&put("d")).expect("the next one goes to the other");
    let ended = end_of(&mut watch);
    assert!(matches!(ended, StoreError::Away(_)), "{ended:?}");
    stopped.resume();
}

/// An etcd that may be asked more often whether it is there than by its default, and a watch that does so.
fn asking_watch() -> Option<(Server, Etcd, EtcdWatch)> {
    let server = Server::start(&["--grpc-keepalive-min-time", "100ms"])?;
    // it has long to say that it is there: the machine may be busy
    let options = EtcdOptions { timeout: PATIENCE, ..server.options() };
    let mut etcd = Etcd::new(&options).unwrap();
    etcd.caller.watch_silence_max = Duration::from_millis(300);
    let mut watch = etcd.watch(1).unwrap();
    assert_eq!(watch.next(Duration::ZERO).unwrap(), Watched::Changes(Vec::new()));
    Some((server, etcd, watch))
}

/// In a cluster in which nothing happens.
#[test]
fn a_silent_watch_stays_as_its_member_says_that_it_is_there() {
    let Some((_server, mut etcd, mut watch)) = asking_watch() else { return };
    for _ in 0..6 {
        let before = watch.messages.heard;
        let begun = Instant::now();
        while watch.messages.heard == before {
            assert!(begun.elapsed() < 2 * PATIENCE, "nothing is heard of it");
            assert_eq!(watch.next(Duration::from_millis(100)).unwrap(), Watched::Quiet);
        }
    }
    etcd.transact(&put("a")).unwrap();
    let news = watch.next(PATIENCE).unwrap();
    assert!(matches!(&news, Watched::Changes(changes) if changes.len() == 1), "{news:?}");
}

#[test]
fn what_a_member_said_while_nobody_looked_counts_before_the_time_that_passed() {
    let Some((server, etcd, mut watch)) = asking_watch() else { return };
    // the watch's connection is the only one that is left to it
    drop(etcd);
    server.pause();
    let begun = Instant::now();
    while watch.messages.asked.is_none() {
        assert!(begun.elapsed() < PATIENCE, "it is not asked");
        assert_eq!(watch.next(Duration::from_millis(100)).unwrap(), Watched::Quiet);
    }
    assert_eq!(watch.next(Duration::from_secs(1)).unwrap(), Watched::Quiet, "it was asked, and has time to answer");
    // which passes as soon as nobody looks any more
    let asked = watch.messages.asked.expect("it says nothing");
    let over = tokio::time::Instant::now() + Duration::from_millis(200);
    watch.messages.patience.answer = over - asked;
    server.resume();
    let begun = Instant::now();
    while !bytes_wait_from(server.port) || tokio::time::Instant::now() <= over {
        assert!(begun.elapsed() < PATIENCE, "it does not answer");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(watch.next(Duration::from_secs(1)).unwrap(), Watched::Quiet);
}

/// Whether something that came from that port was not read yet, as Linux says.
fn bytes_wait_from(port: u16) -> bool {
    let from = format!("0100007F:{port:04X}");
    let connections = fs::read_to_string("/proc/self/net/tcp").unwrap();
    connections.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|fields| {
        // its number, the two ends, its state, and what waits to be sent and to be read
        let unread = fields.get(4).and_then(|queues| queues.split_once(':')).map(|(_, unread)| unread);
        fields.get(2) == Some(&from.as_str()) && unread.is_some_and(|unread| unread != "00000000")
    })
}
