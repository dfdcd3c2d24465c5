//! How large files and functions may be, and what has to say what it is.

use millrace_tidy::{
    items::{functions, undocumented},
    ratchet::{Breach, hold},
    rooms::package,
    tree::rust,
};

use crate::{FILES, none};

/// A file above this is split; 400 is what to aim at.
const FILE_LINES_MAX: usize = 800;
/// From the line of `fn` to the last brace, comments included.
const FUNCTION_LINES_MAX: usize = 70;

#[test]
fn files_are_short() {
    let long = rust(&FILES).map(|file| (file, file.text.lines().count())).filter(|(_, lines)| *lines > FILE_LINES_MAX);
    let long: Vec<_> = long.map(|(file, lines)| format!("{}: {lines} lines", file.path)).collect();
    none("Files have 800 lines at most.", "Move what can be told apart, or its tests, to a file of its own.", &long);
}

#[test]
fn functions_are_short() {
    let long = rust(&FILES).flat_map(|file| {
        let long = functions(&file.text).into_iter().filter(|function| function.lines > FUNCTION_LINES_MAX);
        long.map(|function| Breach {
            kind: format!("{} {}", file.path, function.name),
            place: format!("{}:{}: {} has {} lines", file.path, function.line, function.name, function.lines),
        })
    });
    let advice = "Functions have 70 lines at most. Move computation down into functions, and keep the branches here.";
    hold("long functions", advice, &long.collect::<Vec<_>>());
}

#[test]
fn files_say_what_they_are() {
    let silent: Vec<_> =
        rust(&FILES).filter(|file| !file.text.starts_with("//! ")).map(|file| file.path.clone()).collect();
    none("Files begin with //!.", "Say what the file is, which task owns it, and what always holds in it.", &silent);
}

#[test]
fn items_for_the_crate_say_what_they_are() {
    let silent = rust(&FILES).flat_map(|file| {
        undocumented(&file.text)
            .into_iter()
            .map(|line| Breach { kind: package(&file.path).to_owned(), place: format!("{}:{line}", file.path) })
    });
    let advice = "Each pub(crate) item needs a line of ///: what it is, its units and errors.";
    hold("undocumented", advice, &silent.collect::<Vec<_>>());
}
