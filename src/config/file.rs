//! The configuration file: TOML with the names of the command line's options. Pure but for [`load`].

use std::path::Path;

use clap::Args;

use super::options::ServeOptions;
use crate::output::reason;

/// Reads a configuration file. The error says file, line and what to write instead.
pub(crate) fn load(path: &Path) -> Result<ServeOptions, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {}", path.display(), reason(&e)))?;
    parse(&text).map_err(|e| format!("{}: {e}", path.display()))
}

/// Parses a configuration file's text.
fn parse(text: &str) -> Result<ServeOptions, String> {
    let table: toml::Table = toml::from_str(text).map_err(|e| e.to_string())?;
    let known = known_names();
    for key in table.keys() {
        if !known.contains(key) {
            return Err(unknown(key, text, &known));
        }
    }
    if table.contains_key(TABLES) && table.contains_key("listen") {
        return Err("listen and [[listener]] are both given: write all listeners in one way".to_owned());
    }
    toml::from_str(text).map_err(|e| e.to_string())
}

/// What a file may hold and the command line may not: listeners as tables.
const TABLES: &str = "listener";

/// Names of all options that a file may hold.
fn known_names() -> Vec<String> {
    let command = ServeOptions::augment_args(clap::Command::new("serve"));
    let options = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned));
    options.chain([TABLES.to_owned()]).collect()
}

fn unknown(key: &str, text: &str, known: &[String]) -> String {
    let line = text.lines().position(|line| line.trim_start().trim_start_matches('[').trim().starts_with(key));
    let line = line.map(|at| format!("line {}: ", at + 1)).unwrap_or_default();
    let dashed = key.replace('_', "-");
    let closest = known.iter().min_by_key(|name| distance(name, &dashed));
    match closest.filter(|name| distance(name, &dashed) <= 3) {
        Some(name) => format!("{line}unknown option '{key}': did you mean '{name}'?"),
        None => format!("{line}unknown option '{key}'. A file may hold: {}", known.join(", ")),
    }
}

/// Number of letters to insert, remove or replace to get from one name to the other (Levenshtein).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{options::Advertise, settings::Setting, units::ByteSize};

    #[test]
    fn every_option_can_be_in_a_file() {
        let options = parse(
            r#"
            data = "/srv/millrace"
            listen = ["0.0.0.0:9092", "[::1]:9093"]
            advertised-listener = "broker.example:9092"
            advertise = "shard"
            metrics = "127.0.0.1:9644"
            node-id = 3
            cluster = "orders"
            etcd = ["https://etcd.example:2379"]
            etcd-members = ["1=a", "2=b:3379"]
            etcd-ca = "ca.pem"
            peer-listen = "0.0.0.0:9192"
            peer-advertise = "broker.example:9192"
            rack = "north"
            shards = 4
            pin = true
            memory = "1GiB"
            reserve-bytes = "2GiB"
            wal-bytes = 268435456
            max-connections = 500
            max-connections-per-ip = 50
            max-frame-bytes = "64MiB"
            connections-max-idle = "5m"
            num-partitions = 6
            auto-create-topics = false
            retention-check = "1m"
            producer-id-expiration = "1h"
            log-level = "debug"
            [topic-default]
            retention.ms = 86400000
            "segment.bytes" = "1048576"
            [group-setting]
            group.max.size = 10
            [replication-setting]
            default.replication.factor = 3
            "#,
        )
        .unwrap();
        assert_eq!(options.listen.map(|l| l.len()), Some(2));
        assert_eq!(options.etcd_members.map(|members| members.len()), Some(2));
        assert_eq!(options.advertise, Some(Advertise::Shard));
        assert_eq!(options.wal_bytes, Some(ByteSize::mib(256)));
        assert_eq!(options.auto_create_topics, Some(false));
        assert_eq!(options.group_setting.first().map(ToString::to_string).as_deref(), Some("group.max.size=10"));
        let mut defaults = options.topic_default;
        defaults.sort_by(|a, b| a.key.cmp(&b.key));
        let setting = |key: &str, value: &str| Setting { key: key.to_owned(), value: value.to_owned() };
        assert_eq!(defaults, [setting("retention.ms", "86400000"), setting("segment.bytes", "1048576")]);
    }

    #[test]
    fn listeners_can_be_tables() {
        let text = r#"
            [[listener]]
            name = "inside"
            address = "0.0.0.0:9092"
            advertised = "broker:9092"
            protocol = "plaintext"
            [[listener]]
            name = "outside"
            address = ["127.0.0.1:9094", "[::1]:9094"]
            "#;
        assert_eq!(parse(text).unwrap().listener.len(), 2);
        for (text, reason) in [
            ("listen = \"h:1\"\n[[listener]]\nname = \"a\"\naddress = \"h:2\"", "both given"),
            ("[[listener]]\nname = \"a\"\naddress = \"h:2\"\nprotocol = \"sasl-ssl\"", "SASL_SSL is not served"),
            ("[[listener]]\nname = \"ssl\"\naddress = \"h:2\"", "SSL is not served"),
            ("[[listener]]\nname = \"a\"\naddress = \"h:2\"\nprotocol = \"http\"", "no protocol"),
            ("[[listener]]\nname = \"a b\"\naddress = \"h:2\"", "no name of a listener"),
            ("[[listener]]\nname = \"a\"", "missing field `address`"),
            ("[[listener]]\nname = \"a\"\nadress = \"h:2\"", "unknown field `adress`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn every_option_of_the_command_line_is_an_option_of_the_file() {
        for name in known_names() {
            let error = parse(&format!("{name} = []\n")).err().unwrap_or_default();
            assert!(!error.contains("unknown"), "{name}: {error}");
        }
    }

    #[test]
    fn a_misspelt_option_is_refused_with_a_suggestion() {
        let error = parse("data = \"x\"\nmax_conections = 3\n").unwrap_err();
        assert_eq!(error, "line 2: unknown option 'max_conections': did you mean 'max-connections'?");
        let error = parse("colour = 3\n").unwrap_err();
        assert!(error.contains("A file may hold: data, "), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_line_and_reason() {
        for (text, reason) in [
            ("memory = \"lots\"", "not a size"),
            ("retention-check = 5", "expected a time"),
            ("listen = 9092", "HOST:PORT"),
            ("advertise = \"everything\"", "unknown variant"),
            ("pin = 1", "boolean"),
            ("topic-default = 1", "table of settings"),
            ("shards = -1", "integer"),
            ("shards", "key"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason) && error.contains('1'), "{text}: {error}");
        }
    }

    #[test]
    fn distances_count_edits() {
        assert_eq!(distance("memory", "memory"), 0);
        assert_eq!(distance("memory", "memry"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("listen", "silent"), 4);
    }
}
