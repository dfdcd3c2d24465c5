//! `millrace serve` as a process: start, stop, signals, restart, systemd, and the commands against it.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    time::Duration,
};

use millrace_engine::format::segment::SegmentName;

mod broker;
use broker::{Broker, files, millrace, run, run_with_input, small, stderr, stdout};

fn numbers(count: u32) -> String {
    (0..count).map(|n| format!("{n}\n")).collect()
}

#[test]
fn records_are_read_back_in_order_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let options = small(dir.path());
    let broker = Broker::start(&options);
    let lines = numbers(50_000);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = format!("t-{codec}");
        broker.ok_with_input(&["produce", &topic, "--codec", codec, "--batch-bytes", "16KiB"], lines.as_bytes());
        assert!(broker.ok(&["consume", &topic]) == lines, "{codec}");
    }
    broker.stop();
    let broker = Broker::start(&options);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        assert!(broker.ok(&["consume", &format!("t-{codec}")]) == lines, "{codec} after a restart");
    }
    broker.stop();
}

#[test]
fn acknowledged_records_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let options = small(dir.path());
    let broker = Broker::start(&options);
    let lines = numbers(20_000);
    broker.ok_with_input(&["produce", "t", "--batch-bytes", "1KiB"], lines.as_bytes());
    broker.signal(9);
    broker.wait();
    let broker = Broker::start(&options);
    assert!(broker.ok(&["consume", "t"]) == lines);
    broker.stop();
}

#[test]
fn keys_headers_offsets_and_times_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok(&["topic", "create", "t", "--partitions", "3"]);
    let arguments = ["produce", "t", "--key-separator", ":", "--null-value", "gone", "-H", "a=1", "-p", "2"];
    broker.ok_with_input(&arguments, b"k:v\nk:gone\n");
    let shown = broker.ok(&["consume", "t", "--format", "%t/%p@%o %k=%v [%h]\\n"]);
    assert_eq!(shown, "t/2@0 k=v [a=1]\nt/2@1 k=null [a=1]\n");
    let columns = broker.ok(&["consume", "t", "--show", "partition,offset,key"]);
    assert_eq!(columns, "2\t0\tk\tv\n2\t1\tk\tnull\n");
    assert_eq!(broker.ok(&["consume", "t", "-p", "2", "-o", "1", "--format", "%o"]), "1");
    assert_eq!(broker.ok(&["consume", "t", "-o", "-1", "--format", "%o"]), "1");
    assert_eq!(broker.ok(&["consume", "t", "-n", "1", "--format", "%o"]), "0");
    assert_eq!(broker.ok(&["consume", "t", "-o", "latest"]), "");
    assert_eq!(broker.ok(&["consume", "t", "--from-time", "-1h", "--format", "%o,"]), "0,1,");
    let late = broker.fails(&["consume", "t", "-p", "2", "-o", "9"], b"");
    assert!(late.contains("offset 9 is outside of the log, which holds 0 to 2"), "{late}");
}

#[test]
fn what_cannot_be_done_is_said_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let options = [small(dir.path()), vec!["--auto-create-topics=false".to_owned()]].concat();
    let broker = Broker::start(&options);
    broker.ok(&["topic", "create", "t", "--config", "max.message.bytes=1000"]);
    broker.ok(&["topic", "create", "t", "--if-not-exists"]);
    let big = vec![b'x'; 5000];
    for (arguments, input, reason) in [
        (&["topic", "create", "t"][..], &b""[..], "TOPIC_ALREADY_EXISTS"),
        (&["topic", "create", "a/b"], b"", "INVALID_TOPIC_EXCEPTION"),
        (&["topic", "create", "u", "--config", "colour=red"], b"", "INVALID_CONFIG"),
        (&["consume", "missing"], b"", "no such topic"),
        (&["produce", "missing"], b"x\n", "no such topic"),
        (&["produce", "t", "-p", "5"], b"x\n", "topic 't' partition 5: the topic has 1 partitions"),
        (&["produce", "t", "-k", ":"], b"no key\n", "line 1: no key"),
        (&["produce", "t"], &big, "MESSAGE_TOO_LARGE"),
    ] {
        let said = broker.fails(arguments, input);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    assert_eq!(broker.ok(&["consume", "t"]), "");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok_with_input(&["produce", "t"], numbers(100_000).as_bytes());
    let program = env!("CARGO_BIN_EXE_millrace");
    let script = format!("set -o pipefail; {program} consume t --broker {} | head -1", broker.address);
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "0\n"), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn the_first_signal_stops_cleanly_and_the_banner_says_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [15, 2, 1] {
        let broker = Broker::start(&small(dir.path()));
        broker.ok_with_input(&["produce", "t"], b"x\n");
        let banner = broker.banner.clone();
        assert!(banner.contains(dir.path().to_str().unwrap()) && banner.contains("durability  device"), "{banner}");
        assert!(banner.contains("kcat -b") && banner.contains("kafka-topics.sh"), "{banner}");
        broker.signal(signal);
        let (code, said) = broker.wait();
        assert_eq!(code, Some(0), "signal {signal}: {said}");
        assert!(said.contains("stopping"), "{said}");
    }
}

