//! How a connection leaves for another shard: between two requests, when everything was answered.

use std::{future::poll_fn, task::Poll, time::Duration};

use futures_util::future::{Either, select};
use glommio::timer::sleep;

use super::Connection;
use crate::wire::{peer::Moving, service::Service};

/// How long a connection that should move is not read, so that it gets between two requests.
const PATIENCE: Duration = Duration::from_secs(1);

impl<S: Service> Connection<S> {
    /// The shard on which the connection should go on.
    pub(super) fn elsewhere(&self) -> Option<usize> {
        self.service.elsewhere(&self.peer.session.borrow())
    }

    /// Waits until every request was answered. `false`: that takes long; more should be read first.
    pub(super) async fn is_soon_answered(&self) -> bool {
        let answered = std::pin::pin!(poll_fn(|cx| {
            if self.in_flight.get().requests == 0 || self.stream.is_reading_ended() {
                return Poll::Ready(());
            }
            *self.waiting_reader.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }));
        let is_answered = match select(answered, std::pin::pin!(sleep(PATIENCE))).await {
            Either::Left(_) => !self.stream.is_reading_ended(),
            Either::Right(_) => false,
        };
        if !is_answered {
            self.service.on_stays(&mut self.peer.session.borrow_mut());
        }
        is_answered
    }

    /// Takes out what goes to the other shard. `None`: the connection ends here.
    pub(super) fn hand_over(&self) -> Option<Moving<S::Session>> {
        if self.stream.is_reading_ended() {
            return None;
        }
        let peer = &self.peer;
        let socket = match self.stream.leave() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(peer = %peer.origin.address, %error, "connection cannot move to another shard");
                return None;
            }
        };
        self.service.pack(&mut peer.session.borrow_mut());
        Some(Moving { socket, peer: peer.take() })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        net::{IpAddr, TcpListener, TcpStream},
        rc::Rc,
        time::Duration,
    };

    use super::*;
    use crate::wire::{
        api::{Api, Reply},
        frame::Malformed,
        limits::Refusal,
        listener::ListenerIndex,
        peer::{Origin, Peer},
        poller::Poller,
        pressure,
        shared::{Wire, WireConfig},
        stream::Stream,
    };

    /// Knows of a connection what somebody wrote down; what a shard has of it is said when it leaves and comes.
    struct Notes(Wire);

    impl Service for Notes {
        type Session = Vec<&'static str>;
        type Authorization = ();

        fn table() -> &'static [&'static Api<Notes>] {
            &[]
        }

        fn wire(&self) -> &Wire {
            &self.0
        }

        fn shard(&self) -> usize {
            0
        }

        fn gate(&self, _: &Vec<&'static str>, _: &Api<Notes>) -> Result<(), Malformed> {
            Ok(())
        }

        fn on_request(&self) {}

        fn unsupported_api_versions(_: i32) -> Reply {
            Reply::Silence
        }

        fn is_answer_memory_contended(&self) -> bool {
            false
        }

        fn elsewhere(&self, notes: &Vec<&'static str>) -> Option<usize> {
            notes.contains(&"wants to go").then_some(1)
        }

        fn on_stays(&self, notes: &mut Vec<&'static str>) {
            notes.clear();
        }

        fn pack(&self, notes: &mut Vec<&'static str>) {
            notes.push("packed");
        }

        fn unpack(&self, notes: &mut Vec<&'static str>) {
            notes.push("unpacked");
        }

        async fn send(&self, _: usize, _: Moving<Vec<&'static str>>) {}

        async fn admit(&self, _: IpAddr) -> Result<(), Refusal> {
            Ok(())
        }

        async fn on_uncounted(&self, _: IpAddr) {}

        async fn on_closed(&self, _: Origin, _: Vec<&'static str>) {}
    }

    fn connection(notes: &[&'static str]) -> Rc<Connection<Notes>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let poller = Poller::new().unwrap();
        let config = WireConfig {
            frame_bytes_max: 1 << 20,
            in_flight_requests_max: 1,
            in_flight_bytes_max: 1,
            receive_memory_bytes: 4 << 20,
            idle_timeout: Duration::from_secs(1),
            silence_max: pressure::SILENCE_MAX,
            stop_timeout: Duration::from_secs(1),
        };
        let stream = Stream::new(socket.into(), &poller).unwrap();
        let origin = Origin { address, listener: ListenerIndex(3), connection: (0, 7) };
        let peer = Peer { origin, session: RefCell::new(notes.to_vec()) };
        Connection::new(Rc::new(Notes(Wire::new(config, 0, poller))), stream, peer, 1)
    }

    #[test]
    fn a_session_moves_whole() {
        let connection = connection(&["first", "wants to go"]);
        assert_eq!(connection.elsewhere(), Some(1));
        let Moving { peer, .. } = connection.hand_over().expect("it leaves");
        assert_eq!(peer.session.into_inner(), ["first", "wants to go", "packed"]);
        assert_eq!((peer.origin.listener, peer.origin.connection), (ListenerIndex(3), (0, 7)));
        assert!(connection.peer.session.borrow().is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_connection_that_is_not_read_any_more_stays() {
        let connection = connection(&["first"]);
        assert_eq!(connection.elsewhere(), None);
        connection.end_reading();
        assert!(connection.hand_over().is_none());
        assert_eq!(*connection.peer.session.borrow(), ["first"]);
    }
}
