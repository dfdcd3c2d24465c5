//! What tests keep beside the code.

use crate::{FILES, none};

/// Proptest finds kept failures by the path of the source file. The file of a moved one was never run again.
#[test]
fn kept_failures_lie_where_proptest_looks() {
    let source = |path: &str| {
        let (package, module) = path.strip_suffix(".txt")?.split_once("/proptest-regressions/")?;
        Some(format!("{package}/src/{module}.rs"))
    };
    let is_lost = |path: &String| source(path).is_some_and(|source| FILES.iter().all(|file| file.path != source));
    let lost: Vec<_> = FILES.iter().map(|file| file.path.clone()).filter(is_lost).collect();
    none("Kept failures are run again.", "Move the file to where the module is, below proptest-regressions.", &lost);
}
