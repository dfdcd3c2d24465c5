//! The command line where it needs no broker: help, wrong options, the configuration file, doctor.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use std::{fs, net::TcpListener};

mod broker;
use broker::{run, run_with_input, stderr, stdout};

#[test]
fn every_command_explains_itself() {
    let top = stdout(&run(&["--help"]));
    let commands = ["serve", "doctor", "topic", "produce", "consume", "group", "config", "api", "log"];
    for command in commands {
        assert!(top.contains(&format!("\n  {command} ")), "{command} is not in the list");
        let output = run(&["help", command]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("Usage: millrace"), "{command}");
    }
    for command in ["serve", "topic", "produce", "consume", "group", "config"] {
        assert!(stdout(&run(&[command, "--help"])).contains("Examples:"), "{command}");
    }
}

#[test]
fn wrong_options_end_with_code_2_and_a_reason() {
    for (arguments, reason) in [
        (&["serve", "--memroy", "1"][..], "--memory"),
        (&["serve", "--memory", "lots"], "not a size"),
        (&["serve", "--memory", "1MiB"], "too little"),
        (&["serve", "--shards", "0"], "--shards 0"),
        (&["serve", "--listen", "9092"], "no port"),
        (&["serve", "--listen", "SSL://0.0.0.0:9093"], "protocol SSL is not served"),
        (&["serve", "--listen", "INSIDE=0.0.0.0:9092"], "as in INSIDE://0.0.0.0:9092"),
        (&["serve", "--listen", "A://127.0.0.1:1,A://127.0.0.2:1"], "listener A is given twice"),
        (&["serve", "--listen", "A://127.0.0.1:1,B://0.0.0.0:1"], "B://0.0.0.0:1 takes clients from A://127.0.0.1:1"),
        (&["serve", "--listen", "A://h:1,B://h:2", "--advertised-listener", "h:3"], "write whose it is"),
        (&["serve", "--listen", "A://h:1", "--advertised-listener", "B://h:3"], "there is no listener B, only A"),
        (&["serve", "--listen", "A://h:1", "--advertised-listener", "A://0.0.0.0:1"], "meta-address 0.0.0.0"),
        (&["serve", "--topic-default", "retention.mss=1"], "did you mean retention.ms?"),
        (&["serve", "--topic-default", "retention.ms"], "KEY=VALUE"),
        (
            &["serve", "--config", "/does/not/exist.toml"],
            "cannot read /does/not/exist.toml: No such file or directory\n",
        ),
        (&["consume", "x", "--format", "%"], "percent"),
        (&["consume", "x", "--from-time", "soon"], "not a time"),
        (&["consume", "x", "--from-time", "0", "--from-offset", "0"], "cannot be used with"),
        (&["produce", "x", "--idempotent", "--acks", "1"], "--acks all"),
        (&["topic", "create", "x", "--partitions", "0"], "--partitions"),
        (&["topic", "alter", "x"], "nothing to change"),
        (&["group", "reset", "x", "--to", "somewhere"], "earliest, latest"),
        (&["config", "alter", "--topic", "x"], "nothing to change"),
        (&["config", "describe"], "--topic"),
        (&["nonsense"], "unrecognized subcommand"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(reason), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{arguments:?}");
    }
}

#[test]
fn a_value_that_begins_with_a_dash_is_judged_as_a_value() {
    for (arguments, reason) in [
        (&["serve", "--node-id", "-1"][..], "-1 is not in 0.."),
        (&["serve", "--shards", "-1"], "invalid value '-1' for '--shards"),
        (&["serve", "--topic-default", "-1"], "'-1' is not NAME=VALUE"),
        (&["serve", "--memory", "-1"], "'-1' is not a size"),
        (&["serve", "--listen", "-1"], "'-1' has no port"),
        (&["topic", "create", "x", "--partitions", "-1"], "-1 is not in 1.."),
        (&["topic", "alter", "x", "--config", "-retention.ms"], "'-retention.ms' is not NAME=VALUE"),
        (&["config", "alter", "--topic", "x", "--set", "-1"], "'-1' is not NAME=VALUE"),
        (&["config", "alter", "--topic", "x", "--set", "--delete"], "'--delete' is not NAME=VALUE"),
        (&["config", "describe", "--node", "one"], "invalid value 'one' for '--node"),
        (&["produce", "x", "-p", "-1"], "-1 is not in 0.."),
        (&["produce", "x", "--batch-bytes", "-1"], "'-1' is not a size"),
        (&["produce", "x", "-H", "-1"], "'-1' is not NAME=VALUE"),
        (&["consume", "x", "-n", "-1"], "invalid value '-1' for '--count"),
        (&["consume", "x", "--show", "-key"], "invalid value '-key' for '--show"),
        (&["consume", "x", "--from-time", "-1"], "'-1' is not a time"),
        (&["group", "reset", "x", "--to", "-1"], "--to -1: write earliest"),
        (&["topic", "list", "--timeout", "-1s"], "'-1s' is not a time"),
        (&["topic", "delete", "-x"], "use '-- -x'"),
    ] {
        let output = run(arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(reason), "{arguments:?}: {said}");
        assert!(reason.contains("'--") || !said.contains("tip: to pass"), "{arguments:?}: {said}");
    }
}

#[test]
fn more_than_the_machine_has_is_refused_with_the_figures() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (option, what) in [
        ("--memory", "memory         1024000 GiB for records, but "),
        (
            "--wal-bytes",
            "disk space     1024000 GiB for write-ahead logs and 1024000 GiB in reserve, but the disk has ",
        ),
        (
            "--reserve-bytes",
            "disk space     256 MiB for write-ahead logs and 1024000 GiB in reserve, but the disk has ",
        ),
    ] {
        let data = data.to_str().unwrap();
        let options = ["serve", "--data", data, "--listen", "127.0.0.1:0", "--shards", "1", option, "1000TiB"];
        let output = run(&options);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{option}: {said}");
        assert!(said.contains(&format!("error    {what}")) && said.contains("fix: "), "{option}: {said}");
        assert!(!data_exists(data), "nothing was made");
    }
}

