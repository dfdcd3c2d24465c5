//! Who names whom.

use millrace_tidy::{
    modules::{in_cycles, is_within},
    ratchet::{Breach, hold},
    rooms::{FLOORS, floor, package, wrong_way},
    token::Token,
};

use crate::{ARROWS, MODULES, none};

#[test]
fn every_file_has_a_room() {
    let lost: Vec<_> =
        MODULES.files().filter(|(path, _)| floor(path).is_none()).map(|(path, _)| path.to_owned()).collect();
    none(
        "Each file belongs to a room.",
        "Name it in tests/tidy/src/rooms.rs, on the lowest floor from which it names nothing above.",
        &lost,
    );
}

#[test]
fn every_room_has_a_file() {
    let is_empty = |room: &&str| {
        let is_in = |path: &str| path.strip_prefix(*room).is_some_and(|rest| rest.starts_with('/') || rest == ".rs");
        MODULES.files().all(|(path, _)| !is_in(path))
    };
    let empty: Vec<_> =
        FLOORS.iter().flat_map(|floor| floor.rooms).copied().filter(is_empty).map(str::to_owned).collect();
    none("Each room has a file.", "Take it out of tests/tidy/src/rooms.rs, or write there where it is now.", &empty);
}

#[test]
fn arrows_run_one_way() {
    let wrong = ARROWS.iter().filter_map(|arrow| {
        let kind = wrong_way(&arrow.from, &arrow.to)?;
        Some(Breach { kind, place: format!("{}:{} names {}", arrow.from, arrow.line, arrow.to) })
    });
    let advice = "A room names its own floor and those below (tests/tidy/src/rooms.rs). Move what is named down, or have it \
                  handed in from above.";
    hold("wrong way", advice, &wrong.collect::<Vec<_>>());
}

#[test]
fn files_name_each_other_in_no_circle() {
    // a module and what is inside it are one thing
    let arrows: Vec<_> = ARROWS.iter().filter(|arrow| !is_within(&arrow.from, &arrow.to)).cloned().collect();
    let circles = in_cycles(&arrows);
    let breach = |path: &&str| {
        let named = arrows.iter().filter(|arrow| arrow.from == *path && circles.contains(arrow.to.as_str()));
        let named: Vec<_> = named.map(|arrow| format!("{} (line {})", arrow.to, arrow.line)).collect();
        Breach { kind: package(path).to_owned(), place: format!("{path} names {}", named.join(", ")) }
    };
    let advice = "Find the one arrow that closes the circle, and move what it names to whoever is named by both.";
    hold("in circles", advice, &circles.iter().map(breach).collect::<Vec<_>>());
}

/// Whether the engine is asked for its topics here, or a snapshot of them for one: `engine.topics()`,
/// `engine().topics()`, `.by_name`, `.by_id`.
fn looks_up(tokens: &[Token<'_>]) -> bool {
    match tokens.iter().map(|token| token.text).collect::<Vec<_>>()[..] {
        ["engine", "(", ")", ".", "topics"] | [_, _, "engine", ".", "topics"] => true,
        [.., ".", name] => matches!(name, "by_name" | "by_id"),
        _ => false,
    }
}

#[test]
fn topics_are_looked_up_in_one_place() {
    let is_asked = |path: &str| path.starts_with("net/src/") && !path.starts_with("net/src/broker/context/");
    let found = MODULES.files().filter(|(path, _)| is_asked(path)).flat_map(|(path, tokens)| {
        tokens.windows(5).filter(|tokens| looks_up(tokens)).map(move |tokens| Breach {
            kind: path.split('/').take(4).collect::<Vec<_>>().join("/").trim_end_matches(".rs").to_owned(),
            place: format!("{path}:{}: .{}", tokens[4].line, tokens[4].text),
        })
    });
    let advice = "A request finds its topics through its context (net/src/broker/context), which asks whether it may.";
    hold("topic look-ups", advice, &found.collect::<Vec<_>>());
}
