//! The rooms of the house: which files are one, and who may know whom.

/// One floor: what is on it may know its own floor and all below, nothing above.
#[derive(Debug)]
pub struct Floor {
    /// What it is called in `ratchet.txt`.
    pub name: &'static str,
    /// Its rooms: folders, or files without `.rs`. The longest that fits a file is its room.
    pub rooms: &'static [&'static str],
}

/// Packages and those that each may name.
pub const PACKAGES: &[(&str, &[&str])] = &[
    ("src", &["engine", "net", "client", "replica", "tuning"]),
    ("net", &["engine", "client", "sockets", "replica"]),
    ("client", &["engine"]),
    ("sockets", &["engine"]),
    ("replica", &["engine", "sockets"]),
    ("bench", &["engine", "client"]),
    ("engine", &[]),
    ("tuning", &[]),
];

/// Every package's floors, from the ground up; one package's say nothing about another's.
pub const FLOORS: &[Floor] = &[
    Floor {
        name: "engine ground",
        rooms: &[
            "engine/src/io",
            "engine/src/chunk",
            "engine/src/signal",
            "engine/src/stall",
            "engine/src/stats",
            "engine/src/timing",
            "engine/src/vitals",
        ],
    },
    Floor { name: "batch", rooms: &["engine/src/batch"] },
    Floor {
        name: "config",
        rooms: &[
            "engine/src/config",
            "engine/src/api",
            "engine/src/replica_api",
            "engine/src/transactions",
            "engine/src/doubt",
        ],
    },
    Floor { name: "format", rooms: &["engine/src/format"] },
    Floor { name: "wal", rooms: &["engine/src/wal"] },
    Floor { name: "partition", rooms: &["engine/src/partition", "engine/src/compact"] },
    Floor { name: "store", rooms: &["engine/src/store"] },
    Floor {
        name: "engine",
        rooms: &[
            "engine/src/engine",
            "engine/src/fetch",
            "engine/src/mail",
            "engine/src/metadata",
            "engine/src/replica",
            "engine/src/simulated",
            "engine/src/topics",
            "engine/src/transactional",
            "engine/src/vigil",
        ],
    },
    Floor {
        name: "node",
        rooms: &[
            "engine/src/node",
            "engine/src/boot",
            "engine/src/abandon",
            "engine/src/alone",
            "engine/src/apart",
            "engine/src/lock",
            "engine/src/start",
        ],
    },
    Floor { name: "engine top", rooms: &["engine/src/lib", "engine/src/fuzz"] },
    Floor {
        name: "client core",
        rooms: &[
            "net/client/src/error_code",
            "net/client/src/exchange",
            "net/client/src/frame",
            "net/client/src/in_flight",
            "net/client/src/isolation",
            "net/client/src/partitioner",
            "net/client/src/requests",
            "net/client/src/versions",
        ],
    },
    Floor {
        name: "connection",
        rooms: &["net/client/src/broker", "net/client/src/connection", "net/client/src/error", "net/client/src/socket"],
    },
    Floor {
        name: "cluster",
        rooms: &[
            "net/client/src/admin",
            "net/client/src/cluster",
            "net/client/src/fetch",
            "net/client/src/groups",
            "net/client/src/lag",
            "net/client/src/offsets",
            "net/client/src/produce",
            "net/client/src/replicas",
            "net/client/src/transactions",
        ],
    },
    Floor { name: "poller", rooms: &["net/sockets/src/poller"] },
    Floor { name: "sockets", rooms: &["net/sockets/src"] },
    Floor { name: "client top", rooms: &["net/client/src/lib"] },
    Floor {
        name: "net ground",
        rooms: &[
            "net/src/errors",
            "net/src/feature_levels",
            "net/src/kafka_uuid",
            "net/src/kept_settings",
            "net/src/log_limiter",
        ],
    },
    Floor { name: "wire", rooms: &["net/src/wire"] },
    Floor { name: "other brokers", rooms: &["net/src/client"] },
    Floor { name: "runtime", rooms: &["net/src/coordinator/runtime", "net/src/coordinator/fields"] },
    Floor { name: "group", rooms: &["net/src/coordinator/group"] },
    Floor { name: "share", rooms: &["net/src/coordinator/share"] },
    Floor { name: "transaction", rooms: &["net/src/coordinator/transaction"] },
    Floor { name: "coordinator", rooms: &["net/src/coordinator"] },
    Floor { name: "broker", rooms: &["net/src/broker"] },
    Floor { name: "net top", rooms: &["net/src/lib", "net/src/fuzz"] },
    Floor { name: "output", rooms: &["src/output", "src/failure", "src/time", "src/config"] },
    Floor { name: "serve", rooms: &["src/serve"] },
    Floor { name: "commands", rooms: &["src/commands"] },
    Floor { name: "command line", rooms: &["src/cli", "src/main"] },
    Floor { name: "bench", rooms: &["bench/src"] },
    Floor { name: "tuning", rooms: &["tuning/src"] },
    Floor { name: "replica", rooms: &["replica/src"] },
];

/// The package of a file: its first folder, but for those that live in that of `net`.
pub fn package(path: &str) -> &str {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["net", inner @ ("client" | "sockets"), ..] => inner,
        _ => path.split('/').next().unwrap_or(path),
    }
}

/// The floor of a file, as a place in [`FLOORS`].
pub fn floor(path: &str) -> Option<usize> {
    let path = path.strip_suffix(".rs")?;
    let length = |room: &str| {
        let rest = path.strip_prefix(room)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(room.len())
    };
    let rooms = FLOORS.iter().enumerate().flat_map(|(at, floor)| floor.rooms.iter().map(move |room| (at, *room)));
    let (_, at) = rooms.filter_map(|(at, room)| Some((length(room)?, at))).max()?;
    Some(at)
}

/// Whether one file may name another, and if not, what the arrow is called.
pub fn wrong_way(from: &str, to: &str) -> Option<String> {
    let (from_package, to_package) = (package(from), package(to));
    if from_package != to_package {
        let (_, known) = PACKAGES.iter().find(|(name, _)| *name == from_package)?;
        return (!known.contains(&to_package)).then(|| format!("{from_package} -> {to_package}"));
    }
    let (from, to) = (floor(from)?, floor(to)?);
    (to > from).then(|| format!("{} -> {}", FLOORS[from].name, FLOORS[to].name))
}
