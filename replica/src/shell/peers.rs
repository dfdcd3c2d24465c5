//! Connections of the channel: those that come, those that this shard opens, and how each is served.
//!
//! All shards listen on one address; the kernel gives a connection to any of them. Its first frame names the shard that it is
//! for, and nothing behind that frame is read before it is there.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, ToSocketAddrs},
    rc::Rc,
    time::Duration,
};

use futures_util::future::{Either, select};
use glommio::timer::sleep;
use millrace_engine::engine::Engine;
use millrace_sockets::{
    listener::{Accepted, Listener},
    stream::Stream,
};
use socket2::Socket;

use super::{
    Shell,
    link::{Inbox, Link, LinkError},
};
use crate::{
    channel::{
        event::LinkId,
        frame::{Frame, Hello, Purpose, Refusal},
    },
    cluster::{
        model::{Member, NodeId},
        plane::Question,
    },
};

/// Connections of a shard that have not said yet who they are.
const STRANGERS_MAX: usize = 256;
/// How long they may take to.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may take to come about.
const DIAL_PATIENCE: Duration = Duration::from_secs(2);
/// Pause when descriptors are short.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(200);
/// How long the control thread has to hear that a node refuses connections.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(1);

/// One stranger less when it is dropped.
struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Takes connections until the listener is stopped.
pub(super) async fn accept(shell: Rc<Shell>, listener: Rc<Listener>) {
    let strangers = Rc::new(Cell::new(0));
    loop {
        match listener.accept().await {
            // closed by being dropped
            Accepted::Connection(..) if strangers.get() >= STRANGERS_MAX => {
                tracing::warn!(
                    "{STRANGERS_MAX} connections of the channel have not said who they are: one more is closed"
                );
            }
            Accepted::Connection(socket, address) => {
                strangers.set(strangers.get() + 1);
                let place = Place(strangers.clone());
                let greeting = greet(shell.clone(), socket, address);
                shell.tasks.spawn(async move {
                    greeting.await;
                    drop(place);
                });
            }
            Accepted::Skipped(_) => {}
            Accepted::Exhausted(error) => {
                tracing::warn!(%error, "no connection of the channel can be accepted");
                sleep(EXHAUSTED_PAUSE).await;
            }
            Accepted::Ended => return,
        }
    }
}

