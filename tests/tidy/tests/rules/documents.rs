//! What documents name is there.

use std::path::{Component, Path, PathBuf};

use millrace_tidy::tree::{File, top};

use crate::{FILES, none};

/// Every document's path, line number and text.
fn lines() -> impl Iterator<Item = (&'static File, usize, &'static str)> {
    let documents = FILES.iter().filter(|file| file.path.ends_with(".md"));
    documents.flat_map(|file| file.text.lines().enumerate().map(move |(at, line)| (file, at + 1, line)))
}

/// Rust files in code quotes, by the end of their path.
#[test]
fn files_that_documents_name_are_there() {
    let is_path = |text: &str| text.ends_with(".rs") && text.chars().all(|c| c.is_alphanumeric() || "._-/".contains(c));
    let is_there = |text: &str| {
        FILES.iter().any(|file| file.path.strip_suffix(text).is_some_and(|rest| rest.is_empty() || rest.ends_with('/')))
    };
    let named = lines().flat_map(|(file, line, text)| {
        let quoted = text.split('`').skip(1).step_by(2).filter(|text| is_path(text) && !is_there(text));
        quoted.map(move |name| format!("{}:{line}: {name}", file.path))
    });
    none(
        "Documents name files that are there.",
        "Write where it is now, or what has its place.",
        &named.collect::<Vec<_>>(),
    );
}

#[test]
fn links_within_the_project_lead_somewhere() {
    let broken = lines().flat_map(|(file, line, text)| {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let here = targets.filter(|target| !target.is_empty() && !target.contains(':'));
        let broken = here.filter(|target| !top().join(beside(&file.path, target)).exists());
        broken.map(move |target| format!("{}:{line}: {target}", file.path))
    });
    none("Links lead somewhere.", "Write where it is now.", &broken.collect::<Vec<_>>());
}

/// The table of pitfalls of the channel: functions, variants and constants of the sources, or conversations.
#[test]
fn tests_that_the_table_of_pitfalls_names_are_there() {
    let sources: Vec<&str> = FILES.iter().filter(|file| file.path.ends_with(".rs")).map(|file| &*file.text).collect();
    let is_there = |name: &str| match name.ends_with(".txt") {
        true => top().join("replica/src/channel/testdata").join(name).exists(),
        false => {
            let forms = [format!("fn {name}("), format!("const {name}:"), format!("    {name},\n")];
            sources.iter().any(|text| forms.iter().any(|form| text.contains(form)))
        }
    };
    let in_table = |(file, _, text): &(&File, usize, &str)| {
        file.path == "replica/CHANNEL.md" && text.starts_with("| ") && text.matches(" | ").count() == 1
    };
    let mut rows = 0;
    let mut breaches = Vec::new();
    let after = lines().skip_while(|(file, _, text)| file.path != "replica/CHANNEL.md" || *text != PITFALLS);
    for (file, line, text) in after.filter(in_table).filter(|(_, _, text)| !text.starts_with("| what |")) {
        rows += 1;
        let held_by = text.rsplit(" | ").next().unwrap_or("");
        let named: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
        if named.is_empty() && !held_by.starts_with("by construction: ") {
            breaches.push(format!("{}:{line}: nothing holds it", file.path));
        }
        let gone = named.into_iter().filter(|name| !is_there(name));
        breaches.extend(gone.map(|name| format!("{}:{line}: {name}", file.path)));
    }
    assert!(rows > 20, "the table is under {PITFALLS:?}: {rows}");
    none("Pitfalls name what holds them.", "Write the test's name as it is now.", &breaches);
}

const PITFALLS: &str = "## What others got wrong";

/// The path from the top of what a document in a folder calls so.
fn beside(document: &str, target: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in Path::new(document).parent().unwrap_or(Path::new("")).join(target).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}
