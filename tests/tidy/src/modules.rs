//! Which file is which module, which of them are tests, and which names another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    token::{Token, tokens},
    tree::{File, rust},
};

/// Crates of the workspace: the name in code, and the folder of its root.
pub const CRATES: &[(&str, &str)] = &[
    ("millrace", "src"),
    ("millrace_engine", "engine/src"),
    ("millrace_net", "net/src"),
    ("millrace_client", "net/client/src"),
    ("millrace_sockets", "net/sockets/src"),
    ("millrace_replica", "replica/src"),
    ("millrace_bench", "bench/src"),
    ("millrace_tuning", "tuning/src"),
];

/// A module: its crate, then the names down to it.
type Path = Vec<String>;

/// One arrow: a file names something of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    /// The file that names.
    pub from: String,
    /// The file that is named.
    pub to: String,
    /// The line of the first time.
    pub line: usize,
}

/// The modules of the crates, without those that are tests.
#[derive(Debug)]
pub struct Modules<'a> {
    /// Path of the file and its tokens outside tests, by module.
    files: BTreeMap<Path, (&'a str, Vec<Token<'a>>)>,
}

impl<'a> Modules<'a> {
    /// Reads them.
    pub fn new(files: &'a [File]) -> Self {
        let mut modules = BTreeMap::new();
        let mut of_tests = BTreeSet::new();
        for file in rust(files) {
            let Some(path) = module(&file.path) else { continue };
            let (kept, tests) = without_tests(&tokens(&file.text));
            of_tests.extend(tests.into_iter().map(|name| [path.as_slice(), &[name.to_owned()]].concat()));
            modules.insert(path, (file.path.as_str(), kept));
        }
        modules.retain(|path, _| !(1..=path.len()).any(|length| of_tests.contains(&path[..length])));
        Self { files: modules }
    }

    /// Every file's path and tokens.
    pub fn files(&self) -> impl Iterator<Item = (&'a str, &[Token<'a>])> {
        self.files.values().map(|(path, tokens)| (*path, tokens.as_slice()))
    }

    /// Every pair of files of which one names the other, by rising path.
    pub fn arrows(&self) -> Vec<Arrow> {
        let mut found = BTreeMap::new();
        for (module, (path, tokens)) in &self.files {
            for (to, line) in self.named(module, tokens) {
                found.entry(((*path).to_owned(), to.to_owned())).or_insert(line);
            }
        }
        found.into_iter().map(|((from, to), line)| Arrow { from, to, line }).collect()
    }

    /// The other files that a file's tokens name, with the lines.
    fn named(&self, module: &[String], tokens: &[Token<'_>]) -> Vec<(&'a str, usize)> {
        let paths = paths(tokens);
        let mut imported = HashMap::new();
        for found in paths.iter().filter(|found| found.is_import) {
            if let Some(target) = self.resolve(module, &found.names, &HashMap::new()) {
                imported.insert(found.alias.unwrap_or_else(|| found.names.last().copied().unwrap_or("")), target);
            }
        }
        let targets = paths.iter().filter_map(|found| {
            let target = self.resolve(module, &found.names, &imported)?;
            let (path, _) = (0..=target.len()).rev().find_map(|length| self.files.get(&target[..length]))?;
            Some((*path, found.line))
        });
        let own = self.files.get(module).map(|(path, _)| *path);
        targets.filter(|(path, _)| Some(*path) != own).collect()
    }

    /// The whole path of what is written in a module, if it is of these crates.
    fn resolve(&self, module: &[String], names: &[&str], imported: &HashMap<&str, Path>) -> Option<Path> {
        let mut start = module.to_vec();
        let mut rest = names;
        match names[0] {
            "crate" => start.truncate(1),
            "self" => {}
            "super" => {
                let up = names.iter().take_while(|name| **name == "super").count();
                start.truncate(module.len().saturating_sub(up));
                rest = &names[up - 1..];
            }
            name if CRATES.iter().any(|(known, _)| *known == name) => start = vec![name.to_owned()],
            name if imported.contains_key(name) => start.clone_from(&imported[name]),
            name => {
                start.push(name.to_owned());
                self.files.get(&start)?;
            }
        }
        start.extend(rest[1..].iter().map(|name| (*name).to_owned()));
        Some(start)
    }
}