/// Hears whom a connection is for, and brings it there.
async fn greet(shell: Rc<Shell>, socket: Socket, address: SocketAddr) {
    let link = match Stream::new(socket, &shell.poller) {
        Ok(stream) => Link::new(stream),
        Err(error) => return tracing::warn!(%address, %error, "a connection of the channel is closed"),
    };
    let mut inbox = Inbox::default();
    let hello = {
        let hello = std::pin::pin!(link.receive_first(&mut inbox));
        match select(hello, std::pin::pin!(sleep(GREETING_PATIENCE))).await {
            Either::Left((frame, _)) => frame,
            Either::Right(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    };
    let hello = match hello {
        Ok(Frame::Hello(hello)) => hello,
        Ok(_) => return tracing::warn!(%address, "a connection of the channel does not begin with a greeting: closed"),
        Err(error) => return tracing::warn!(%address, %error, "a connection of the channel is closed"),
    };
    let wanted = usize::try_from(hello.to_shard).unwrap_or(usize::MAX);
    // a shard that there is not is refused like any other mistake
    if wanted == shell.engine.shard() || wanted >= shell.engine.shards() {
        return admit(&shell, link, hello);
    }
    match link.leave() {
        Ok(socket) => {
            let arrive = move |engine: Engine| async move { take_over(&engine, socket, hello) };
            shell.engine.on_shard(wanted, arrive).await;
        }
        Err(error) => tracing::warn!(%address, %error, "a connection of the channel cannot go to its shard"),
    }
}

/// A connection comes from the shard that accepted it.
fn take_over(engine: &Engine, socket: Socket, hello: Hello) {
    let Some(shell) = engine.attached::<Shell>() else { return };
    match Stream::new(socket, &shell.poller) {
        Ok(stream) => admit(&shell, Link::new(stream), hello),
        Err(error) => tracing::warn!(%error, "a connection of the channel is closed"),
    }
}

/// The core says whether a greeting is welcome.
fn admit(shell: &Rc<Shell>, link: Rc<Link>, hello: Hello) {
    if shell.is_ending() {
        return link.close();
    }
    let id = shell.tell(|core, now, _| core.handle_accepted(now));
    shell.links.borrow_mut().insert(id, link.clone());
    serve(shell, id, link);
    shell.tell(|core, now, logs| core.handle_frame(now, id, Frame::Hello(hello), logs));
}

/// Reads and writes a connection until it ends.
fn serve(shell: &Rc<Shell>, id: LinkId, link: Rc<Link>) {
    let (writing, of_writer) = (link.clone(), shell.clone());
    shell.tasks.spawn(async move {
        let error = writing.write().await;
        ended(&of_writer, id, &error);
    });
    let shell = shell.clone();
    shell.tasks.clone().spawn(async move {
        let mut inbox = Inbox::default();
        // A long frame may take a while to come: who sends one is there.
        let heard = || shell.tell(|core, now, _| core.handle_heard(now, id));
        let error = loop {
            match link.receive(&mut inbox, heard).await {
                Ok(frame) => {
                    if let Frame::Refuse(refusal) = &frame {
                        tell_of_refusal(id, *refusal);
                    }
                    shell.tell(|core, now, logs| core.handle_frame(now, id, frame, logs));
                }
                Err(error) => break error,
            }
            glommio::yield_if_needed().await;
        };
        link.close();
        ended(&shell, id, &error);
    });
}

/// Addresses and versions do not mend themselves; lives that are not known yet do.
fn tell_of_refusal(id: LinkId, refusal: Refusal) {
    match refusal {
        Refusal::OtherCluster | Refusal::OtherNode | Refusal::OtherVersion => {
            tracing::warn!(link = id.0, ?refusal, "a node of the cluster refuses this one on the channel");
        }
        Refusal::OtherLife | Refusal::NotRegistered => {
            tracing::debug!(link = id.0, ?refusal, "not yet taken for a node")
        }
    }
}

/// The first of reader and writer that sees the end tells the core.
fn ended(shell: &Rc<Shell>, id: LinkId, error: &LinkError) {
    if shell.links.borrow_mut().remove(&id).is_some() {
        tracing::debug!(link = id.0, %error, "a connection of the channel ended");
        shell.tell(|core, now, _| core.handle_closed(now, id));
    }
}

/// Opens a connection that the core wants.
pub(super) async fn dial(shell: Rc<Shell>, id: LinkId, node: NodeId, shard: u32, purpose: Purpose) {
    let (member, peer) = {
        let image = shell.image.borrow();
        let live = image.as_ref().and_then(|image| image.nodes.get(&node));
        match live {
            Some(live) => (live.member(), live.peer.clone()),
            None => return refused(&shell, id),
        }
    };
    match connect(&shell, &peer).await {
        Ok(_) if shell.is_ending() => refused(&shell, id),
        Ok(link) => {
            shell.links.borrow_mut().insert(id, link.clone());
            serve(&shell, id, link);
            shell.tell(|core, now, _| core.on_dialed(now, id, Ok(())));
        }
        Err(error) => {
            tracing::debug!(node, shard, ?purpose, peer, %error, "no connection to another node");
            if error.kind() == io::ErrorKind::ConnectionRefused {
                tell_unreachable(&shell, member);
            }
            refused(&shell, id);
        }
    }
}

fn refused(shell: &Rc<Shell>, id: LinkId) {
    shell.tell(|core, now, _| core.on_dialed(now, id, Err(())));
}

/// Nobody listens there: the process is gone, long before its lease is. That is no proof, and none is needed: whoever is
/// fenced without reason registers again.
fn tell_unreachable(shell: &Rc<Shell>, member: Member) {
    shell.control.put(Question::Unreachable(member), UNREACHABLE_TIMEOUT);
}

async fn connect(shell: &Rc<Shell>, peer: &str) -> io::Result<Rc<Link>> {
    let address = resolve(peer.to_owned()).await?;
    let stream = Stream::connect(address, &shell.poller)?;
    {
        let connected = std::pin::pin!(stream.connected());
        match select(connected, std::pin::pin!(sleep(DIAL_PATIENCE))).await {
            Either::Left((connected, _)) => connected?,
            Either::Right(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(Link::new(stream))
}

/// An address at once, a name on a thread beside the shard.
async fn resolve(peer: String) -> io::Result<SocketAddr> {
    if let Ok(address) = peer.parse() {
        return Ok(address);
    }
    let found = glommio::executor().spawn_blocking(move || {
        let mut found = peer.to_socket_addrs()?;
        found.next().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{peer} has no address")))
    });
    found.await
}
