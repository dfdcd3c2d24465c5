//! Listeners: the ways into a node, each with a name and the address that its clients are told. Pure.
//!
//! On the command line and in `listen` they are written as Kafka writes them, `NAME://HOST:PORT`; without a name, an
//! address belongs to the listener PLAINTEXT. In the file they can be tables.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use millrace_tuning::network::clash;
use serde::{Deserialize, Deserializer, de};

use super::{address::HostPort, options::Advertise, settings};

/// The protocol of every listener, and the name of one that was given none.
pub(crate) const PLAINTEXT: &str = "PLAINTEXT";

/// Kafka's other protocols. As a listener's name, each says that it is spoken there.
const NOT_SERVED: [&str; 3] = ["SSL", "SASL_PLAINTEXT", "SASL_SSL"];

/// An address, and the listener that it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// In capitals, as Kafka compares them; `None` if nothing was written.
    pub(crate) name: Option<String>,
    pub(crate) address: HostPort,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((name, address)) = text.split_once("://") else {
            return match text.split_once('=') {
                Some((name, address)) => Err(format!("'{text}': write a listener's name as in {name}://{address}")),
                None => Ok(Self { name: None, address: text.parse()? }),
            };
        };
        if matches!(address.rsplit_once(':'), Some(("", _))) {
            return Err(format!("'{text}' has no host: write 0.0.0.0 for all of IPv4, or [::] for IPv6 too"));
        }
        Ok(Self { name: Some(checked_name(name)?), address: address.parse()? })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}://{}", self.address),
            None => self.address.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A listener's name in capitals.
fn checked_name(name: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.is_empty() || !name.bytes().all(legal) {
        return Err(format!("'{name}' is no name of a listener: letters, digits, '_', '-' and '.'"));
    }
    let name = name.to_ascii_uppercase();
    match NOT_SERVED.contains(&name.as_str()) {
        true => Err(not_served(&name)),
        false => Ok(name),
    }
}

fn not_served(protocol: &str) -> String {
    format!("protocol {protocol} is not served: there is neither TLS nor authentication, only {PLAINTEXT}")
}

/// A `[[listener]]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ListenerTable {
    #[serde(deserialize_with = "name")]
    name: String,
    #[serde(deserialize_with = "settings::one_or_more")]
    address: Vec<HostPort>,
    #[serde(default)]
    advertised: Option<HostPort>,
    #[serde(default, rename = "protocol", deserialize_with = "protocol")]
    _protocol: (),
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked_name(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn protocol<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let given = String::deserialize(deserializer)?;
    let protocol = given.to_ascii_uppercase().replace('-', "_");
    match protocol.as_str() {
        PLAINTEXT => Ok(()),
        known if NOT_SERVED.contains(&known) => Err(de::Error::custom(not_served(known))),
        _ => Err(de::Error::custom(format!("'{given}' is no protocol: write plaintext"))),
    }
}

/// A way into the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) name: String,
    /// At least one.
    pub(crate) addresses: Vec<HostPort>,
    /// What its clients are told; never a wildcard. `None`: the first address, or this machine's name for a wildcard.
    pub(crate) advertised: Option<HostPort>,
}

/// What was said of listeners.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) listen: Option<Vec<Endpoint>>,
    pub(super) tables: Vec<ListenerTable>,
    pub(super) advertised: Vec<Endpoint>,
}

/// Makes listeners of what was said.
pub(super) fn resolve(said: Said, problems: &mut Vec<String>) -> Vec<Listener> {
    let listen = said.listen.or_else(|| said.tables.is_empty().then(|| vec![default_listen()]));
    let mut listeners = Vec::new();
    for Endpoint { name, address } in listen.unwrap_or_default() {
        add_address(&mut listeners, name, address, problems);
    }
    for ListenerTable { name, address, advertised, .. } in said.tables {
        if address.is_empty() {
            problems.push(format!("listener {name} needs at least one address"));
        }
        add(&mut listeners, Listener { name, addresses: address, advertised }, problems);
    }
    if listeners.is_empty() {
        problems.push("--listen needs at least one HOST:PORT".to_owned());
    }
    advertise(&mut listeners, said.advertised, problems);
    for listener in &listeners {
        check_addresses(listener, problems);
        check_advertised(listener, problems);
    }
    listeners
}

