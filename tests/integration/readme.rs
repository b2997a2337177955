//! The newcomer's way through README.md. `tests/readme/first_hour.py` walks it in continuous integration; this only
//! checks that the script still finds it.

use std::path::Path;
use std::process::Command;

/// The steps that the way must have, in this order; others may lie between.
const STEPS: [&str; 7] =
    ["clone", "run (server)", "classify", "feature-maps", "init", "own-model (server)", "container"];

#[test]
fn the_readme_leads_from_a_clone_to_a_container() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readme/first_hour.py");
    let output = Command::new("python3").arg(script).arg("--list").output().expect("python3 is on the path");
    let listed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lines = listed.lines();
    for step in STEPS {
        assert!(lines.any(|line| line.starts_with(step)), "{step} is missing, or out of order, in:\n{listed}");
    }
}
