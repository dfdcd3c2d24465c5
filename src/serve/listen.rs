//! From the addresses that the user wrote to sockets' addresses: names looked up, port 0 replaced by a free port, and
//! the address that clients are told.

use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs},
};

use socket2::{Domain, Socket, Type};

use crate::config::{Advertise, Config, HostPort};

/// Where the node listens.
#[derive(Debug)]
pub(super) struct Listening {
    /// Shared by all shards. At least one, none with port 0.
    pub(super) addresses: Vec<SocketAddr>,
    /// What clients are told.
    pub(super) advertised: HostPort,
    /// Where metrics are served, if they are.
    pub(super) metrics: Option<SocketAddr>,
    /// A port of its own for each shard when shards are advertised; else none.
    pub(super) shard_ports: Vec<u16>,
    /// Keep ports that the kernel chose from being given to others; bound, but not listening.
    _held: Vec<Socket>,
}

impl Listening {
    /// Every address that some shard listens on.
    pub(super) fn all(&self) -> Vec<SocketAddr> {
        let own = self.shard_ports.iter();
        let own = own.flat_map(|port| self.addresses.iter().map(|address| SocketAddr::new(address.ip(), *port)));
        self.addresses.iter().copied().chain(own).collect()
    }
}

/// Resolves a configuration's addresses.
pub(super) fn resolve(config: &Config) -> io::Result<Listening> {
    let mut held = Vec::new();
    let mut addresses = Vec::new();
    for wanted in &config.listen {
        addresses.push(with_port(look_up(wanted)?, &mut held)?);
    }
    let metrics = config.metrics.as_ref().map(|wanted| with_port(look_up(wanted)?, &mut held)).transpose()?;
    let first = addresses[0];
    let advertised = match &config.advertised {
        Some(address) => address.clone(),
        None => advertised(&config.listen[0], first.port()),
    };
    let shard_ports = match config.advertise {
        Advertise::Node => Vec::new(),
        Advertise::Shard => shard_ports(config, first, &mut held)?,
    };
    Ok(Listening { addresses, advertised, metrics, shard_ports, _held: held })
}

fn look_up(wanted: &HostPort) -> io::Result<SocketAddr> {
    let mut found = (wanted.host.as_str(), wanted.port).to_socket_addrs()?;
    found.next().ok_or_else(|| io::Error::other(format!("{} has no address", wanted.host)))
}

/// What clients are told when nothing else is said: the host as it was written, or this machine's name for a wildcard.
pub(super) fn advertised(listen: &HostPort, port: u16) -> HostPort {
    let host = match listen.is_wildcard() {
        true => host_name().unwrap_or_else(|| "localhost".to_owned()),
        false => listen.host.clone(),
    };
    HostPort { host, port }
}

fn host_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

/// The port of a shard of its own, when shards are advertised: those that follow the first one.
pub(super) fn shard_port(first: u16, shard: usize) -> Option<u16> {
    first.checked_add(1)?.checked_add(u16::try_from(shard).ok()?)
}

/// The ports that follow the first one; free ones when that was for the kernel to choose.
fn shard_ports(config: &Config, first: SocketAddr, held: &mut Vec<Socket>) -> io::Result<Vec<u16>> {
    (0..config.shards)
        .map(|shard| match config.listen[0].port {
            0 => with_port(SocketAddr::new(first.ip(), 0), held).map(|address| address.port()),
            port => shard_port(port, shard)
                .ok_or_else(|| io::Error::other(format!("no {} ports follow port {port}", config.shards))),
        })
        .collect()
}

/// The address itself, or with a port that the kernel chose, which stays ours.
fn with_port(address: SocketAddr, held: &mut Vec<Socket>) -> io::Result<SocketAddr> {
    if address.port() != 0 {
        return Ok(address);
    }
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))?;
    held.push(socket);
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, ServeOptions};

    fn config(listen: &[&str], advertise: Advertise) -> Config {
        let options = ServeOptions {
            listen: Some(listen.iter().map(|text| text.parse().unwrap()).collect()),
            advertise: Some(advertise),
            ..Default::default()
        };
        Config::resolve(options, Machine { cpus: 2 }).unwrap()
    }

    #[test]
    fn port_zero_becomes_a_port_that_shards_can_share() {
        let listening = resolve(&config(&["127.0.0.1:0"], Advertise::Node)).unwrap();
        let port = listening.addresses[0].port();
        assert_ne!(port, 0);
        assert_eq!(listening.advertised, HostPort { host: "127.0.0.1".to_owned(), port });
        let shard = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        shard.set_reuse_port(true).unwrap();
        shard.bind(&listening.addresses[0].into()).unwrap();
    }

    #[test]
    fn shards_get_the_ports_that_follow() {
        let listening = resolve(&config(&["127.0.0.1:19092"], Advertise::Shard)).unwrap();
        assert_eq!(listening.shard_ports, [19093, 19094]);
        let chosen = resolve(&config(&["127.0.0.1:0"], Advertise::Shard)).unwrap();
        assert!(chosen.shard_ports.len() == 2 && !chosen.shard_ports.contains(&0));
        assert!(resolve(&config(&["127.0.0.1:65534"], Advertise::Shard)).is_err());
    }

    #[test]
    fn clients_are_told_a_name_and_never_a_wildcard() {
        let told = advertised(&"0.0.0.0:9092".parse().unwrap(), 9092);
        assert!(!told.is_wildcard() && !told.host.is_empty());
        assert_eq!(advertised(&"localhost:0".parse().unwrap(), 5).to_string(), "localhost:5");
    }
}
