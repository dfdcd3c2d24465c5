//! The addresses to listen on: whether they are this machine's, free, and who has them otherwise.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs},
};

use crate::{Finding, Needs};

pub(crate) const CHECK: &str = "listen";

/// Looks up, looks for other listeners, and binds each address for a moment; looks up what clients are told.
pub fn check(needs: &Needs) -> Vec<Finding> {
    let mut findings: Vec<Finding> = needs.listen.iter().flat_map(|(host, port)| check_host(host, *port)).collect();
    findings.extend(needs.advertised.iter().map(|(host, port)| check_advertised(host, *port)));
    findings
}

fn check_advertised(host: &str, port: u16) -> Finding {
    const CHECK: &str = "advertised";
    match (host, port).to_socket_addrs().map(|addresses| addresses.count()) {
        Ok(1..) => Finding::good(CHECK, format!("clients are told {host}:{port}")),
        _ => Finding::warning(
            CHECK,
            format!("clients are told {host}:{port}, and this machine cannot look {host} up"),
            "a client connects to what it is told, whatever address it began with",
            "--advertised-listener with a name or address that clients can reach",
        ),
    }
}

/// The addresses to listen on for a host: the one that is written, or those of a name.
pub fn own_addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = here((host, port).to_socket_addrs()?.collect());
    match found.is_empty() {
        true => Err(io::Error::other("the name has no address")),
        false => Ok(found),
    }
}

/// Of several addresses of one name, those that this machine has, each once: one that knows `localhost` as `::1` too may
/// have IPv6 switched off. If it has none of them, the first, which says so best when it is bound.
pub fn here(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_here = |address: &SocketAddr| TcpListener::bind(SocketAddr::new(address.ip(), 0)).is_ok();
    let mut own: Vec<SocketAddr> = Vec::new();
    for address in &found {
        if !own.contains(address) && (found.len() == 1 || is_here(address)) {
            own.push(*address);
        }
    }
    if own.is_empty() { found.into_iter().take(1).collect() } else { own }
}

fn check_host(host: &str, port: u16) -> Vec<Finding> {
    match own_addresses(host, port) {
        Ok(addresses) => addresses.into_iter().map(check_one).collect(),
        Err(error) => vec![Finding::error(
            CHECK,
            format!("{host} cannot be looked up: {error}"),
            "a node listens on addresses of its own",
            "write an address of this machine, 127.0.0.1 or 0.0.0.0",
        )],
    }
}

fn check_one(address: SocketAddr) -> Finding {
    // Shards share a port (SO_REUSEPORT), and so would another node of the same user, silently: half of the clients
    // would talk to the wrong one. That is why the kernel's list of listeners is asked and not only bind.
    if let Some(taken) = listener_on(address) {
        let holder = holder_of(taken.inode).unwrap_or_else(|| "a process of another user".to_owned());
        return taken_by(address, &holder);
    }
    match TcpListener::bind(address) {
        Ok(_) => Finding::good(CHECK, format!("{address} is free")),
        Err(error) => judge_bind(address, &error),
    }
}

pub(crate) fn taken_by(address: SocketAddr, holder: &str) -> Finding {
    Finding::error(
        CHECK,
        format!("{address} is taken by {holder}"),
        "clients would reach the other process",
        "stop it, or choose another address",
    )
}

fn judge_bind(address: SocketAddr, error: &io::Error) -> Finding {
    match error.kind() {
        io::ErrorKind::AddrInUse => taken_by(address, "another process"),
        io::ErrorKind::AddrNotAvailable => Finding::error(
            CHECK,
            format!("{address} is not an address of this machine"),
            "a node listens on addresses of its own",
            "list them with 'ip address', or listen on 0.0.0.0 and name the address with --advertised-listener",
        ),
        io::ErrorKind::PermissionDenied => Finding::error(
            CHECK,
            format!("this user may not listen on {address}"),
            "ports below 1024 are for root or CAP_NET_BIND_SERVICE",
            "choose a port of 1024 or above",
        ),
        _ => Finding::error(
            CHECK,
            format!("cannot listen on {address}: {error}"),
            "a node listens on it",
            "choose another address",
        ),
    }
}

/// A listening socket as `/proc/net/tcp` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    inode: u64,
}

/// Somebody who listens where `address` would clash.
fn listener_on(address: SocketAddr) -> Option<Listener> {
    if address.port() == 0 {
        return None;
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| listeners(table)).find(|listener| clash(listener.address, address))
}

/// Whether a listener of one address would take connections of the other.
pub fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let wild = |address: SocketAddr| address.ip().is_unspecified();
    let same_family = one.is_ipv4() == other.is_ipv4();
    // [::] takes IPv4 too unless told otherwise; an address of one family does not meet the other family's.
    let meets = match (wild(one), wild(other)) {
        (false, false) => one.ip() == other.ip(),
        (true, _) => same_family || one.is_ipv6(),
        (_, true) => same_family || other.is_ipv6(),
    };
    one.port() == other.port() && meets
}