#[test]
fn metrics_are_served_where_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let options = [small(dir.path()), vec!["--metrics".to_owned(), "127.0.0.1:0".to_owned()]].concat();
    let broker = Broker::start(&options);
    broker.ok_with_input(&["produce", "t"], numbers(100).as_bytes());
    let address = broker.banner.split_once("metrics     http://").expect("the banner says where").1;
    let address = address.split_once("/metrics").unwrap().0;
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let value = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap();
    let records = page.lines().filter(|line| line.starts_with("millrace_produced_records_total{")).map(value);
    assert_eq!(records.sum::<f64>(), 100.0, "{page}");
    let p50 = "millrace_request_recent_seconds{api=\"Produce\",quantile=\"0.5\"}";
    assert!(page.lines().find(|line| line.starts_with(p50)).is_some_and(|line| value(line) > 0.0), "{page}");
    let apis = broker.ok(&["api"]);
    assert!(apis.contains("PushTelemetry"), "{apis}");
    broker.stop();
    let broker = Broker::start(&small(dir.path()));
    assert!(!broker.banner.contains("metrics") && !broker.ok(&["api"]).contains("PushTelemetry"));
    broker.stop();
}

#[test]
fn a_folder_in_use_is_not_opened_twice() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    let data = dir.path().to_str().unwrap();
    let output = run(&["serve", "--data", data, "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is in use by pid"), "{}", stderr(&output));
    broker.stop();
}

#[test]
fn another_node_id_than_that_of_the_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Broker::start(&small(dir.path())).stop();
    let mut options = vec!["serve".to_owned(), "--node-id".to_owned(), "7".to_owned()];
    options.extend(small(dir.path()));
    let output = millrace().args(&options).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("belongs to node 1"), "{}", stderr(&output));
}

#[test]
fn systemd_hears_of_start_life_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = millrace();
    command.arg("serve").args(small(&dir.path().join("data")));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "800000");
    let broker = Broker::start_command(&mut command);
    let next = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert!(next().starts_with("READY=1\nSTATUS=serving on "));
    assert_eq!((next(), next()), ("WATCHDOG=1".to_owned(), "WATCHDOG=1".to_owned()));
    broker.signal(15);
    let mut notices = std::iter::repeat_with(next);
    // the socket keeps few of them: nobody may be waiting for room while the broker ends
    let before: Vec<String> = notices.by_ref().take_while(|notice| !notice.starts_with("STOPPING=1")).collect();
    assert!(before.iter().all(|notice| notice == "WATCHDOG=1"), "{before:?}");
    let (code, said) = broker.wait();
    assert_eq!(code, Some(0), "{said}");
}

/// Options for a small broker with two listeners, each at an address of its own.
fn two_listeners(data: &Path, more: &[&str]) -> Vec<String> {
    let mut options = small(data);
    let at = options.iter().position(|option| option == "127.0.0.1:0").unwrap();
    options[at] = "INSIDE://127.0.0.1:0,OUTSIDE://127.0.0.2:0".to_owned();
    options.extend(more.iter().map(|option| (*option).to_owned()));
    options
}

