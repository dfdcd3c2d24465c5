//! What a check found.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Good,
    /// The node runs, but slower or with less safety than this machine could give.
    Warning,
    /// The node cannot run.
    Error,
}

/// One fact about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at, in one or two words.
    pub check: &'static str,
    /// What is the case.
    pub what: String,
    /// Why it matters; empty for good news.
    pub why: String,
    /// How to fix it; empty for good news.
    pub fix: String,
}

impl Finding {
    /// All is well.
    pub fn good(check: &'static str, what: impl Into<String>) -> Self {
        Self { severity: Severity::Good, check, what: what.into(), why: String::new(), fix: String::new() }
    }

    /// The node runs all the same.
    pub fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, check, what: what.into(), why: why.into(), fix: fix.into() }
    }

    /// The node cannot run.
    pub fn error(check: &'static str, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity: Severity::Error, check, what: what.into(), why: why.into(), fix: fix.into() }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Good => "ok",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<14} {}", self.severity.to_string(), self.check, self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n{:24}why: {}", "", self.why)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\n{:24}fix: {}", "", self.fix)?;
        }
        Ok(())
    }
}
