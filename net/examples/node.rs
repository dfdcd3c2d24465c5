//! A node without a configuration file, for trying the wire: `node DIR PORT SHARDS [shard]`. With `shard`, each shard is
//! advertised as a broker of its own. Stops on end of input.

use std::{collections::BTreeMap, io::Read, net::SocketAddr, path::PathBuf};

use millrace_engine::node::{NodeOptions, Stopper, run};
use millrace_net::{Advertise, ListenerConfig, Membership, NetConfig, serve};

fn main() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, port, shards, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: node DIR PORT SHARDS [shard]");
        std::process::exit(2);
    };
    let port: u16 = port.parse().expect("PORT is a number");
    let options = NodeOptions {
        data_dir: PathBuf::from(dir),
        node_id: 1,
        shards: shards.parse().expect("SHARDS is a number"),
        pin: false,
        memory_bytes: 256 << 20,
        reserve_bytes: 64 << 20,
        wal_bytes: 64 << 20,
        topic_defaults: BTreeMap::new(),
        producer_id_expiration_ms: 86_400_000,
        retention_check_ms: 300_000,
    };
    let config = NetConfig {
        listeners: vec![ListenerConfig::plain(SocketAddr::from(([127, 0, 0, 1], port)), "127.0.0.1", port)],
        advertise: if rest.is_empty() { Advertise::Node } else { Advertise::Shard },
        ..NetConfig::default()
    };
    let stopper = Stopper::default();
    let on_input_end = stopper.clone();
    std::thread::spawn(move || {
        let mut input = Vec::new();
        std::io::stdin().read_to_end(&mut input).expect("input can be read");
        on_input_end.stop();
    });
    let on_error = stopper.clone();
    let served = run(options, stopper, move |engine| {
        let (config, stopper) = (config.clone(), on_error.clone());
        async move {
            if let Err(error) = serve(engine, config, Membership::Alone).await {
                eprintln!("{error}");
                stopper.stop();
            }
        }
    });
    if let Err(error) = served {
        eprintln!("{error}");
        std::process::exit(1);
    }
}
