//! The recorded responses of Consul 1.8.7.

use std::path::{Path, PathBuf};

use xds_bridge::convert;
use xds_bridge::messages::Response;
use xds_bridge::resource::{Kind, Resource};

/// The recorded response for a kind, if Consul sent one.
pub fn fixture(scenario: &str, kind: Kind) -> Option<Vec<u8>> {
    std::fs::read(directory().join(scenario).join(format!("{kind}.bin"))).ok()
}

pub fn scenarios() -> Vec<String> {
    let entries = std::fs::read_dir(directory()).expect("the fixtures are there");
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The converted resources of the response.
pub fn converted(scenario: &str, kind: Kind) -> Vec<Resource> {
    let Some(message) = fixture(scenario, kind) else { return Vec::new() };
    let response = Response::decode(&message).unwrap();
    assert_eq!(response.type_url, kind.v2_url());
    response.resources.iter().map(|v2| convert::resource(kind, v2).unwrap()).collect()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}
