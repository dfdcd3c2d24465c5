//! Figures that may only fall: what is there of each kind today is in `ratchet.txt`, and one more or one less fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    sync::Mutex,
};

/// One place that breaks a rule.
#[derive(Debug)]
pub struct Breach {
    /// What is counted together: one line of `ratchet.txt` behind the name of the rule.
    pub kind: String,
    /// Path, line, and what is wrong there.
    pub place: String,
}

/// Only one rule at a time may write the file.
static WRITING: Mutex<()> = Mutex::new(());

/// Fails when a rule has not exactly as many breaches of each kind as `ratchet.txt` says; with `MILLRACE_BLESS` in the
/// environment fewer are written down first.
///
/// # Panics
/// With the places and what to do about them.
pub fn hold(rule: &str, advice: &str, breaches: &[Breach]) {
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for breach in breaches {
        places.entry(&breach.kind).or_default().push(&breach.place);
    }
    let today: BTreeMap<&str, usize> = places.iter().map(|(kind, places)| (*kind, places.len())).collect();
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("ratchet.txt");
    let _writing = WRITING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut text = fs::read_to_string(&file).expect("ratchet.txt is there");
    if env::var_os("MILLRACE_BLESS").is_some() {
        text = lowered(&text, rule, &today);
        fs::write(&file, &text).expect("ratchet.txt can be written");
    }
    let complaints = complaints(&text, rule, &today, &places);
    assert!(complaints.is_empty(), "{rule}\n{}\n{advice}\n", complaints.join("\n"));
}

/// What is wrong, kind by kind.
fn complaints(
    text: &str,
    rule: &str,
    today: &BTreeMap<&str, usize>,
    places: &BTreeMap<&str, Vec<&str>>,
) -> Vec<String> {
    let allowed: BTreeMap<&str, usize> = text.lines().filter_map(|line| figure(line, rule)).collect();
    let kinds: BTreeSet<&str> = allowed.keys().chain(today.keys()).copied().collect();
    let complaint = |kind: &str| {
        let (most, now) = (allowed.get(kind).copied().unwrap_or(0), today.get(kind).copied().unwrap_or(0));
        if now > most {
            let places = places.get(kind).map(|places| places.join("\n    ")).unwrap_or_default();
            return Some(format!("  {kind}: {now}, and {most} is what tests/tidy/ratchet.txt allows:\n    {places}"));
        }
        (now < most).then(|| {
            format!(
                "  {kind}: lower the ratchet to {now}, it is at {most}: MILLRACE_BLESS=1 cargo test -p millrace-tidy \
                 does it, and nothing but lower"
            )
        })
    };
    kinds.into_iter().filter_map(complaint).collect()
}

/// The kind and the figure of a line `rule: kind = figure`.
fn figure<'a>(line: &'a str, rule: &str) -> Option<(&'a str, usize)> {
    let (kind, figure) = line.strip_prefix(rule)?.strip_prefix(": ")?.rsplit_once(" = ")?;
    Some((kind, figure.parse().ok()?))
}

/// The file with the figures of a rule that have fallen, without those that are nothing any more.
fn lowered(text: &str, rule: &str, today: &BTreeMap<&str, usize>) -> String {
    let line = |line: &str| match figure(line, rule) {
        None => Some(format!("{line}\n")),
        Some((kind, most)) => {
            let now = today.get(kind).copied().unwrap_or(0).min(most);
            (now > 0).then(|| format!("{rule}: {kind} = {now}\n"))
        }
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# why\nrule: a -> b = 2\nrule: c = 1\nother: c = 9\n";

    fn found(kinds: &[(&'static str, usize)]) -> Vec<String> {
        let today: BTreeMap<&str, usize> = kinds.iter().copied().collect();
        let places = kinds.iter().map(|(kind, _)| (*kind, vec!["x.rs:1", "x.rs:2"])).collect();
        complaints(TEXT, "rule", &today, &places)
    }

    #[test]
    fn figures_of_today_pass() {
        assert!(found(&[("a -> b", 2), ("c", 1)]).is_empty());
    }

    #[test]
    fn more_fails_with_every_place() {
        let found = found(&[("a -> b", 3), ("c", 1), ("new", 1)]);
        assert!(found[0].contains("a -> b: 3, and 2") && found[0].contains("x.rs:2"), "{found:?}");
        assert!(found[1].contains("new: 1, and 0"), "{found:?}");
    }

    #[test]
    fn less_fails_until_the_figure_is_lowered() {
        let found = found(&[("a -> b", 1)]);
        assert!(found[0].contains("lower the ratchet to 1"), "{found:?}");
        assert!(found[1].contains("c: lower the ratchet to 0"), "{found:?}");
    }

    #[test]
    fn lowering_never_raises() {
        let today = BTreeMap::from([("a -> b", 5), ("new", 1)]);
        assert_eq!(lowered(TEXT, "rule", &today), "# why\nrule: a -> b = 2\nother: c = 9\n");
    }
}
