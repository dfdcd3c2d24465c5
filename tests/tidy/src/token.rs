//! Rust's text as a row of tokens: no comments, and literals without what they say.

/// One token and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// A name, a lifetime, a number, `::`, one other character, or `""` for any literal in quotes.
    pub text: &'a str,
    /// Its line, from 1.
    pub line: usize,
}

impl Token<'_> {
    /// Whether it is a name or a keyword.
    pub fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// All tokens of a text that rustc accepts.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let (length, token) = next(rest, first);
        if let Some(text) = token {
            found.push(Token { text, line });
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// Length of what stands at the start of a text, and the token that it makes.
fn next(text: &str, first: char) -> (usize, Option<&str>) {
    if let Some(length) = comment(text) {
        return (length, None);
    }
    if first.is_whitespace() {
        return (first.len_utf8(), None);
    }
    if let Some(length) = quoted(text) {
        return (length, Some("\"\""));
    }
    if let Some(name) = text.strip_prefix("r#") {
        let length = word(name);
        return (2 + length, Some(&name[..length]));
    }
    let length = match first {
        ':' if text.starts_with("::") => 2,
        '\'' => 1 + word(&text[1..]),
        c if c.is_alphanumeric() || c == '_' => word(text),
        c => c.len_utf8(),
    };
    (length, Some(&text[..length]))
}

/// Length of a comment at the start, those within it included.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let step = if rest.starts_with(b"/*") {
            depth += 1;
            2
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            2
        } else {
            1
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    Some(at)
}

/// Length of a literal in quotes at the start.
fn quoted(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""]
        .into_iter()
        .find(|prefix| text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['"', '\'', '#'])))?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
        // else it is a name such as r#type
        let inner = rest[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = inner.find(&end).map_or(inner.len(), |at| at + end.len());
        return Some(prefix.len() + hashes + 1 + length);
    }
    match rest.chars().next()? {
        '"' => Some(prefix.len() + escaped(rest, '"')),
        '\'' if is_character(rest) => Some(prefix.len() + escaped(rest, '\'')),
        _ => None,
    }
}

/// Whether a quote begins a character and no lifetime.
fn is_character(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    matches!((characters.next(), characters.next()), (Some('\\'), _) | (_, Some('\'')))
}

/// Length of what ends at the next quote that is not escaped.
fn escaped(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return at + 1;
        }
    }
    text.len()
}

/// Length of the name or number at the start.
fn word(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_say_nothing() {
        assert_eq!(texts("a /* fn /* b */ } */ c // use d;\n e"), ["a", "c", "e"]);
        assert_eq!(texts(r##"f("}\"", r#"{"x"}"#, b'{', '\'', 'é')"##).join(" "), r#"f ( "" , "" , "" , "" , "" )"#);
    }

    #[test]
    fn lifetimes_are_no_literals() {
        assert_eq!(texts("&'a T<'_> 'x'"), ["&", "'a", "T", "<", "'_", ">", "\"\""]);
    }

    #[test]
    fn lines_are_counted_through_literals() {
        let found = tokens("a\n\"x\ny\" b");
        assert_eq!(found.iter().map(|token| token.line).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn paths_come_apart_and_raw_names_are_names() {
        assert_eq!(texts("a::r#type::b"), ["a", "::", "type", "::", "b"]);
    }
}