/// A socket for IPv6 alone takes no address of IPv4, however it is written.
fn check_addresses(listener: &Listener, problems: &mut Vec<String>) {
    for address in &listener.addresses {
        let mapped = address.host.parse::<Ipv6Addr>().ok().and_then(|ip| ip.to_ipv4_mapped());
        if let Some(ip) = mapped {
            problems.push(format!("--listen {address}: that is an address of IPv4: write {ip}:{}", address.port));
        }
    }
}

fn default_listen() -> Endpoint {
    Endpoint { name: None, address: HostPort { host: "127.0.0.1".to_owned(), port: 9092 } }
}

/// Addresses without a name are of one listener; each name is one.
fn add_address(listeners: &mut Vec<Listener>, name: Option<String>, address: HostPort, problems: &mut Vec<String>) {
    let is_named = name.is_some();
    let name = name.unwrap_or_else(|| PLAINTEXT.to_owned());
    match listeners.iter_mut().find(|listener| listener.name == name && !is_named) {
        Some(listener) => listener.addresses.push(address),
        None => add(listeners, Listener { name, addresses: vec![address], advertised: None }, problems),
    }
}

fn add(listeners: &mut Vec<Listener>, listener: Listener, problems: &mut Vec<String>) {
    match listeners.iter().any(|other| other.name == listener.name) {
        true => problems.push(format!("listener {} is given twice: each needs a name of its own", listener.name)),
        false => listeners.push(listener),
    }
}

/// Gives each listener its advertised address. Without a name, one is for the only listener.
fn advertise(listeners: &mut [Listener], advertised: Vec<Endpoint>, problems: &mut Vec<String>) {
    let mut given = Vec::new();
    for endpoint in advertised {
        let names = listeners.iter().map(|listener| listener.name.clone()).collect::<Vec<_>>();
        let name = match (&endpoint.name, names.as_slice()) {
            (Some(name), _) => name.clone(),
            (None, [only]) => only.clone(),
            (None, _) => {
                problems.push(format!(
                    "--advertised-listener {endpoint}: write whose it is, as in {}://{endpoint} (there are {})",
                    names.first().map_or(PLAINTEXT, String::as_str),
                    names.join(", ")
                ));
                continue;
            }
        };
        if given.contains(&name) {
            problems.push(format!("--advertised-listener {endpoint}: {name} has one already"));
        }
        match listeners.iter_mut().find(|listener| listener.name == name) {
            Some(listener) => listener.advertised = Some(endpoint.address),
            None => problems.push(format!(
                "--advertised-listener {endpoint}: there is no listener {name}, only {}",
                names.join(", ")
            )),
        }
        given.push(name);
    }
}

fn check_advertised(listener: &Listener, problems: &mut Vec<String>) {
    let Some(address) = &listener.advertised else { return };
    let whose = format!("--advertised-listener {}://{address}", listener.name);
    if address.is_wildcard() {
        let host = &address.host;
        problems.push(format!("{whose}: clients cannot connect to the meta-address {host}; name this host"));
    } else if address.port == 0 {
        problems.push(format!("{whose}: needs the port that clients connect to"));
    }
}

/// Where a listener listens: at its addresses, and beside them on the ports of its shards if shards are advertised.
pub(crate) fn places(listener: &Listener, advertise: Advertise, shards: usize) -> Vec<HostPort> {
    let mut places = listener.addresses.clone();
    let first = listener.addresses.first().map_or(0, |first| first.port);
    if advertise == Advertise::Shard && first != 0 {
        for port in (0..shards).filter_map(|shard| shard_port(first, shard)) {
            places.extend(listener.addresses.iter().map(|address| HostPort { port, ..address.clone() }));
        }
    }
    places
}

