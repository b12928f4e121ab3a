//! Converts the resources of AWS App Mesh into config entries of Consul.
//!
//! A virtual node becomes a service. A virtual service becomes the name that callers use: a `service-router` over its routes, or a
//! `service-resolver` that leads to its node. Weights become a `service-splitter`. A virtual gateway becomes an `ingress-gateway`.
//! Backends become `service-intentions`. Each field of the input that no entry has is one line of [`Converted::reports`].

mod advice;
mod entries;
mod field;
mod gateways;
mod input;
mod routes;
mod services;
mod values;

use serde_json::Value;

use entries::Entries;
use field::Log;
use input::Input;

/// The result of a conversion.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The config entries, in an order in which Consul accepts them.
    pub entries: Vec<Value>,
    /// What has no counterpart, and what to do by hand: one line each, beginning with the path.
    pub reports: Vec<String>,
}

/// Converts documents: inputs of App Mesh's `create-…` commands, outputs of its `describe-…` commands, or lists of these. Each has the
/// name of its file, for errors.
///
/// # Errors
/// One line for each error in the documents, beginning with the path.
pub fn convert(documents: &[(String, Value)]) -> Result<Converted, Vec<String>> {
    let log = Log::default();
    let mut entries = Entries::new(&log);
    let input = Input::read(documents, &log);
    services::convert(&input, &mut entries);
    gateways::convert(&input, &mut entries);
    input.resources().for_each(field::Resource::report_unread);
    let entries = entries.into_list();
    let (errors, reports) = log.into_lines();
    if errors.is_empty() { Ok(Converted { entries, reports }) } else { Err(errors) }
}
