//! Every command that a message or a document tells people to run is there.
#![expect(clippy::unwrap_used, reason = "what helps a test is in no test function, and may panic too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

mod broker;
use broker::{run, stdout};

/// Commands that a help lists.
fn listed(help: &str) -> BTreeSet<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let entries = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    entries.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// All commands, with those below each.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let below = |name: String| {
        let of_it = listed(&stdout(&run(&["help", &name])));
        (name, of_it)
    };
    listed(&stdout(&run(&["--help"]))).into_iter().filter(|name| name != "help").map(below).collect()
}

/// Sources, documents, scripts and examples.
fn texts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if name.starts_with('.') || name == "target" || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            texts(&path, found);
        } else if ["rs", "md", "toml", "service", "sh", ""]
            .contains(&path.extension().map_or("", |end| end.to_str().unwrap()))
        {
            found.push(path);
        }
    }
}

/// The command lines that a text names: quoted ones, and of documents those that are code.
fn named(text: &str, is_source: bool) -> Vec<[String; 2]> {
    const NAME: &str = "millrace ";
    let mut found = Vec::new();
    for (at, _) in text.match_indices(NAME) {
        let before = text[..at].rsplit('\n').next().unwrap();
        let is_code = before.ends_with("$ ") || before.strip_prefix("    ").is_some_and(|rest| rest.trim().is_empty());
        if !before.ends_with(['`', '\'']) && (is_source || !is_code) {
            continue;
        }
        let is_name = |c: char| c.is_ascii_lowercase() || c == '-';
        let mut words = text[at + NAME.len()..].split(' ');
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let begin = |word: &str| word.split(|c| !is_name(c)).next().unwrap().to_owned();
        // a quote may end with the command
        let second = if first.chars().all(is_name) { begin(second) } else { String::new() };
        let first = begin(first);
        if !first.is_empty() && !first.starts_with('-') {
            found.push([first, second]);
        }
    }
    found
}

/// Whatever a line ends with that goes on in the next one.
fn joined(text: &str) -> String {
    let mut joined = String::new();
    for line in text.lines() {
        match line.strip_suffix('\\') {
            Some(line) => joined.push_str(line.trim_start()),
            None => {
                joined.push_str(if joined.ends_with(' ') { line.trim_start() } else { line });
                joined.push('\n');
            }
        }
    }
    joined
}

/// Errors told operators to run `millrace cluster adopt`, which was not there.
#[test]
fn every_command_that_people_are_told_to_run_is_there() {
    let commands = commands();
    assert!(commands["cluster"].contains("drain"), "{commands:?}");
    let mut files = Vec::new();
    texts(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files);
    let (mut wrong, mut count) = (Vec::new(), 0);
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for [command, below] in named(&joined(&text), file.extension().is_some_and(|end| end == "rs")) {
            count += 1;
            let is_there = commands.get(&command).is_some_and(|all| {
                all.is_empty() || below.is_empty() || below.starts_with('-') || all.contains(&below)
            });
            let is_there = is_there || command == "help" && (below.is_empty() || commands.contains_key(&below));
            if !is_there {
                wrong.push(format!("{}: millrace {command} {below}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} are found: is it still looked for in the right way?");
}

#[test]
fn commands_are_found_where_they_are_named() {
    let text = joined(
        "say `millrace cluster \\\n   adopt` or 'millrace serve'\n    millrace topic list --json\nA millrace node",
    );
    let pair = |command: &str, below: &str| [command, below].map(str::to_owned);
    let quoted = [pair("cluster", "adopt"), pair("serve", "")];
    assert_eq!(named(&text, true), quoted);
    assert_eq!(named(&text, false), [&quoted[..], &[pair("topic", "list")]].concat());
}