/// The port of a shard of its own, when shards are advertised: those that follow the first one.
pub(crate) fn shard_port(first: u16, shard: usize) -> Option<u16> {
    first.checked_add(1)?.checked_add(u16::try_from(shard).ok()?)
}

/// Refuses addresses that take each other's connections.
pub(super) fn check_places(listeners: &[Listener], advertise: Advertise, shards: usize, problems: &mut Vec<String>) {
    // by port, so that a thousand shards are compared in no time
    let mut taken: BTreeMap<u16, Vec<(&str, HostPort)>> = BTreeMap::new();
    for listener in listeners {
        for place in places(listener, advertise, shards) {
            let others = taken.entry(place.port).or_default();
            if place.port != 0
                && let Some((name, other)) = others.iter().find(|(_, other)| meet(other, &place))
            {
                problems.push(match *other == place && *name == listener.name {
                    true => format!("--listen {place} is given twice"),
                    false => format!(
                        "--listen: {} takes clients from {}",
                        shown(&place, listener.name.as_str(), listeners),
                        shown(other, name, listeners)
                    ),
                });
                break; // one line for two listeners, not one for each of their ports
            }
            others.push((&listener.name, place));
        }
    }
}

/// An address with its listener, and whether it is one of those of shards, which nobody wrote.
fn shown(place: &HostPort, name: &str, listeners: &[Listener]) -> String {
    let is_written = listeners.iter().any(|listener| listener.name == name && listener.addresses.contains(place));
    match is_written {
        true => format!("{name}://{place}"),
        false => format!("{name}://{place}, the port of a shard,"),
    }
}

/// Whether clients of one address would come to the other. What names mean is not known yet.
fn meet(one: &HostPort, other: &HostPort) -> bool {
    let literal = |address: &HostPort| Some(SocketAddr::new(address.host.parse::<IpAddr>().ok()?, address.port));
    match (literal(one), literal(other)) {
        (Some(one), Some(other)) => take_in(one, other),
        _ => one == other,
    }
}