/// Files that can come back to themselves by following arrows.
pub fn in_cycles(arrows: &[Arrow]) -> BTreeSet<&str> {
    let mut next: HashMap<&str, Vec<&str>> = HashMap::new();
    for arrow in arrows {
        next.entry(&arrow.from).or_default().push(&arrow.to);
    }
    let comes_back = |start: &&str| {
        let (mut seen, mut left) = (BTreeSet::new(), vec![*start]);
        while let Some(file) = left.pop() {
            left.extend(next.get(file).into_iter().flatten().filter(|to| seen.insert(**to)));
        }
        seen.contains(start)
    };
    next.keys().copied().filter(comes_back).collect()
}

/// Whether one file is a module and the other inside it, whichever.
pub fn is_within(one: &str, other: &str) -> bool {
    match (module(one), module(other)) {
        (Some(one), Some(other)) => one.starts_with(&other) || other.starts_with(&one),
        _ => false,
    }
}

/// The module that a file of one of the crates is.
fn module(path: &str) -> Option<Path> {
    let (name, inner) =
        CRATES.iter().find_map(|(name, root)| Some((*name, path.strip_prefix(root)?.strip_prefix('/')?)))?;
    let mut names = vec![name.to_owned()];
    names.extend(inner.strip_suffix(".rs")?.split('/').map(str::to_owned));
    if matches!(names.last().map(String::as_str), Some("mod" | "lib")) || inner == "main.rs" && name == "millrace" {
        names.pop();
    }
    Some(names)
}

/// Tokens without items that only tests have, and names of modules among these that are files of their own.
fn without_tests<'a>(tokens: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if !is_for_tests(&tokens[at..]) {
            kept.push(tokens[at]);
            at += 1;
            continue;
        }
        let end = item_end(tokens, at);
        if let [.., keyword, name, semicolon] = &tokens[at..end]
            && keyword.text == "mod"
            && semicolon.text == ";"
        {
            modules.push(name.text);
        }
        at = end;
    }
    (kept, modules)
}

/// Whether an attribute begins here that leaves an item to tests.
fn is_for_tests(tokens: &[Token<'_>]) -> bool {
    let starts =
        |with: &[&str]| with.iter().zip(tokens).filter(|(text, token)| **text == token.text).count() == with.len();
    starts(&["#", "[", "cfg", "(", "test", ")", "]"]) || starts(&["#", "[", "cfg", "(", "all", "(", "test"])
}

/// Where the item with its attributes that begins at a token is over: behind its `;`, `,` or the end of its braces.
fn item_end(tokens: &[Token<'_>], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            // the end of what the item is in
            ")" | "]" | "}" if depth == 0 => return at,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(token.text, ";" | "," | "}") {
            return at + 1;
        }
    }
    tokens.len()
}

/// A path as it is written.
#[derive(Debug, PartialEq, Eq)]
struct Written<'a> {
    names: Vec<&'a str>,
    alias: Option<&'a str>,
    is_import: bool,
    line: usize,
}

