//! What a node says of itself when it starts, and when it is ready. For people; logs go elsewhere.

use std::fmt::Write;

use millrace_engine::config::{Durability, TopicConfig};

use super::listen::Listening;
use crate::{
    config::{Advertise, CONNECTION_BYTES_BESIDE, Config, EtcdConfig, MemoryPlan},
    output::joined,
};

/// Before the data is opened.
pub(super) fn starting(config: &Config) -> String {
    let data_dir = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let mut text = format!("millrace {}\n", env!("CARGO_PKG_VERSION"));
    line(&mut text, "data", &data_dir.display().to_string());
    let pinned = if config.pin { "each on a CPU of its own" } else { "not bound to CPUs" };
    line(&mut text, "node", &format!("id {}, {} shards, {pinned}", config.node_id, config.shards));
    if let Some(cluster) = &config.cluster {
        let etcd = match &cluster.etcd {
            EtcdConfig { managed: Some(managed), .. } => format!("etcd as a child, one of {}", managed.members.len()),
            EtcdConfig { mirror: Some(_), .. } => "two nodes without an etcd".to_owned(),
            EtcdConfig { urls, .. } => format!("etcd at {}", urls.join(", ")),
        };
        let rack = cluster.rack.as_ref().map(|rack| format!(", rack {rack}")).unwrap_or_default();
        line(&mut text, "cluster", &format!("{}{rack}, {etcd}", cluster.name));
    }
    line(&mut text, "memory", &config.memory.to_string());
    let (beside, each) = (MemoryPlan::beside(config.shards), CONNECTION_BYTES_BESIDE);
    line(&mut text, "", &format!("at most {beside} beside it, and {each} for each connection"));
    let (wal, reserve) = (config.wal_bytes, config.reserve_bytes);
    line(&mut text, "disk", &format!("{wal} write-ahead log per shard; produce stops below {reserve} free"));
    line(&mut text, "durability", durability(config));
    text
}

fn durability(config: &Config) -> &'static str {
    match TopicConfig::parse(&config.topic_defaults, &Default::default()).map(|parsed| parsed.durability) {
        Ok(Durability::Written) => {
            "written: acknowledged after the write, flushed later; a power cut may lose the last"
        }
        _ => "device: acknowledged after write and flush (topics may choose: flush.messages)",
    }
}

/// Once requests are answered.
pub(super) fn ready(config: &Config, listening: &Listening) -> String {
    let mut text = String::new();
    let is_named = listening.listeners.len() > 1;
    for (at, place) in listening.listeners.iter().enumerate() {
        let addresses = joined(&place.addresses).replace(',', ", ");
        let name = if is_named { format!(" ({})", place.name) } else { String::new() };
        let title = if at == 0 { "listening" } else { "" };
        line(&mut text, title, &format!("{addresses}, told to clients as {}{name}", place.advertised));
        if config.advertise == Advertise::Shard {
            let ports = place.shard_ports(config.shards);
            let own = joined(&ports.iter().map(|(own, _)| own).collect::<Vec<_>>()).replace(',', ", ");
            let told = match ports.iter().all(|(own, told)| own == told) {
                true => String::new(),
                false => format!(
                    ", told as {}",
                    joined(&ports.iter().map(|(_, told)| told).collect::<Vec<_>>()).replace(',', ", ")
                ),
            };
            line(&mut text, "", &format!("each shard is a broker of its own, on the ports {own}{told}"));
        }
    }
    if let Some(peer) = &listening.peer {
        let addresses = joined(&peer.addresses).replace(',', ", ");
        line(&mut text, "other nodes", &format!("{addresses}, told to them as {}", peer.advertised));
    }
    let told = &listening.listeners[0].advertised;
    if let Some(address) = listening.metrics {
        line(&mut text, "metrics", &format!("http://{address}/metrics"));
    }
    line(
        &mut text,
        "try",
        &format!("echo hello | kcat -b {told} -P -t greetings && kcat -b {told} -C -t greetings -e"),
    );
    line(&mut text, "", &format!("kafka-topics.sh --bootstrap-server {told} --list"));
    line(&mut text, "", &format!("millrace topic list --broker {told}"));
    line(&mut text, "stop", "Ctrl-C, or SIGTERM");
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "  {name:<11} {value}").expect("a String takes everything");
}