fn data_exists(path: &str) -> bool {
    std::path::Path::new(path).exists()
}

#[test]
fn a_file_gives_options_and_the_command_line_wins() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("millrace.toml");
    let data = dir.path().join("from-file");
    let text = format!("data = {data:?}\nlisten = \"127.0.0.1:0\"\nshards = 1000\n");
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    // 1000 shards show as a warning; doctor tells which folder it looked at.
    let output = run(&["doctor", "--config", file]);
    assert!(stdout(&output).contains("1000 shards"), "{}", stdout(&output));
    let output = run(&["doctor", "--config", file, "--shards", "1", "--data", "/proc/nowhere"]);
    assert!(stdout(&output).contains("1 shards"), "{}", stdout(&output));
    assert!(stdout(&output).contains("/proc/nowhere"), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_unknown_name_in_the_file_is_refused_with_line_and_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("millrace.toml");
    fs::write(&file, "data = \"x\"\nnode_id = 3\n").unwrap();
    let output = run(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("millrace.toml: line 2: unknown option 'node_id': did you mean 'node-id'?"), "{said}");
}

#[test]
fn the_example_configuration_is_legal() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/millrace.toml");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let output = run(&["doctor", "--config", file, "--data", data, "--listen", "127.0.0.1:0"]);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn doctor_names_who_has_the_port_and_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["doctor", "--data", dir.path().to_str().unwrap(), "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(said.contains(&format!("{address} is taken by process {}", std::process::id())), "{said}");
    assert!(said.contains("fix: stop it"), "{said}");
}

#[test]
fn serve_does_not_start_on_a_taken_port_or_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let output = run(&["serve", "--data", file.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not a folder"), "{}", stderr(&output));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let output = run(&["serve", "--data", data.to_str().unwrap(), "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is taken by"), "{}", stderr(&output));
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn a_broker_that_is_not_there_is_said_plainly() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for arguments in [
        &["topic", "list"][..],
        &["topic", "describe", "x"],
        &["consume", "x"],
        &["produce", "x"],
        &["group", "list"],
        &["config", "describe", "--topic", "x"],
        &["api"],
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--broker", &free]);
        let output = run_with_input(&arguments, b"x\n");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains("is the broker running?"), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn what_this_build_serves_and_knows_is_listed_without_a_broker() {
    let apis = stdout(&run(&["api"]));
    for api in ["Produce", "Fetch", "Metadata", "ApiVersions"] {
        assert!(apis.lines().any(|line| line.split_whitespace().nth(1) == Some(api)), "{api}: {apis}");
    }
    let settings = stdout(&run(&["config", "known"]));
    assert!(settings.contains("flush.messages  default 1\n") && settings.contains("No effect: "), "{settings}");
}
