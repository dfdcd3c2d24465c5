//! Why each dependency is there, and that somebody uses it.

use millrace_tidy::token::tokens;

use crate::{FILES, none};

/// One line `name = ...` or `name.workspace = ...` of a section of a Cargo.toml.
struct Entry<'a> {
    section: &'a str,
    name: &'a str,
    line: usize,
    has_reason: bool,
    is_workspace: bool,
}

/// Every line of the sections whose name ends with `dependencies`.
fn entries(text: &str) -> Vec<Entry<'_>> {
    let (mut section, mut has_reason) = ("", false);
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies") && line.contains('=') && !line.starts_with(['#', ' ']) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or(line);
            let is_workspace = line.contains("workspace = true");
            found.push(Entry { section, name, line: at + 1, has_reason, is_workspace });
        }
        has_reason = line.starts_with('#') || has_reason && line.starts_with(' ');
    }
    found
}

/// The folder of each member of the workspace, with a slash, and its Cargo.toml.
fn members() -> Vec<(&'static str, &'static str)> {
    let manifests =
        FILES.iter().filter(|file| file.path.ends_with("Cargo.toml") && file.text.contains("edition.workspace"));
    manifests.map(|file| (file.path.trim_end_matches("Cargo.toml"), file.text.as_str())).collect()
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = FILES.iter().find(|file| file.path == "Cargo.toml").expect("there is a Cargo.toml");
    let entries = entries(&manifest.text);
    let silent = entries.iter().filter(|entry| entry.section == "workspace.dependencies" && !entry.has_reason);
    // packages of our own need none
    let silent = silent.filter(|entry| !entry.name.starts_with("millrace-"));
    let mut silent: Vec<_> = silent.map(|entry| format!("Cargo.toml:{}: {}", entry.line, entry.name)).collect();
    for (folder, text) in members() {
        let entries = self::entries(text).into_iter().filter(|entry| entry.section != "workspace.dependencies");
        let own = entries.filter(|entry| !entry.is_workspace);
        silent.extend(
            own.map(|entry| {
                format!("{folder}Cargo.toml:{}: {} is not in the workspace's list", entry.line, entry.name)
            }),
        );
    }
    none(
        "Each dependency says why it is there.",
        "Write a line above it in the top Cargo.toml, and take it from there.",
        &silent,
    );
}

#[test]
fn every_dependency_is_used() {
    let mut idle = Vec::new();
    for (folder, text) in members() {
        for entry in entries(text).iter().filter(|entry| entry.section != "workspace.dependencies") {
            let name = entry.name.replace('-', "_");
            let inside = |path: &str| path.strip_prefix(folder).is_some_and(|path| belongs(path, entry.section));
            let files = FILES.iter().filter(|file| file.path.ends_with(".rs") && inside(&file.path));
            // as a name before `::`, in an import, or as a macro of the crate's own name
            let mut files = files.filter(|file| file.text.contains(&name));
            if !files.any(|file| tokens(&file.text).iter().any(|token| token.text == name)) {
                idle.push(format!("{folder}Cargo.toml:{}: {}", entry.line, entry.name));
            }
        }
    }
    none("Each dependency is used.", "Take it out of that Cargo.toml, and out of the top one if nobody has it.", &idle);
}

/// Whether a file of a package can use what a section names.
fn belongs(path: &str, section: &str) -> bool {
    let tests = ["tests/", "examples/", "src/"];
    path.starts_with("src/") || section == "dev-dependencies" && tests.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn every_dependency_of_the_workspace_has_a_user() {
    let manifest = FILES.iter().find(|file| file.path == "Cargo.toml").expect("there is a Cargo.toml");
    let members = members();
    let is_taken = |name: &str| {
        let taken = |text: &str| {
            entries(text).iter().any(|entry| entry.name == name && entry.section != "workspace.dependencies")
        };
        members.iter().any(|(_, text)| taken(text))
    };
    let entries = entries(&manifest.text);
    let idle = entries.iter().filter(|entry| entry.section == "workspace.dependencies" && !is_taken(entry.name));
    let idle: Vec<_> = idle.map(|entry| format!("Cargo.toml:{}: {}", entry.line, entry.name)).collect();
    none("Each dependency of the workspace is some package's.", "Take it out of the top Cargo.toml.", &idle);
}
