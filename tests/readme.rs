//! The tour in README.md is true: its commands are run, and what they print is what stands there.
//!
//! `MILLRACE_BLESS=1` writes what they print into README.md instead.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use std::{fs, path::Path, process::Command};

mod broker;
use broker::Broker;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
/// A topic's id as Kafka writes it.
const TOPIC_ID_LETTERS: usize = 22;
const DEFAULT_ADDRESS: &str = "127.0.0.1:9092";

/// What stays the same in every run: not times, ids and folders, and of the look into the log only question and verdict,
/// since ids, sizes and the number of batches are different every time.
fn masked(text: &str) -> Vec<String> {
    if text.contains("log dump") {
        return [text.lines().next(), text.lines().last()].into_iter().flatten().map(str::to_owned).collect();
    }
    let mask = |word: &str| {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        match word.trim_end_matches([',', ':']) {
            time if time.ends_with('Z') && time.contains('T') && digits == 17 => "TIME".to_owned(),
            id if id.len() == TOPIC_ID_LETTERS
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) =>
            {
                "ID".to_owned()
            }
            _ => word.to_owned(),
        }
    };
    text.lines().map(|line| line.split_whitespace().map(mask).collect::<Vec<_>>().join(" ")).collect()
}

/// The console blocks of a text: where their commands and output stand, without the fences.
fn blocks(text: &str) -> Vec<std::ops::Range<usize>> {
    const OPEN: &str = "```console\n";
    text.match_indices(OPEN)
        .map(|(at, _)| {
            let start = at + OPEN.len();
            start..start + text[start..].find("```").expect("a block ends")
        })
        .collect()
}

/// Runs the commands of a block as a shell in `folder` would, with the broker of the test in place of the default one.
fn played(block: &str, folder: &Path, address: &str, banner: &str) -> String {
    let mut out = String::new();
    for command in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
        out.push_str(&format!("$ {command}\n"));
        if command == "millrace serve" {
            out.push_str(banner);
            continue;
        }
        let broker = if command.contains("log dump") { String::new() } else { format!("--broker {address}") };
        let program = env!("CARGO_BIN_EXE_millrace");
        let script = format!("millrace() {{ {program} \"$@\" {broker}; }}; exec 2>&1; {command}");
        let ran = Command::new("bash").args(["-c", &script]).current_dir(folder).output().unwrap();
        out.push_str(&String::from_utf8(ran.stdout).unwrap());
    }
    out.replace(address, DEFAULT_ADDRESS)
}

#[test]
fn the_tour_of_the_readme_is_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--listen", "127.0.0.1:0", "--shards", "2"].map(str::to_owned);
    let mut command = broker::millrace();
    command.arg("serve").args(options).current_dir(dir.path());
    let mut running = Some(Broker::start_command(&mut command));
    let address = running.as_ref().unwrap().address.clone();

    let text = fs::read_to_string(README).unwrap();
    let mut after = text.clone();
    let mut differences = Vec::new();
    // Folders are made relative, as the reader's would be.
    let folder = fs::canonicalize(dir.path()).unwrap();
    for range in blocks(&text) {
        let block = &text[range];
        if block.contains("log dump") {
            drop(running.take().map(Broker::stop));
        }
        let banner = running.as_ref().map(|broker| broker.banner.clone()).unwrap_or_default();
        let real = played(block, dir.path(), &address, &banner);
        let real = real.replace(&format!("{}/", folder.display()), "/home/you/");
        if masked(block) != masked(&real) {
            differences.push(format!("README.md says:\n{block}\nbut it is:\n{real}"));
        }
        after = after.replace(block, &real);
    }
    if std::env::var_os("MILLRACE_BLESS").is_some() {
        fs::write(README, after).unwrap();
    } else {
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }
}
