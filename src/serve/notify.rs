//! Messages to systemd, if it started us: `sd_notify(3)` without its library.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// The socket of `$NOTIFY_SOCKET`, if there is one.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// Connects to `$NOTIFY_SOCKET`. Without it, messages go nowhere.
    pub(super) fn from_environment() -> Self {
        let name = env::var("NOTIFY_SOCKET").ok();
        let socket = name
            .as_deref()
            .map(connect)
            .and_then(|socket| socket.map_err(|error| tracing::warn!("cannot notify systemd: {error}")).ok());
        Self { socket }
    }

    /// Start-up is finished.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// The node is on its way down.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// Every shard turns.
    pub(super) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::warn!("cannot notify systemd: {error}");
        }
    }
}

fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?; // whoever notifies has more to do than to wait for systemd
    Ok(socket)
}

/// How long systemd waits between two signs of life before it kills us; `None` if it does not watch this process.
pub(super) fn watchdog_interval() -> Option<Duration> {
    watchdog(env::var("WATCHDOG_USEC").ok()?.as_str(), env::var("WATCHDOG_PID").ok().as_deref())
}

fn watchdog(micros: &str, pid: Option<&str>) -> Option<Duration> {
    let ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
    let micros: u64 = micros.parse().ok().filter(|micros| *micros > 0)?;
    ours.then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_the_socket_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let abstract_name = format!("millrace-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap();
        for (receiver, name) in [(by_path, path.display().to_string()), (by_name, format!("@{abstract_name}"))] {
            let notifier = Notifier { socket: Some(connect(&name).unwrap()) };
            notifier.ready("serving");
            notifier.stopping();
            let mut buffer = [0; 64];
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serving");
            let length = receiver.recv(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(b"STOPPING=1"));
        }
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let own = std::process::id().to_string();
        assert_eq!(watchdog("30000000", Some(&own)), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("30000000", None), Some(Duration::from_secs(30)));
        assert_eq!(watchdog("30000000", Some("0")), None);
        assert_eq!(watchdog("0", None), None);
        assert_eq!(watchdog("soon", None), None);
    }
}
