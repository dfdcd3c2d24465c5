//! Nodes with networks of their own, which can be cut: namespaces on a bridge. Needs root and `ip`; what is cut between
//! some of them only also `nft`.

use std::{net::SocketAddr, process::Command};

use crate::node::Place;

/// A bridge and what hangs on it; gone when dropped.
pub(crate) struct Network {
    /// Begins the names of everything.
    name: String,
    /// The first three bytes of every address.
    prefix: String,
    /// Last bytes of addresses that have a namespace.
    places: Vec<u8>,
}

/// Last byte of this side's address.
const OWN: u8 = 254;
/// Last byte of etcd's address.
pub(crate) const ETCD: u8 = 100;

fn run(command: &str) -> Result<(), String> {
    let output = Command::new("sh").arg("-c").arg(command).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

impl Network {
    /// A network without places. `None`: none can be made here, which is said.
    pub(crate) fn make() -> Option<Network> {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = (std::process::id() + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) % 10_000;
        let network = Network {
            name: format!("mr{number}"),
            prefix: format!("10.{}.{}", 100 + number / 100, number % 100),
            places: Vec::new(),
        };
        let Network { name, prefix, .. } = &network;
        let made = run("nft list ruleset > /dev/null").and_then(|()| {
            run(&format!(
                "ip link add {name} type bridge && ip addr add {prefix}.{OWN}/24 dev {name} && ip link set {name} up"
            ))
        });
        match made {
            Ok(()) => Some(network),
            Err(error) => {
                println!("skipped: no networks of their own for nodes ({error})");
                None
            }
        }
    }

    fn namespace(&self, place: u8) -> String {
        format!("{}n{place}", self.name)
    }

    /// A place for a process, with a namespace of its own.
    pub(crate) fn place(&mut self, place: u8) -> Place {
        let (name, prefix, space) = (&self.name, &self.prefix, self.namespace(place));
        let veth = format!("{name}v{place}");
        run(&format!(
            "ip netns add {space} && ip link add {veth} type veth peer name eth0 netns {space} && \
             ip link set {veth} master {name} up && ip -n {space} addr add {prefix}.{place}/24 dev eth0 && \
             ip -n {space} link set eth0 up && ip -n {space} link set lo up"
        ))
        .unwrap();
        self.places.push(place);
        let at = |port: u16| self.address(place, port);
        Place { wrapper: format!("ip netns exec {space} "), client: at(9092), peer: at(9192) }
    }

    /// An address of a place.
    pub(crate) fn address(&self, place: u8, port: u16) -> SocketAddr {
        format!("{}.{place}:{port}", self.prefix).parse().unwrap()
    }

    /// Nothing comes to that place, nothing leaves it.
    pub(crate) fn cut(&self, place: u8) {
        run(&format!("ip link set {}v{place} down", self.name)).unwrap();
    }

    /// The place is reached again.
    pub(crate) fn mend(&self, place: u8) {
        run(&format!("ip link set {}v{place} up", self.name)).unwrap();
    }

    /// What `from` sends does not come to `to`; the other way it does.
    pub(crate) fn deafen(&self, to: u8, from: u8) {
        let (space, prefix) = (self.namespace(to), &self.prefix);
        let nft = format!("ip netns exec {space} nft");
        run(&format!(
            "{nft} add table ip ears && {nft} add chain ip ears input '{{ type filter hook input priority 0; }}' && \
             {nft} add rule ip ears input ip saddr {prefix}.{from} drop"
        ))
        .unwrap();
    }

    /// Neither hears the other.
    pub(crate) fn sever(&self, one: u8, other: u8) {
        self.deafen(one, other);
        self.deafen(other, one);
    }

    /// Everybody reaches everybody again.
    pub(crate) fn heal(&self) {
        for place in &self.places {
            self.mend(*place);
            let space = self.namespace(*place);
            run(&format!("ip netns exec {space} nft 'add table ip ears; delete table ip ears'")).unwrap();
        }
    }

    /// That place hears everybody again.
    pub(crate) fn hear(&self, place: u8) {
        run(&format!("ip netns exec {} nft delete table ip ears", self.namespace(place))).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for place in &self.places {
            drop(run(&format!("ip netns del {}", self.namespace(*place))));
        }
        drop(run(&format!("ip link del {}", self.name)));
    }
}