/// Whether two addresses of one node clash. All of IPv4 and all of IPv6 do not: `[::]` takes IPv6 only then.
pub(crate) fn take_in(one: SocketAddr, other: SocketAddr) -> bool {
    let families = one.ip().is_unspecified() && other.ip().is_unspecified() && one.is_ipv4() != other.is_ipv4();
    clash(one, other) && !families
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(text: &str) -> Vec<Endpoint> {
        text.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect()
    }

    fn resolved(listen: &str, advertised: &str) -> (Vec<Listener>, Vec<String>) {
        let mut problems = Vec::new();
        let said = Said { listen: Some(endpoints(listen)), advertised: endpoints(advertised), ..Said::default() };
        let listeners = resolve(said, &mut problems);
        (listeners, problems)
    }

    #[test]
    fn addresses_can_have_the_name_of_a_listener() {
        for (text, name, address) in [
            ("127.0.0.1:9092", None, "127.0.0.1:9092"),
            ("PLAINTEXT://0.0.0.0:9092", Some("PLAINTEXT"), "0.0.0.0:9092"),
            ("inside://broker.example:1", Some("INSIDE"), "broker.example:1"),
            ("V6://[2001:db8::1]:9092", Some("V6"), "[2001:db8::1]:9092"),
            ("[::]:9092", None, "[::]:9092"),
        ] {
            let parsed: Endpoint = text.parse().unwrap();
            assert_eq!((parsed.name.as_deref(), parsed.address.to_string().as_str()), (name, address));
        }
        assert_eq!("inside://[::1]:1".parse::<Endpoint>().unwrap().to_string(), "INSIDE://[::1]:1");
    }

    #[test]
    fn what_is_no_listener_is_refused_with_a_reason() {
        for (text, reason) in [
            ("SSL://0.0.0.0:9093", "protocol SSL is not served"),
            ("sasl_ssl://0.0.0.0:9093", "protocol SASL_SSL is not served"),
            ("SASL_PLAINTEXT://0.0.0.0:9093", "only PLAINTEXT"),
            ("://h:1", "no name of a listener"),
            ("a b://h:1", "no name of a listener"),
            ("INSIDE://:9092", "write 0.0.0.0"),
            ("INSIDE://h", "no port"),
            ("INSIDE://::1:9092", "brackets"),
            ("INSIDE=0.0.0.0:9092", "INSIDE://"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn each_name_is_a_listener_with_its_own_advertised_address() {
        let (listeners, problems) = resolved("A://0.0.0.0:1,b://[::]:2", "B://[2001:db8::1]:12,a://h:11");
        assert_eq!(problems, [""; 0]);
        let shown = listeners.iter().map(|l| (l.name.as_str(), l.advertised.as_ref().unwrap().to_string()));
        assert_eq!(shown.collect::<Vec<_>>(), [("A", "h:11".to_owned()), ("B", "[2001:db8::1]:12".to_owned())]);
        let (listeners, problems) = resolved("127.0.0.1:1,[::1]:1", "h:5");
        assert_eq!((listeners.len(), listeners[0].addresses.len(), problems.len()), (1, 2, 0));
        assert_eq!((listeners[0].name.as_str(), listeners[0].advertised.is_some()), ("PLAINTEXT", true));
    }

    #[test]
    fn listeners_that_make_no_sense_are_refused_with_the_reason() {
        for (listen, advertised, reason) in [
            ("A://h:1,A://h:2", "", "A is given twice: each needs a name of its own"),
            ("PLAINTEXT://h:1,PLAINTEXT://h:2", "", "PLAINTEXT is given twice"),
            ("A://h:1,B://h:2", "h:3", "write whose it is, as in A://h:3 (there are A, B)"),
            ("A://h:1,B://h:2", "C://h:3", "there is no listener C, only A, B"),
            ("A://h:1", "A://h:3,A://h:4", "A has one already"),
            ("A://0.0.0.0:1", "A://0.0.0.0:1", "clients cannot connect to the meta-address 0.0.0.0"),
            ("A://[::]:1", "A://[::0]:1", "meta-address ::0"),
            ("h:1", "h:0", "needs the port"),
            ("", "", "at least one HOST:PORT"),
            ("A://[::ffff:1.2.3.4]:1", "", "[::ffff:1.2.3.4]:1: that is an address of IPv4: write 1.2.3.4:1"),
        ] {
            let (_, problems) = resolved(listen, advertised);
            assert!(problems.len() == 1 && problems[0].contains(reason), "{reason}: {problems:?}");
        }
    }

    #[test]
    fn addresses_that_take_each_others_clients_are_refused() {
        for (listen, advertise, reason) in [
            ("A://h:1,B://h:2", Advertise::Shard, Some("B://h:2 takes clients from A://h:2, the port of a shard")),
            ("A://h:1,B://h:4", Advertise::Shard, None),
            ("A://127.0.0.1:1,B://127.0.0.2:1", Advertise::Shard, None),
            ("A://h:1,B://h:2", Advertise::Node, None),
            ("A://h:1,B://h:1", Advertise::Node, Some("B://h:1 takes clients from A://h:1")),
            ("A://127.0.0.1:1,B://0.0.0.0:1", Advertise::Node, Some("takes clients from A://127.0.0.1:1")),
            ("A://[::]:1,B://127.0.0.1:1", Advertise::Node, Some("takes clients from A://[::]:1")),
            ("A://[::]:1,B://0.0.0.0:1", Advertise::Node, None),
            ("A://127.0.0.1:1,B://[::1]:1", Advertise::Node, None),
            ("h:0,h:0", Advertise::Shard, None),
            ("h:1,h:1", Advertise::Node, Some("h:1 is given twice")),
        ] {
            let (listeners, mut problems) = resolved(listen, "");
            check_places(&listeners, advertise, 2, &mut problems);
            match reason {
                Some(reason) => assert!(problems.len() == 1 && problems[0].contains(reason), "{reason}: {problems:?}"),
                None => assert_eq!(problems, [""; 0], "{listen}"),
            }
        }
    }
}
