//! The requests that no good client sends, answered as `tests/compatibility/odd.tsv` says.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use std::process::{Command, Stdio};

mod broker;
use broker::{Broker, small, stderr, stdout};

/// Each case and what millrace answers: what Kafka does, unless the line says otherwise.
fn expected() -> Vec<String> {
    let lines = include_str!("compatibility/odd.tsv").lines().filter(|line| !line.starts_with('#'));
    let answer = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            [case, answer] | [case, _, answer, _] => format!("{case}\t{answer}"),
            _ => panic!("a line of odd.tsv has {} fields: {line}", fields.len()),
        }
    };
    lines.map(answer).collect()
}

#[test]
fn odd_requests_are_answered_as_the_table_says() {
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: no python3 here to send odd requests");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = small(dir.path());
    options.extend(["--group-setting", "group.initial.rebalance.delay.ms=0"].map(str::to_owned));
    let broker = Broker::start(&options);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compatibility/odd");
    let output = Command::new("python3").args([script, &broker.address]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let answered: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    let expected = expected();
    let differing: Vec<_> = answered.iter().zip(&expected).filter(|(answer, expected)| answer != expected).collect();
    assert!(differing.is_empty(), "answered and expected: {differing:#?}");
    assert_eq!(answered.len(), expected.len());
    broker.stop();
}