#[test]
fn clients_of_each_listener_are_led_to_its_own_address() {
    let dir = tempfile::tempdir().unwrap();
    for (more, ports) in [(&["--advertise", "node"][..], 1), (&["--advertise", "shard"], 2)] {
        let broker = Broker::start(&two_listeners(dir.path(), more));
        let inside = broker.address.clone();
        let shown = |broker: &Broker, name: &str| {
            let all = broker.ok(&["config", "describe", "--node", "1"]);
            let row = all.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap().to_owned();
            row.split_whitespace().nth(1).unwrap().to_owned()
        };
        let listeners = shown(&broker, "listeners");
        let outside = listeners.rsplit_once("OUTSIDE://").unwrap().1.to_owned();
        assert_eq!(listeners, format!("INSIDE://{inside},OUTSIDE://{outside}"));
        assert!(outside.starts_with("127.0.0.2:"), "{outside}");
        let advertised = shown(&broker, "advertised.listeners");
        assert_eq!(advertised.matches("INSIDE://127.0.0.1:").count(), ports, "{advertised}");
        assert_eq!(advertised.matches("OUTSIDE://127.0.0.2:").count(), ports, "{advertised}");
        let told = format!("{outside}, told to clients as {outside} (OUTSIDE)");
        assert!(broker.banner.contains(&told), "{}", broker.banner);
        let through = |address: &str, arguments: &[&str], input: &[u8]| {
            let output = run_with_input(&[arguments, &["--broker", address]].concat(), input);
            assert!(output.status.success(), "{}", stderr(&output));
            stdout(&output)
        };
        through(&outside, &["topic", "create", "t", "--partitions", "4"], b"");
        let lines = numbers(100);
        through(&outside, &["produce", "t", "--batch-bytes", "100"], lines.as_bytes());
        assert_eq!(through(&inside, &["consume", "t"], b"").lines().count(), 100);
        broker.ok(&["topic", "delete", "t"]);
        broker.stop();
    }
}

#[test]
fn who_comes_through_one_listener_is_not_led_to_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap().to_string();
    let told = format!("OUTSIDE://{nowhere}");
    let broker = Broker::start(&two_listeners(dir.path(), &["--advertised-listener", &told]));
    broker.ok_with_input(&["produce", "t"], b"x\n");
    let outside = broker.banner.lines().find(|line| line.contains("OUTSIDE")).unwrap().trim();
    let outside = outside.split_once(',').unwrap().0.to_owned();
    // it tries again for as long, and waits as long for each answer
    let output = run_with_input(&["consume", "t", "--timeout", "15s", "--broker", &outside], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("cannot connect to {nowhere}")), "{}", stderr(&output));
    broker.stop();
}

#[test]
fn an_ipv6_address_is_listened_on_and_told_in_brackets() {
    if TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = small(dir.path());
    let at = options.iter().position(|option| option == "127.0.0.1:0").unwrap();
    options[at] = "[::1]:0".to_owned();
    let broker = Broker::start(&options);
    assert!(broker.address.starts_with("[::1]:") && broker.banner.contains("told to clients as [::1]:"));
    broker.ok_with_input(&["produce", "t"], b"x\n");
    assert_eq!(broker.ok(&["consume", "t"]), "x\n");
    let free = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap().to_string();
    let said = stderr(&run(&["topic", "list", "--broker", &free]));
    assert!(said.contains(&format!("cannot connect to {free}: nobody listens there")), "{said}");
    broker.stop();
}

#[test]
fn shards_can_be_brokers_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let options = [small(dir.path()), vec!["--advertise".to_owned(), "shard".to_owned()]].concat();
    let broker = Broker::start(&options);
    broker.ok(&["topic", "create", "t", "--partitions", "8"]);
    let keyed: String = (0..1000).map(|n| format!("{n}:{n}\n")).collect();
    broker.ok_with_input(&["produce", "t", "-k", ":"], keyed.as_bytes());
    assert_eq!(broker.ok(&["consume", "t"]).lines().count(), 1000);
    broker.stop();
}

