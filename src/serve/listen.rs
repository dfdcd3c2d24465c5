//! From the addresses that the user wrote to sockets' addresses: names looked up, port 0 replaced by a free port, and
//! the addresses that clients are told.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
};

use millrace_tuning::network;
use socket2::{Domain, Socket, Type};

use crate::config::{Advertise, ClusterConfig, Config, HostPort, Listener, shard_port, take_in};

/// Where the node listens.
#[derive(Debug)]
pub(super) struct Listening {
    /// At least one.
    pub(super) listeners: Vec<Place>,
    /// Where metrics are served, if they are.
    pub(super) metrics: Option<SocketAddr>,
    /// Where other nodes of the cluster connect, if it is in one.
    pub(super) peer: Option<PeerPlace>,
    /// Keep ports that the kernel chose from being given to others; bound, but not listening.
    _held: Vec<Socket>,
}

/// Where a listener is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    /// Shared by all shards. At least one, none with port 0.
    pub(super) addresses: Vec<SocketAddr>,
    /// What clients are told.
    pub(super) advertised: HostPort,
    /// When shards are advertised, a port for each that the kernel chose; none where they follow from the first.
    pub(super) chosen_ports: Vec<u16>,
}

/// Where the channel between nodes is.
#[derive(Debug)]
pub(super) struct PeerPlace {
    /// At least one, none with port 0.
    pub(super) addresses: Vec<SocketAddr>,
    /// What other nodes are told.
    pub(super) advertised: HostPort,
}

impl Place {
    /// Ports on which shards listen when they are advertised, and those that clients are told.
    pub(super) fn shard_ports(&self, shards: usize) -> Vec<(u16, u16)> {
        let chosen = self.chosen_ports.iter().map(|port| (*port, *port)).collect::<Vec<_>>();
        let own = self.addresses[0].port();
        let following = |shard| Some((shard_port(own, shard)?, shard_port(self.advertised.port, shard)?));
        if chosen.is_empty() { (0..shards).filter_map(following).collect() } else { chosen }
    }
}

impl Listening {
    /// Every address that some shard listens on.
    pub(super) fn all(&self, config: &Config) -> Vec<SocketAddr> {
        let mut all: Vec<_> = self.peer.iter().flat_map(|peer| peer.addresses.clone()).collect();
        for place in &self.listeners {
            all.extend(&place.addresses);
            if config.advertise == Advertise::Shard {
                let ports = place.shard_ports(config.shards).into_iter();
                all.extend(
                    ports.flat_map(|(port, _)| place.addresses.iter().map(move |a| SocketAddr::new(a.ip(), port))),
                );
            }
        }
        all
    }
}

/// Resolves a configuration's addresses.
pub(super) fn resolve(config: &Config) -> io::Result<Listening> {
    let mut held = Vec::new();
    let mut listeners = Vec::new();
    for listener in &config.listeners {
        listeners.push(place(listener, config, &mut held)?);
    }
    let metrics = config.metrics.as_ref().map(|wanted| bindable(wanted, &mut held));
    let metrics = metrics.transpose()?.and_then(|addresses| addresses.first().copied());
    check_apart(&listeners)?;
    let peer = config.cluster.as_ref().map(|cluster| peer_place(cluster, &mut held)).transpose()?;
    Ok(Listening { listeners, metrics, peer, _held: held })
}

fn peer_place(cluster: &ClusterConfig, held: &mut Vec<Socket>) -> io::Result<PeerPlace> {
    let addresses = bindable(&cluster.peer_listen, held)?;
    let told = cluster.peer_advertised.clone();
    let advertised = told.unwrap_or_else(|| advertised(&cluster.peer_listen, addresses[0].port()));
    Ok(PeerPlace { addresses, advertised })
}