/// The listening sockets of a table in the format of `/proc/net/tcp`.
fn listeners(table: &str) -> Vec<Listener> {
    const LISTEN: &str = "0A";
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (*state == LISTEN).then_some(())?;
        Some(Listener { address: parse_address(local)?, inode: inode.parse().ok()? })
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// An address of that table: hexadecimal words in this machine's byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> =
        (0..ip.len() / 8).map(|at| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()).collect::<Option<_>>()?;
    let ip = match words[..] {
        [word] => IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes())),
        [a, b, c, d] => {
            let mut bytes = [0; 16];
            for (at, word) in [a, b, c, d].iter().enumerate() {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    // Programs that listen on ::ffff:127.0.0.1 (Java does) hold the IPv4 address.
    Some(SocketAddr::new(ip.to_canonical(), port))
}

/// The process of this machine that takes connections to an address; `None` when there is none, or it cannot be seen.
pub fn process_on(address: SocketAddr) -> Option<u32> {
    process_with(listener_on(address)?.inode)
}

/// Which process has a socket open, as `process 12 (java)`; `None` when it cannot be seen.
pub(crate) fn holder_of(inode: u64) -> Option<String> {
    let process = process_with(inode)?;
    let command = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(format!("process {process} ({})", command.trim()))
}

fn process_with(inode: u64) -> Option<u32> {
    let link = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        if descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == &*link)) {
            return Some(id);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Severity;

    /// What is found of a host that has one address.
    fn only(host: &str, port: u16) -> Finding {
        let mut findings = check_host(host, port);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.remove(0)
    }

    #[test]
    fn a_name_means_all_its_addresses_that_are_here() {
        let addresses = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let two = addresses(&["127.0.0.1:7", "127.0.0.2:7"]);
        assert_eq!(here(two.clone()), two);
        assert_eq!(here(addresses(&["198.51.100.1:7", "127.0.0.1:7", "127.0.0.1:7"])), addresses(&["127.0.0.1:7"]));
        assert_eq!(here(addresses(&["198.51.100.1:7", "198.51.100.2:7"])), addresses(&["198.51.100.1:7"]));
        // what is written as an address is meant, wherever it is
        assert_eq!(own_addresses("198.51.100.1", 7).unwrap(), addresses(&["198.51.100.1:7"]));
    }

    #[test]
    fn a_taken_port_names_its_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let finding = only("127.0.0.1", port);
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.what.contains(&format!("process {} (", std::process::id())), "{finding}");
        let wildcard = only("0.0.0.0", port);
        assert_eq!(wildcard.severity, Severity::Error, "0.0.0.0 takes in 127.0.0.1");
    }

    #[test]
    fn a_free_port_passes() {
        assert_eq!(only("127.0.0.1", 0).severity, Severity::Good);
        let all = check_host("localhost", 0);
        assert!(!all.is_empty() && all.iter().all(|finding| finding.severity == Severity::Good), "{all:?}");
    }

    #[test]
    fn an_advertised_name_that_nobody_knows_is_warned_of() {
        assert_eq!(check_advertised("127.0.0.1", 9092).severity, Severity::Good);
        assert_eq!(check_advertised("no such host", 9092).severity, Severity::Warning);
    }

    #[test]
    fn addresses_of_others_are_refused() {
        let finding = only("192.0.2.1", 9092);
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.what.contains("not an address of this machine"), "{finding}");
        assert_eq!(only("no such host", 9092).severity, Severity::Error);
    }

    #[test]
    fn only_listening_sockets_are_read_from_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0\n\
             1: 0100007F:2384 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0\n\
             garbage\n";
        let found = listeners(table);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].address.to_string(), found[0].inode), ("127.0.0.1:9092".to_owned(), 12345));
        assert_eq!(
            parse_address("00000000000000000000000001000000:0050").map(|a| a.to_string()),
            Some("[::1]:80".to_owned())
        );
        assert_eq!(
            parse_address("0000000000000000FFFF00000100007F:0050").map(|a| a.to_string()),
            Some("127.0.0.1:80".to_owned())
        );
    }

    #[test]
    fn wildcards_clash_with_what_they_take_in() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (one, other, clashes) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "[::]:1", true),
            ("[::]:1", "[::1]:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("127.0.0.1:1", "[::1]:1", false),
        ] {
            assert_eq!(clash(address(one), address(other)), clashes, "{one} {other}");
            assert_eq!(clash(address(other), address(one)), clashes, "{other} {one}");
        }
    }
}
