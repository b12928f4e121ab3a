//! Properties of all documents. A document is accepted exactly if the schema and the rules accept it, and no field of an accepted document
//! is lost.

mod support;

use std::cell::Cell;

use mesh_config::shape::Shape;
use mesh_config::{Config, rules, schema};
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};

/// Runs `property` on many documents. At least a tenth of them must be accepted, and at least a tenth refused.
fn for_any_document(property: impl Fn(&Value) -> bool) {
    let cases = 3000;
    let accepted = Cell::new(0);
    let mut runner = TestRunner::new(Cases { cases, failure_persistence: None, ..Cases::default() });
    let run = runner.run(&support::documents(), |document| {
        accepted.set(accepted.get() + u32::from(property(&document)));
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    assert!((cases / 10..cases * 9 / 10).contains(&accepted.get()), "{} of {cases} were accepted", accepted.get());
}

#[test]
fn document_is_accepted_if_schema_and_rules_accept_it() {
    let committed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.schema.json");
    let committed = serde_json::from_str(&std::fs::read_to_string(committed).unwrap()).unwrap();
    let schema = jsonschema::draft7::new(&committed).unwrap();
    for_any_document(|document| {
        let by_rules = rules::broken(document).iter().all(|(rule, _)| rule.warns);
        let by_schema = schema.is_valid(document);
        let parsed = Config::parse(&document.to_string());
        assert_eq!(
            parsed.is_ok(),
            by_schema && by_rules,
            "schema {by_schema}, rules {by_rules}: {parsed:?}\n{document}"
        );
        by_schema && by_rules
    });
}

#[test]
fn accepted_document_is_read_without_loss() {
    let shape = Shape::of_document();
    for_any_document(|document| {
        let Ok(config) = Config::parse(&document.to_string()) else { return false };
        let written = support::written(&config);
        let again = Config::parse(&written.to_string()).unwrap_or_else(|error| panic!("{error}: {written}"));
        assert_eq!(again, Config { warnings: again.warnings.clone(), ..config });
        assert_eq!(support::plain(&written, &shape), support::plain(document, &shape), "{document}");
        true
    });
}

#[test]
#[ignore = "needs REFERENCE_DIR: the folder with the schema of consul-ecs"]
fn schema_accepts_what_the_consul_ecs_schema_accepts() {
    let reference = std::env::var_os("REFERENCE_DIR").expect("REFERENCE_DIR names the folder with the reference data");
    let path = std::path::Path::new(&reference).join("consul-ecs-config/schema-0.6.json");
    let mut theirs: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    theirs["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    // consul-ecs's schema has `expose` beside `properties` by mistake, where validators ignore it.
    let expose = theirs["properties"]["proxy"]["expose"].take();
    theirs["properties"]["proxy"]["properties"]["expose"] = expose;
    let theirs = jsonschema::draft7::new(&theirs).unwrap();
    let ours = jsonschema::draft7::new(&schema::schema()).unwrap();
    for_any_document(|document| {
        let mut as_theirs = document.clone();
        // Our schema also accepts two more kinds of gateway, and null within `expose`.
        if let Some(kind @ ("ingress-gateway" | "terminating-gateway")) = document["gateway"]["kind"].as_str() {
            as_theirs["gateway"]["kind"] = kind.replace("ingress", "mesh").replace("terminating", "mesh").into();
        }
        if let Some(Value::Object(expose)) = as_theirs.pointer_mut("/proxy/expose") {
            support::drop_nulls(expose);
        }
        let accepted = ours.is_valid(document);
        assert_eq!(accepted, theirs.is_valid(&as_theirs), "ours {accepted}: {document}");
        accepted
    });
}
