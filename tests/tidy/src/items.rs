//! What a file is made of: its functions, and which of its items say what they are.

use crate::token::{Token, tokens};

/// One function.
#[derive(Debug, PartialEq, Eq)]
pub struct Function<'a> {
    /// Its name.
    pub name: &'a str,
    /// The line of its `fn`.
    pub line: usize,
    /// From that line to its last.
    pub lines: usize,
}

/// Every function with a body.
pub fn functions(text: &str) -> Vec<Function<'_>> {
    let tokens = tokens(text);
    let starts = tokens.windows(2).enumerate().filter(|(_, pair)| pair[0].text == "fn" && pair[1].is_name());
    starts
        .filter_map(|(at, pair)| {
            let last = last_line(&tokens[at..])?;
            Some(Function { name: pair[1].text, line: pair[0].line, lines: last + 1 - pair[0].line })
        })
        .collect()
}

/// The line on which the first braces outside brackets end, if there is no `;` before them.
fn last_line(tokens: &[Token<'_>]) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for token in tokens {
        match token.text {
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets -= 1,
            "{" if brackets == 0 || braces > 0 => braces += 1,
            "}" if braces == 1 => return Some(token.line),
            "}" => braces -= 1,
            ";" if brackets == 0 && braces == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Lines of items for the whole crate that no `///` stands before.
pub fn undocumented(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_undocumented = |at: &usize| is_for_crate(lines[*at]) && !is_documented(&lines[..*at]);
    (0..lines.len()).filter(is_undocumented).map(|at| at + 1).collect()
}

/// Whether a line begins an item for the whole crate. What a module is stands at the top of its file, and what an import
/// brings is said where it comes from.
fn is_for_crate(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("pub(crate) ") else { return false };
    let kind = rest.split([' ', '<']).find(|word| !matches!(*word, "async" | "unsafe"));
    matches!(kind, Some("fn" | "struct" | "enum" | "trait" | "const" | "static" | "type" | "union"))
}

/// Whether documentation ends these lines, attributes behind it aside.
fn is_documented(before: &[&str]) -> bool {
    let mut before = before.iter().rev();
    while let Some(line) = before.next() {
        if line.ends_with(']') && !line.starts_with("///") {
            // an attribute may begin some lines above
            let mut line = line;
            while !line.starts_with("#[") {
                let Some(above) = before.next() else { return false };
                line = above;
            }
        } else {
            return line.starts_with("///");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_lines() {
        let text = "trait A {\n    fn a();\n    fn b(x: [u8; 2]) {\n        if x {\n        }\n    }\n}\nconst C: fn() = d;\nfn d() {}\n";
        let found: Vec<_> =
            functions(text).into_iter().map(|function| (function.name, function.line, function.lines)).collect();
        assert_eq!(found, [("b", 3, 4), ("d", 9, 1)]);
    }

    #[test]
    fn items_without_documentation_are_found() {
        let text = "/// A.\n#[derive(\n    Debug,\n)]\npub(crate) struct A {\n    pub(crate) field: u8,\n}\n\npub(crate) async fn b() {}\n\
                    pub(crate) mod c;\n    #[inline]\n    pub(crate) const fn d() {}\n";
        assert_eq!(undocumented(text), [9, 12]);
    }
}
