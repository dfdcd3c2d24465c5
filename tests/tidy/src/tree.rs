//! The files of the checkout: what git tracks, and what it would if it were added.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One text file.
#[derive(Debug)]
pub struct File {
    /// Its path from the top, with slashes.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// The top of the checkout.
pub fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Every text file, by rising path.
pub fn files() -> Vec<File> {
    let top = top();
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(&top)
        .output()
        .expect("git is needed to know what belongs to the project");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let paths = String::from_utf8(listed.stdout).expect("paths are UTF-8");
    let mut paths: Vec<&str> = paths.split_terminator('\0').collect();
    paths.sort_unstable();
    paths.dedup();
    // what is not UTF-8 is no text, and what is removed but not committed yet is not there
    paths
        .into_iter()
        .filter_map(|path| Some(File { path: path.to_owned(), text: fs::read_to_string(top.join(path)).ok()? }))
        .collect()
}

/// Those that are Rust.
pub fn rust(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| file.path.ends_with(".rs"))
}
