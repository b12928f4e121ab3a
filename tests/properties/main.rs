//! Properties of all documents. A document is accepted exactly if the schema and the rules accept it, and no field of an accepted document
//! is lost.

mod support;

use std::cell::Cell;

use mesh_config::shape::Shape;
use mesh_config::{Config, Mode, rules, schema};
use proptest::test_runner::{Config as Cases, TestRunner};
use serde_json::{Value, json};

const MODES: [Mode; 2] = [Mode::Agent, Mode::Agentless];

/// Runs `property` on many documents of a mode. At least a tenth of them must be accepted, and at least a tenth refused.
fn for_any_document(mode: Mode, property: impl Fn(&Value) -> bool) {
    let cases = 1500;
    let accepted = Cell::new(0);
    let mut runner = TestRunner::new(Cases { cases, failure_persistence: None, ..Cases::default() });
    let run = runner.run(&support::documents(mode), |document| {
        accepted.set(accepted.get() + u32::from(property(&document)));
        Ok(())
    });
    if let Err(error) = run {
        panic!("{mode:?}: {error}");
    }
    let accepted = accepted.get();
    assert!((cases / 10..cases * 9 / 10).contains(&accepted), "{mode:?}: {accepted} of {cases} were accepted");
}

#[test]
fn document_is_accepted_if_schema_and_rules_accept_it() {
    let committed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.schema.json");
    let committed = serde_json::from_str(&std::fs::read_to_string(committed).unwrap()).unwrap();
    let schema = jsonschema::draft7::new(&committed).unwrap();
    for mode in MODES {
        for_any_document(mode, |document| {
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
}

#[test]
fn accepted_document_is_read_without_loss() {
    for mode in MODES {
        let shape = Shape::of_document(mode);
        for_any_document(mode, |document| {
            let Ok(config) = Config::parse(&document.to_string()) else { return false };
            let written = support::written(&config);
            let again = Config::parse(&written.to_string()).unwrap_or_else(|error| panic!("{error}: {written}"));
            assert_eq!(again, Config { warnings: again.warnings.clone(), ..config });
            assert_eq!(support::plain(&written, &shape), support::plain(document, &shape), "{document}");
            true
        });
    }
}

/// A schema of consul-ecs.
fn reference_schema(name: &str) -> Value {
    let reference = std::env::var_os("REFERENCE_DIR").expect("REFERENCE_DIR names the folder with the reference data");
    let path = std::path::Path::new(&reference).join("consul-ecs-config").join(name);
    let mut schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    // consul-ecs's schema has `expose` beside `properties` by mistake, where validators ignore it.
    let expose = schema["properties"]["proxy"]["expose"].take();
    schema["properties"]["proxy"]["properties"]["expose"] = expose;
    schema
}

/// Checks that the schema of ecs-mesh (ours) and that of consul-ecs (theirs) accept the same documents. Where ours accepts more on purpose,
/// `as_theirs` first changes the document into one that consul-ecs knows.
fn assert_same_schema(mode: Mode, theirs: &Value, as_theirs: impl Fn(&mut Value)) {
    let theirs = jsonschema::draft7::new(theirs).unwrap();
    let ours = jsonschema::draft7::new(&schema::schema()).unwrap();
    for_any_document(mode, |document| {
        let mut changed = document.clone();
        as_theirs(&mut changed);
        // Our schema also accepts null within `expose`.
        if let Some(Value::Object(expose)) = changed.pointer_mut("/proxy/expose") {
            support::drop_nulls(expose);
        }
        let accepted = ours.is_valid(document);
        assert_eq!(accepted, theirs.is_valid(&changed), "ours {accepted}: {document}");
        accepted
    });
}

#[test]
#[ignore = "needs REFERENCE_DIR: the folder with the schema of consul-ecs"]
fn schema_accepts_what_the_consul_ecs_schema_accepts() {
    assert_same_schema(Mode::Agent, &reference_schema("schema-0.6.json"), |document| {
        // Our schema also accepts two more kinds of gateway.
        if let Some(kind @ ("ingress-gateway" | "terminating-gateway")) = document["gateway"]["kind"].as_str() {
            document["gateway"]["kind"] = kind.replace("ingress", "mesh").replace("terminating", "mesh").into();
        }
    });
}

#[test]
#[ignore = "needs REFERENCE_DIR: the folder with the schema of consul-ecs"]
fn agentless_schema_accepts_what_the_consul_ecs_schema_accepts() {
    let theirs = reference_schema("schema-0.10.json");
    assert_same_schema(Mode::Agentless, &theirs, |_| {});
    let theirs = jsonschema::draft7::new(&theirs).unwrap();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/mesh-config/tests/golden");
    for name in ["agentless-service", "agentless-gateway"] {
        let document = std::fs::read_to_string(golden.join(format!("{name}.document.json"))).unwrap();
        assert!(theirs.is_valid(&serde_json::from_str(&document).unwrap()), "{name}");
    }
}
