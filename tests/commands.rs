//! The commands for topics, settings and groups against a broker of the test's own.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

mod broker;
use broker::{Broker, small};

/// The row of a table that begins with these cells.
fn row(table: &str, cells: &[&str]) -> Vec<String> {
    let rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let found = rows.into_iter().find(|row| row.len() >= cells.len() && row.iter().zip(cells).all(|(a, b)| a == b));
    found.unwrap_or_else(|| panic!("no row {cells:?} in\n{table}"))
}

#[test]
fn a_topic_is_described_altered_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok(&["topic", "create", "t", "--partitions", "2", "--config", "retention.ms=1000000"]);
    broker.ok_with_input(&["produce", "t", "-p", "1"], b"a\nb\n");
    let text = broker.ok(&["topic", "describe", "t"]);
    assert!(text.contains("2 partitions") && text.contains("  retention.ms=1000000\n"), "{text}");
    assert_eq!(row(&text, &["1", "1"]), ["1", "1", "0", "1", "1", "0", "2"]);

    broker.ok(&["topic", "alter", "t", "--partitions", "4", "--config", "max.message.bytes=5000"]);
    broker.ok(&["topic", "alter", "t", "--delete-config", "retention.ms"]);
    let text = broker.ok(&["topic", "describe", "t"]);
    assert!(text.contains("4 partitions") && text.contains("  max.message.bytes=5000\n"), "{text}");
    assert!(!text.contains("retention.ms"), "{text}");
    assert!(broker.ok(&["topic", "list", "--long"]).lines().any(|line| line.starts_with("t     4")));

    for (arguments, reason) in [
        (&["topic", "alter", "t", "--partitions", "3"][..], "INVALID_PARTITIONS"),
        (&["topic", "alter", "t", "--config", "colour=red"], "INVALID_CONFIG"),
        (&["topic", "alter", "missing", "--partitions", "3"], "UNKNOWN_TOPIC_OR_PARTITION"),
        (&["topic", "describe", "missing"], "UNKNOWN_TOPIC_OR_PARTITION"),
        (&["topic", "delete", "missing"], "UNKNOWN_TOPIC_OR_PARTITION"),
    ] {
        let said = broker.fails(arguments, b"");
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    broker.ok(&["topic", "delete", "t", "missing", "--if-exists"]);
    assert_eq!(broker.ok(&["topic", "list"]), "");
    broker.stop();
}

#[test]
fn what_is_refused_is_said_in_one_way() {
    let dir = tempfile::tempdir().unwrap();
    let options = [small(dir.path()), vec!["--auto-create-topics=false".to_owned()]].concat();
    let broker = Broker::start(&options);
    broker.ok(&["topic", "create", "t"]);
    let missing = "topic 'nope': no such topic or partition (UNKNOWN_TOPIC_OR_PARTITION)";
    let no_group = "group 'nope': no such group (GROUP_ID_NOT_FOUND)";
    let letters = "other characters than ASCII letters, digits, '.', '_' and '-' (INVALID_TOPIC_EXCEPTION)";
    let bad = format!("topic 'bad/name': invalid topic name: 'bad/name' has {letters}");
    for (arguments, said) in [
        (&["topic", "delete", "nope"][..], missing),
        (&["topic", "describe", "nope"], missing),
        (&["topic", "alter", "nope", "--partitions", "9"], missing),
        (&["topic", "alter", "nope", "--config", "retention.ms=-1"], missing),
        (&["config", "describe", "--topic", "nope"], missing),
        (&["config", "alter", "--topic", "nope", "--set", "retention.ms=-1"], missing),
        (&["produce", "nope"], missing),
        (&["consume", "nope"], missing),
        (&["group", "reset", "g", "--topic", "nope", "--to", "latest"], missing),
        (&["group", "describe", "nope"], no_group),
        (&["group", "delete", "nope"], no_group),
        (&["topic", "create", "t"], "topic 't': a topic of that name exists (TOPIC_ALREADY_EXISTS)"),
        (&["topic", "create", "bad/name"], &bad),
        (&["produce", "bad/name"], &bad),
        (&["consume", "bad/name"], &bad),
        (&["topic", "describe", "bad/name"], &bad),
        (
            &["consume", "t", "-p", "3"],
            "topic 't' partition 3: the topic has 1 partitions, numbered from 0 (UNKNOWN_TOPIC_OR_PARTITION)",
        ),
        (
            &["produce", "t", "-p", "3"],
            "topic 't' partition 3: the topic has 1 partitions, numbered from 0 (UNKNOWN_TOPIC_OR_PARTITION)",
        ),
    ] {
        assert_eq!(broker.fails(arguments, b"x\n").lines().next(), Some(&*format!("error: {said}")), "{arguments:?}");
    }
    // every one of them is one line with the thing, a reason and Kafka's name of the code
    for arguments in [
        &["topic", "create", "u", "--config", "colour=red"][..],
        &["topic", "create", "u", "--config", "retention.ms=-2"],
        &["topic", "create", "u", "--replicas", "3"],
        &["topic", "alter", "t", "--partitions", "1"],
        &["topic", "alter", "t", "--delete-config", "colour", "--config", "segment.bytes=soon"],
        &["topic", "delete", "bad/name"],
        &["config", "describe", "--node", "9"],
        &["config", "alter", "--node", "1", "--set", "node.id=2"],
        &["config", "alter", "--all-nodes", "--set", "log.retention.ms=soon"],
        &["config", "alter", "--group", "g", "--set", "colour=red"],
        &["consume", "t", "-o", "9"],
        &["group", "describe", ""],
    ] {
        let said = broker.fails(arguments, b"");
        let named = said.trim_end().rsplit_once(" (").is_some_and(|(_, code)| {
            code.strip_suffix(')').is_some_and(|code| code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        });
        assert!(said.lines().count() == 1 && said.starts_with("error: ") && named, "{arguments:?}: {said}");
        assert!(said.matches(": ").count() >= 2, "no reason: {said}");
    }
    broker.stop();
}

#[test]
fn settings_tell_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let options = [small(dir.path()), vec!["--topic-default".into(), "retention.ms=777000".into()]].concat();
    let broker = Broker::start(&options);
    broker.ok(&["topic", "create", "t"]);
    broker.ok(&["config", "alter", "--topic", "t", "--set", "flush.messages=5000"]);
    let text = broker.ok(&["config", "describe", "--topic", "t"]);
    assert_eq!(row(&text, &["flush.messages"])[1..3], ["5000", "topic"]);
    assert_eq!(row(&text, &["retention.ms"])[1], "777000");
    assert_eq!(row(&text, &["segment.bytes"])[2], "default");
    let own = broker.ok(&["config", "describe", "--topic", "t", "--own"]);
    assert_eq!(own.lines().count(), 2, "{own}");
    broker.ok(&["config", "alter", "--topic", "t", "--delete", "flush.messages"]);
    assert_eq!(row(&broker.ok(&["config", "describe", "--topic", "t"]), &["flush.messages"])[1], "1");
    let docs = broker.ok(&["config", "describe", "--topic", "t", "--docs"]);
    assert!(docs.contains("flush.messages=1") && docs.lines().count() > 40, "{docs}");
    let node = broker.ok(&["config", "describe", "--node", "1"]);
    assert_eq!(row(&node, &["num.partitions"])[1], "1");
    broker.ok(&["config", "alter", "--all-nodes", "--set", "log.retention.ms=888000"]);
    assert_eq!(
        row(&broker.ok(&["config", "describe", "--topic", "t"]), &["retention.ms"])[1..4],
        ["888000", "all", "brokers"]
    );
    assert!(broker.ok(&["config", "describe", "--all-nodes", "--own"]).contains("log.retention.ms"));
    broker.ok(&["config", "alter", "--all-nodes", "--delete", "log.retention.ms"]);
    assert_eq!(row(&broker.ok(&["config", "describe", "--topic", "t"]), &["retention.ms"])[1], "777000");
    broker.ok(&["config", "alter", "--group", "g", "--set", "consumer.session.timeout.ms=50000"]);
    let own = broker.ok(&["config", "describe", "--group", "g", "--own"]);
    assert_eq!(row(&own, &["consumer.session.timeout.ms"])[1..3], ["50000", "group"]);
    assert!(broker.fails(&["config", "describe", "--node", "9"], b"").contains("no such broker"));
    broker.stop();
}