fn place(listener: &Listener, config: &Config, held: &mut Vec<Socket>) -> io::Result<Place> {
    let mut addresses = Vec::new();
    for wanted in &listener.addresses {
        for address in bindable(wanted, held)? {
            // two names may mean the same
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    let advertised = match &listener.advertised {
        Some(address) => address.clone(),
        None => advertised(&listener.addresses[0], addresses[0].port()),
    };
    let mut chosen_ports = Vec::new();
    if config.advertise == Advertise::Shard {
        match listener.addresses[0].port {
            0 => {
                let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
                for _ in 0..config.shards {
                    chosen_ports.push(free_port(&ips, held)?);
                }
            }
            _ => check_following(&[addresses[0].port(), advertised.port], config.shards)?,
        }
    }
    Ok(Place { name: listener.name.clone(), addresses, advertised, chosen_ports })
}

fn check_following(ports: &[u16], shards: usize) -> io::Result<()> {
    match ports.iter().find(|port| shard_port(**port, shards.saturating_sub(1)).is_none()) {
        Some(port) => Err(io::Error::other(format!("no {shards} ports follow port {port}"))),
        None => Ok(()),
    }
}

/// What names mean is known now: no two listeners may have the same address.
fn check_apart(listeners: &[Place]) -> io::Result<()> {
    for (at, one) in listeners.iter().enumerate() {
        for other in &listeners[..at] {
            let met = one.addresses.iter().find(|a| other.addresses.iter().any(|b| take_in(**a, *b)));
            if let Some(address) = met {
                let names = (&one.name, &other.name);
                return Err(io::Error::other(format!("{address} is of listener {} and of {}", names.0, names.1)));
            }
        }
    }
    Ok(())
}

/// All addresses of this machine that a host means, with a port that the kernel chose if none was given.
fn bindable(wanted: &HostPort, held: &mut Vec<Socket>) -> io::Result<Vec<SocketAddr>> {
    let looked_up = network::own_addresses(&wanted.host, wanted.port);
    let mut found = looked_up.map_err(|error| io::Error::other(format!("{}: {error}", wanted.host)))?;
    if wanted.port == 0 {
        let ips: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
        let port = free_port(&ips, held)?;
        found.iter_mut().for_each(|address| address.set_port(port));
    }
    Ok(found)
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

/// A port that is free at all these addresses, and stays ours.
fn free_port(ips: &[IpAddr], held: &mut Vec<Socket>) -> io::Result<u16> {
    /// What is free at one address is most often free at the others.
    const ATTEMPTS: u32 = 20;
    let mut attempt = 0;
    loop {
        let mut port = 0;
        let mut bind_all = || {
            let bind = |ip: &IpAddr| {
                let (socket, bound) = hold(SocketAddr::new(*ip, port))?;
                port = bound;
                Ok(socket)
            };
            ips.iter().map(bind).collect::<io::Result<Vec<Socket>>>()
        };
        attempt += 1;
        match bind_all() {
            Ok(sockets) => {
                held.extend(sockets);
                return Ok(port);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
}

/// Binds without listening; answers the port too.
fn hold(address: SocketAddr) -> io::Result<(Socket, u16)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // as the shards will bind it
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP socket"))?;
    Ok((socket, bound.port()))
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
        let place = &listening.listeners[0];
        let port = place.addresses[0].port();
        assert_ne!(port, 0);
        assert_eq!(place.advertised, HostPort { host: "127.0.0.1".to_owned(), port });
        let shard = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        shard.set_reuse_port(true).unwrap();
        shard.bind(&place.addresses[0].into()).unwrap();
    }

    #[test]
    fn a_name_with_several_addresses_is_listened_on_at_all_of_them() {
        let own = network::own_addresses("localhost", 0).unwrap();
        let listening = resolve(&config(&["localhost:0"], Advertise::Shard)).unwrap();
        let place = &listening.listeners[0];
        assert_eq!(
            place.addresses.iter().map(SocketAddr::ip).collect::<Vec<_>>(),
            own.iter().map(SocketAddr::ip).collect::<Vec<_>>()
        );
        assert!(place.addresses.iter().all(|address| address.port() == place.addresses[0].port()));
        assert_eq!(listening.all(&config(&["localhost:0"], Advertise::Shard)).len(), 3 * own.len());
    }

    #[test]
    fn a_chosen_port_is_free_at_every_address() {
        let mut held = Vec::new();
        let ips = network::here(["127.0.0.1:0", "[::1]:0"].map(|text| text.parse().unwrap()).to_vec());
        let port = free_port(&ips.iter().map(SocketAddr::ip).collect::<Vec<_>>(), &mut held).unwrap();
        let bound: Vec<SocketAddr> = held.iter().map(|s| s.local_addr().unwrap().as_socket().unwrap()).collect();
        assert_eq!(bound.len(), ips.len());
        assert!(port != 0 && bound.iter().all(|address| address.port() == port), "{bound:?}");
    }

    #[test]
    fn names_that_mean_one_address_are_not_two_listeners() {
        let error = resolve(&config(&["A://localhost:19092", "B://127.0.0.1:19092"], Advertise::Node)).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:19092 is of listener B and of A"), "{error}");
    }

    #[test]
    fn shards_get_the_ports_that_follow() {
        let listening = resolve(&config(&["127.0.0.1:19092"], Advertise::Shard)).unwrap();
        assert_eq!(listening.listeners[0].shard_ports(2), [(19093, 19093), (19094, 19094)]);
        let chosen = resolve(&config(&["127.0.0.1:0"], Advertise::Shard)).unwrap();
        let ports = chosen.listeners[0].shard_ports(2);
        assert!(ports.len() == 2 && ports.iter().all(|(own, told)| own == told && *own != 0));
        assert!(resolve(&config(&["127.0.0.1:65534"], Advertise::Shard)).is_err());
    }

    #[test]
    fn clients_are_told_a_name_and_never_a_wildcard() {
        let told = advertised(&"0.0.0.0:9092".parse().unwrap(), 9092);
        assert!(!told.is_wildcard() && !told.host.is_empty());
        assert_eq!(advertised(&"localhost:0".parse().unwrap(), 5).to_string(), "localhost:5");
    }
}
