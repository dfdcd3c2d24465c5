//! What may not stand in any tracked text.

use crate::{FILES, none};

/// Lists that tools write, where addresses are what they are for.
const WRITTEN_BY_TOOLS: &[&str] = &["Cargo.lock", "package-lock.json", "go.sum"];

/// Each line of each text of people for which a rule finds something, and what.
fn lines(found: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let files = FILES.iter().filter(|file| !WRITTEN_BY_TOOLS.iter().any(|name| file.path.ends_with(name)));
    let lines = files.flat_map(|file| file.text.lines().enumerate().map(move |(at, line)| (file, at + 1, line)));
    lines.filter_map(|(file, line, text)| Some(format!("{}:{line}: {}", file.path, found(text)?))).collect()
}

/// The first of some texts that a line has.
fn first(line: &str, texts: &[String]) -> Option<String> {
    texts.iter().find(|text| line.contains(text.as_str())).cloned()
}

#[test]
fn no_path_is_of_one_machine() {
    // taken apart, or this file would break the rule
    let homes: Vec<String> = ["work", "root", "Users"].iter().map(|name| format!("/{name}/")).collect();
    let found = lines(|line| first(&line.replace("/home/you/", ""), &homes).or_else(|| line_has_home(line)));
    none("No path is one machine's.", "Name it from the top of the checkout, or from $HOME.", &found);
}

/// Somebody's home, but for the one of README's examples.
fn line_has_home(line: &str) -> Option<String> {
    let home = format!("/{}/", "home");
    let rest =
        line.split(&home).skip(1).find(|rest| !rest.starts_with("you/") && rest.starts_with(char::is_alphanumeric))?;
    Some(format!("{home}{}", rest.split('/').next().unwrap_or("")))
}

#[test]
fn no_registry_is_named_by_its_host() {
    let hosts: Vec<String> = [
        ("crates", "io"),
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("proxy.golang", "org"),
        ("maven", "org"),
        ("repo.maven.apache", "org"),
        ("static.rust-lang", "org"),
        ("deb.debian", "org"),
    ]
    .iter()
    .map(|(name, domain)| format!("{name}.{domain}"))
    .collect();
    let found = lines(|line| first(line, &hosts));
    none("No registry is named by its host.", "Its ordinary client knows where it is, or a mirror of it.", &found);
}

#[test]
fn no_issue_is_named_by_its_number() {
    let number = |line: &str| {
        let mut rest = line;
        while let Some(at) = rest.find('#') {
            let is_word_before = rest[..at].ends_with(|c: char| c.is_alphanumeric() || "&\"#/({[".contains(c));
            rest = &rest[at + 1..];
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let ends = !rest[digits..].starts_with(|c: char| c.is_alphanumeric() || c == '-' || c == '_');
            if (1..=5).contains(&digits) && ends && !is_word_before {
                return Some(format!("#{}", &rest[..digits]));
            }
        }
        None
    };
    none("No issue is named by its number.", "Say what it is about: the text outlives the list.", &lines(number));
}
