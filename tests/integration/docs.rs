//! The manual agrees with the program and with itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of `docs/` and the README, with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = entries.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.chain([root().join("README.md")]).map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The text without the content of fenced blocks.
fn prose(text: &str) -> String {
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

/// The anchors of a page's headings, as code hosts form them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    for (path, text) in pages() {
        for link in prose(&text).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} does not exist", path.display());
            if !anchor.is_empty() {
                let headings = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(headings.contains(anchor), "{}: {link}: no such heading in {headings:?}", path.display());
            }
        }
    }
}

#[test]
fn the_pages_for_newcomers_exist_and_name_only_metrics_and_flags_that_the_program_has() {
    let help = |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_ghostserve")).args([command, "--help"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let help: String = ["serve", "bench", "eval", "inspect", "pull", "classify"].map(help).concat();
    let metrics = std::fs::read_to_string(root().join("src/telemetry/metrics.rs")).unwrap();
    for page in ["kubernetes.md", "troubleshooting.md", "migrating.md", "faq.md"] {
        let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
        for code in prose(&text).split('`').skip(1).step_by(2) {
            for word in code.split(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c))) {
                if let Some(metric) = word.strip_prefix("ghostserve_") {
                    assert!(metrics.contains(&format!(" {metric}:")), "{page}: no metric {word}");
                }
                // Flags of other programs are part of a longer piece of code, or listed here.
                let foreign = ["--cpus", "--noproxy", "--data-binary", "--inputs-as-nchw"];
                if code == word && word.starts_with("--") && !foreign.contains(&word) {
                    assert!(help.contains(word), "{page}: no flag {word}");
                }
            }
        }
    }
}
