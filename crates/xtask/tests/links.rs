//! Every link in the Markdown files leads to a file and a heading that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for directory in ["", "docs", "tests", "fuzz", "deploy"] {
        files.extend(markdown_in(&root.join(directory)));
    }
    for parent in ["crates", "deploy/terraform"] {
        for member in fs::read_dir(root.join(parent)).unwrap() {
            files.extend(markdown_in(&member.unwrap().path()));
        }
    }
    assert!(files.len() > 20, "{files:?}");

    let mut broken = Vec::new();
    for file in &files {
        for target in links(&fs::read_to_string(file).unwrap()) {
            if !target.contains("://") && !leads_somewhere(file, &target) {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

fn markdown_in(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

fn leads_somewhere(file: &Path, target: &str) -> bool {
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if path.is_empty() { file.to_owned() } else { file.parent().unwrap().join(path) };
    let page = if path.is_dir() { path.join("README.md") } else { path.clone() };
    path.exists() && (heading.is_empty() || headings(&fs::read_to_string(page).unwrap()).contains(heading))
}

/// The lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !in_code && !fence
    })
}

fn links(text: &str) -> Vec<String> {
    let parts = prose(text).flat_map(|line| line.split("](").skip(1));
    parts.filter_map(|part| Some(part.split_once(')')?.0.to_owned())).collect()
}

/// The anchors that GitHub makes of the headings.
fn headings(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|&letter| letter.is_alphanumeric() || "-_ ".contains(letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}