#[test]
fn the_log_of_a_broker_is_whole_until_a_byte_is_flipped() {
    let dir = tempfile::tempdir().unwrap();
    let options = [small(dir.path()), vec!["--topic-default".into(), "internal.segment.bytes=65536".into()]].concat();
    let broker = Broker::start(&options);
    broker.ok_with_input(&["produce", "t", "--batch-bytes", "4KiB"], numbers(50_000).as_bytes());
    broker.ok(&["topic", "create", "other", "--config", "retention.ms=1000000"]);
    broker.stop();
    let data = dir.path().to_str().unwrap();
    let output = run(&["log", "dump", data, "--batches"]);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("topic t ") && text.contains("retention.ms=1000000"), "{text}");
    assert!(text.contains("sealed, ") && text.contains("active, as the manifest says"), "{text}");
    for end in [".log", "catalog"] {
        let path = files(dir.path(), end).remove(0);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[70] ^= 0x40;
        fs::write(&path, &bad).unwrap();
        let output = run(&["log", "dump", data]);
        assert_eq!(output.status.code(), Some(1), "{end}: {}", stdout(&output));
        assert!(stdout(&output).contains("DAMAGED"), "{end}");
        fs::write(&path, &good).unwrap();
    }
    let path = files(dir.path(), ".log").remove(0);
    fs::remove_file(path).unwrap();
    let output = run(&["log", "dump", data]);
    assert!(output.status.code() == Some(1) && stdout(&output).contains("are missing"), "{}", stdout(&output));
}

/// A power cut leaves files that no segment has. They were called damaged.
#[test]
fn files_that_no_segment_has_are_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok_with_input(&["produce", "t"], numbers(50_000).as_bytes());
    broker.stop();
    let segment = files(dir.path(), ".log").remove(0);
    let mut torn = fs::read(&segment).unwrap();
    let at = torn.len() / 3;
    torn[at] ^= 1;
    torn.extend([7; 5000]);
    let folder = segment.parent().unwrap();
    let behind = folder.join("00000000000009000000.log");
    let replaced = folder.join(SegmentName { base_offset: 0, generation: 9 }.file_name());
    let topic = dir.path().join("topics/00000000-0000-0000-0000-000000000007");
    let deleted = topic.join("0/00000000000000000000.log");
    fs::create_dir_all(deleted.parent().unwrap()).unwrap();
    let data = dir.path().to_str().unwrap();
    for (path, note) in [
        (&behind, "left behind: no segment has it yet"),
        (&replaced, "left behind: no segment has it: dropped"),
        (&deleted, "left behind: its topic was deleted"),
    ] {
        fs::write(path, &torn).unwrap();
        for place in [data, path.to_str().unwrap()] {
            let output = run(&["log", "dump", place]);
            let text = stdout(&output);
            assert!(output.status.success() && text.contains(note) && !text.contains("DAMAGED"), "{text}");
        }
    }
    // without a manifest nobody can say that
    for shard in 0..2 {
        let manifest = dir.path().join(format!("manifest-1-{shard}"));
        let good = fs::read(&manifest).unwrap();
        let mut bad = good.clone();
        bad[70] ^= 0x40;
        fs::write(&manifest, &bad).unwrap();
        let output = run(&["log", "dump", behind.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        fs::write(&manifest, &good).unwrap();
    }
    // the start does what was said
    Broker::start(&small(dir.path())).stop();
    assert!(!topic.exists());
    assert_eq!(fs::read(&behind).unwrap(), torn, "nobody looked at it");
}

/// Large runs are in their segment before the manifest knows it; then it is the shared log that says what must be whole.
#[test]
fn records_that_only_the_shared_log_knows_must_be_whole() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(&small(dir.path()));
    broker.ok(&["topic", "create", "t"]);
    let line = [vec![b'x'; 600_000], b"\n".to_vec()].concat();
    for _ in 0..3 {
        broker.ok_with_input(&["produce", "t"], &line);
    }
    broker.signal(9);
    drop(broker);
    let segment = files(dir.path(), ".log").remove(0);
    let dumped = || {
        let output = run(&["log", "dump", dir.path().to_str().unwrap()]);
        (output.status.code(), stdout(&output))
    };
    let (code, text) = dumped();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("not in the manifest yet: the next start takes over offsets up to 3"), "{text}");
    let good = fs::read(&segment).unwrap();
    for (at, code, note) in [
        (300_000, Some(1), "DAMAGED: whole batches end at offset 0, but the write-ahead log says that offsets up to 2"),
        // nobody can tell a last group that is not whole from one that a power cut tore
        (1_500_000, Some(0), "torn at offset 2"),
    ] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&segment, &bad).unwrap();
        let (found, text) = dumped();
        assert_eq!(found, code, "{text}");
        assert!(text.contains(note), "{text}");
    }
    fs::write(&segment, &good).unwrap();
    let broker = Broker::start(&small(dir.path()));
    assert_eq!(broker.ok(&["consume", "t", "--format", "%o,"]), "0,1,2,");
    broker.stop();
}
