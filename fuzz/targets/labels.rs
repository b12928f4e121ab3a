//! The labels of a container, a line each, `name=value`: none makes reading them panic, and each problem is one line.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;

/// The module alone: with the whole of ecs-local, Docker's client would be built with coverage counters too.
#[allow(dead_code)]
#[path = "../../crates/ecs-local/src/labels.rs"]
mod labels;

use labels::Labels;

fuzz_target!(|text: &str| {
    let pairs = text.lines().map(|line| line.split_once('=').unwrap_or((line, "")));
    let labels = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>();
    let (read, problems) = Labels::read(&labels);
    assert!(problems.iter().all(|problem| !problem.contains('\n')));
    match read {
        Some(read) => {
            assert!(!read.name.is_empty() && !read.cluster.is_empty());
            assert!(read.depends_on.iter().all(|name| !name.is_empty()));
            assert!(read.shown.iter().all(|shown| labels.get(shown.0) == Some(shown.1)));
        }
        None => assert!(!problems.is_empty(), "what keeps a container out of its task is named"),
    }
});