#[test]
fn groups_are_made_moved_described_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok(&["topic", "create", "t", "--partitions", "2"]);
    broker.ok_with_input(&["produce", "t", "-p", "0"], b"a\nb\nc\n");
    assert!(broker.fails(&["group", "describe", "g"], b"").contains("GROUP_ID_NOT_FOUND"));
    broker.ok(&["group", "reset", "g", "--topic", "t", "--to", "1", "--dry-run"]);
    assert_eq!(broker.ok(&["group", "list"]).lines().count(), 1, "a dry run makes nothing");
    let text = broker.ok(&["group", "reset", "g", "--topic", "t", "--to", "1"]);
    assert_eq!(row(&text, &["t", "0"]), ["t", "0", "-", "1"]);
    assert_eq!(row(&text, &["t", "1"]), ["t", "1", "-", "0"], "never outside of the log");
    assert_eq!(row(&broker.ok(&["group", "list"]), &["g"])[1], "Empty");
    let text = broker.ok(&["group", "describe", "g"]);
    assert_eq!(row(&text, &["t", "0"])[2..5], ["1", "3", "2"]);
    let text = broker.ok(&["group", "reset", "g", "--to", "latest", "--partition", "0"]);
    assert_eq!(row(&text, &["t", "0"]), ["t", "0", "1", "3"]);
    assert!(broker.fails(&["group", "reset", "g", "--to", "latest", "--partition", "7"], b"").contains("partition 7"));
    broker.ok(&["group", "delete", "g"]);
    assert!(broker.fails(&["group", "delete", "g"], b"").contains("GROUP_ID_NOT_FOUND"));
    broker.stop();
}

#[test]
fn an_idempotent_producer_writes_each_line_once() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    let lines: String = (0..5000).map(|n| format!("{n}\n")).collect();
    broker.ok_with_input(&["produce", "t", "--idempotent", "--batch-bytes", "1KiB"], lines.as_bytes());
    broker.ok_with_input(&["produce", "t", "--idempotent"], b"last\n");
    assert_eq!(broker.ok(&["consume", "t"]), format!("{lines}last\n"));
    broker.stop();
}

#[test]
fn large_lines_get_batches_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok(&["topic", "create", "t"]);
    let large = |byte: u8, size| [vec![byte; size], b"\n".to_vec()].concat();
    let input = [large(b'a', 200_000), large(b'b', 900_000), b"small\n".to_vec()].concat();
    broker.ok_with_input(&["produce", "t"], &input);
    assert_eq!(broker.ok(&["consume", "t"]).as_bytes(), input);
    let said = broker.fails(&["produce", "t"], &[b"first\n".to_vec(), large(b'c', 1_100_000)].concat());
    assert!(said.contains("MESSAGE_TOO_LARGE") && said.contains("1 record written"), "{said}");
    broker.stop();
}