/// Every path with more than one name, and every import, groups taken apart.
fn paths<'a>(tokens: &[Token<'a>]) -> Vec<Written<'a>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        // `use<'a>` of a type is no import
        if tokens[at].text == "use" && tokens.get(at + 1).is_some_and(|token| token.text != "<") {
            at = tree(tokens, at + 1, &[], &mut found);
        } else if tokens[at].is_name() && (at == 0 || tokens[at - 1].text != "::") {
            let mut names = vec![tokens[at].text];
            let line = tokens[at].line;
            while let [colons, name, ..] = &tokens[at + 1..]
                && colons.text == "::"
                && name.is_name()
            {
                names.push(name.text);
                at += 2;
            }
            if names.len() > 1 {
                found.push(Written { names, alias: None, is_import: false, line });
            }
            at += 1;
        } else {
            at += 1;
        }
    }
    found
}

/// One tree of imports from a token on, below a prefix. Returns where it ends.
fn tree<'a>(tokens: &[Token<'a>], mut at: usize, prefix: &[&'a str], found: &mut Vec<Written<'a>>) -> usize {
    let mut names = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(at) {
        match token.text {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = tree(tokens, at, &names, found);
                    at += usize::from(tokens.get(at).is_some_and(|token| token.text == ","));
                }
                return at + 1;
            }
            "::" | "*" => at += 1,
            "as" => {
                let alias = tokens.get(at + 1).map(|token| token.text);
                found.push(Written { names, alias, is_import: true, line });
                return at + 2;
            }
            // `self` at the end of a tree is the module itself
            "self" if !names.is_empty() => at += 1,
            _ if token.is_name() => {
                names.push(token.text);
                at += 1;
            }
            _ => break,
        }
    }
    if !names.is_empty() {
        found.push(Written { names, alias: None, is_import: true, line });
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    fn arrows(files: &[File]) -> Vec<(String, String, usize)> {
        Modules::new(files).arrows().into_iter().map(|arrow| (arrow.from, arrow.to, arrow.line)).collect()
    }

    fn arrow(from: &str, to: &str, line: usize) -> (String, String, usize) {
        (format!("engine/src/{from}"), format!("engine/src/{to}"), line)
    }

    #[test]
    fn groups_of_imports_are_taken_apart() {
        let text = "use crate::{\n a::{b, self as x, c::C},\n d::*,\n};\nuse std::{fs, io::{self, Read}};";
        let tokens = tokens(text);
        let found: Vec<_> = paths(&tokens).into_iter().map(|path| (path.names.join("::"), path.line)).collect();
        let expected = [("crate::a::b", 2), ("crate::a", 2), ("crate::a::c::C", 2), ("crate::d", 3)];
        assert_eq!(found[..4], expected.map(|(path, line)| (path.to_owned(), line)));
        assert_eq!(
            found[4..].iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(),
            ["std::fs", "std::io", "std::io::Read"]
        );
    }

    #[test]
    fn files_are_named_however_the_path_is_written() {
        let files = [
            file("engine/src/a/mod.rs", "mod inner;\nfn f() -> inner::I { crate::d::E }"),
            file("engine/src/a/inner.rs", "use super::super::d;\nuse crate::{\n b::B};\nfn g(x: d::D) {}"),
            file("engine/src/b.rs", "use super::a as other;\nfn f() { other::inner::f() }"),
            file("engine/src/d.rs", "// use crate::a;\nconst A: &str = \"crate::a\";"),
            file("net/src/lib.rs", "use millrace_engine::d::D;"),
        ];
        let expected = [
            arrow("a/inner.rs", "b.rs", 3),
            arrow("a/inner.rs", "d.rs", 1),
            arrow("a/mod.rs", "a/inner.rs", 2),
            arrow("a/mod.rs", "d.rs", 2),
            arrow("b.rs", "a/inner.rs", 2),
            arrow("b.rs", "a/mod.rs", 1),
            ("net/src/lib.rs".to_owned(), "engine/src/d.rs".to_owned(), 1),
        ];
        assert_eq!(arrows(&files), expected);
    }

    #[test]
    fn tests_name_what_they_like() {
        let files = [
            file(
                "engine/src/a.rs",
                "#[cfg(test)]\nuse crate::b;\n#[cfg(test)]\nmod tests { use crate::b; }\nuse crate::c;",
            ),
            file(
                "engine/src/b.rs",
                "#[cfg(test)]\n#[path = \"x\"]\nmod tests;\nenum E { #[cfg(test)] A(u8), B(crate::c::C) }",
            ),
            file("engine/src/b/tests.rs", "use crate::a;"),
            file("engine/src/c.rs", ""),
        ];
        assert_eq!(arrows(&files), [arrow("a.rs", "c.rs", 5), arrow("b.rs", "c.rs", 4)]);
    }

    #[test]
    fn circles_are_found_and_what_leads_to_them_is_not() {
        let arrow = |from: &str, to: &str| Arrow { from: from.to_owned(), to: to.to_owned(), line: 1 };
        let arrows = [arrow("a", "b"), arrow("b", "c"), arrow("c", "b"), arrow("c", "d")];
        assert_eq!(in_cycles(&arrows).into_iter().collect::<Vec<_>>(), ["b", "c"]);
    }
}
