//! The rules of the house that no compiler and no lint knows. Each says which line breaks it and what to do.

use std::sync::LazyLock;

use millrace_tidy::{
    modules::{Arrow, Modules},
    tree::{self, File},
};

mod arrows;
mod dependencies;
mod documents;
mod kept;
mod sizes;
mod text;

/// All text files, read once for all rules.
static FILES: LazyLock<Vec<File>> = LazyLock::new(tree::files);

/// The modules of the crates.
static MODULES: LazyLock<Modules<'static>> = LazyLock::new(|| Modules::new(&FILES));

/// Who names whom.
static ARROWS: LazyLock<Vec<Arrow>> = LazyLock::new(|| MODULES.arrows());

/// Fails if there are breaches, with all of them.
fn none(rule: &str, advice: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{rule}\n  {}\n{advice}\n", breaches.join("\n  "));
}
