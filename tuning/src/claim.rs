//! Addresses that a node of this machine has for itself, from before it looks for other listeners until it ends.
//!
//! Shards bind with SO_REUSEPORT, so the kernel lets a second node of the same user bind as well, and the list of
//! listeners tells nothing of a node that is only about to listen. So a node first takes a name for each address: that
//! of an abstract unix socket, which lives in the network namespace, as ports do, is given to one holder only, and is
//! gone with its process, however that ends. Whether addresses meet (0.0.0.0 takes in 127.0.0.1) no name can say:
//! claims of a port are compared, by one process at a time.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Finding,
    network::{CHECK, clash, holder_of, taken_by},
};

/// Claimed addresses; kept for as long as the node may listen there.
#[derive(Debug)]
pub struct Claims {
    _held: Vec<UnixDatagram>,
}

/// Claims all of `addresses`, none of which may have port 0, or says who has one that meets them.
pub fn claim(addresses: &[SocketAddr]) -> Result<Claims, Finding> {
    let mut held = Vec::new();
    for address in addresses {
        held.push(claim_one(*address)?);
    }
    Ok(Claims { _held: held })
}

const PREFIX: &str = "millrace-listen/";

fn claim_one(address: SocketAddr) -> Result<UnixDatagram, Finding> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let _turn = take_turn(address)?;
    let table = fs::read_to_string("/proc/net/unix").map_err(|error| cannot_claim(address, &error))?;
    // A node may name one address twice: that is for bind to judge.
    let own = format!("process {} ", std::process::id());
    for (claimed, inode) in claims(&table).filter(|(claimed, _)| clash(*claimed, address)) {
        let holder = holder_of(inode).unwrap_or_else(|| format!("another node, which listens on {claimed}"));
        if !holder.starts_with(&own) {
            return Err(taken_by(address, &holder));
        }
    }
    // Each claim has a name of its own, so that one node may make it twice.
    let name = format!("{PREFIX}{address}/{}-{}", std::process::id(), next_number());
    bind(&name).map_err(|error| cannot_claim(address, &error))
}

/// Waits until no other process compares claims on this port; it does so in no time.
fn take_turn(address: SocketAddr) -> Result<UnixDatagram, Finding> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(1);
    let name = format!("{PREFIX}turn/{}", address.port());
    let begun = Instant::now();
    loop {
        match bind(&name) {
            Ok(turn) => return Ok(turn),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => sleep(PAUSE),
            Err(error) => return Err(cannot_claim(address, &error)),
        }
    }
}

fn bind(name: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(name)?)
}

fn next_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn cannot_claim(address: SocketAddr, error: &io::Error) -> Finding {
    Finding::error(
        CHECK,
        format!("{address} cannot be claimed: {error}"),
        "without that, another node could listen there unnoticed",
        "let this user have unix sockets",
    )
}

/// Claims and the inodes of their sockets, out of a table in the format of `/proc/net/unix`.
fn claims(table: &str) -> impl Iterator<Item = (SocketAddr, u64)> + '_ {
    table.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let inode = fields.nth(6)?.parse().ok()?;
        // an abstract name is shown with an @ for the NUL before it
        let name = fields.next()?.strip_prefix('@')?.strip_prefix(PREFIX)?;
        let (address, _) = name.rsplit_once('/')?;
        Some((address.parse().ok()?, inode))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_from_the_table() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 6011 @millrace-listen/127.0.0.1:9092/17-0\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 6012 @millrace-listen/[::]:9092/17-1\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 6013 @millrace-listen/turn/9092\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 6014 /run/millrace-listen/127.0.0.1:1/1-1\n\
             0000000000000000: 00000002 00000000 00000000 0002 01 6015\n\
             garbage\n";
        let found: Vec<_> = claims(table).map(|(address, inode)| (address.to_string(), inode)).collect();
        assert_eq!(found, [("127.0.0.1:9092".to_owned(), 6011), ("[::]:9092".to_owned(), 6012)]);
    }

    #[test]
    fn a_claim_is_seen_until_it_is_dropped() {
        let address: SocketAddr = "127.0.0.1:7".parse().unwrap();
        let is_claimed = || {
            let table = fs::read_to_string("/proc/net/unix").unwrap();
            let own = format!("{PREFIX}{address}/{}-", std::process::id());
            claims(&table).any(|(claimed, _)| claimed == address) && table.contains(&own)
        };
        let claimed = claim(&[address, address]).unwrap();
        assert!(is_claimed());
        drop(claimed);
        assert!(!is_claimed());
    }
}
