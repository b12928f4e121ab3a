//! Tests every field of the document, one by one. The fields come from the document's shape.

use ecs_meta::Task;
use mesh_config::shape::{Kind, Shape};
use mesh_config::{CheckTtl, Config, Mode, Role, catalog};
use serde_json::{Value, json};

/// The fields for mesh-init only. They are not part of the registration.
const OWN: [&str; 5] = ["/bootstrapDir", "/logLevel", "/consulHTTPAddr", "/consulCACertFile", "/consulLogin"];

/// Every field that holds no other field, as a JSON pointer, with two values that the rules allow in it.
fn leaves(shape: &Shape, path: &str, all: &mut Vec<(String, Kind, [Value; 2])>) {
    for field in &shape.fields {
        let path = format!("{path}/{}", field.name);
        let values = match &field.kind {
            Kind::Object(shape) => {
                leaves(shape, &path, all);
                continue;
            }
            Kind::Objects(shape) => {
                leaves(shape, &format!("{path}/0"), all);
                continue;
            }
            Kind::Text | Kind::FilledText => [json!("/a"), json!("/b")],
            Kind::Name => [json!("a"), json!("b")],
            Kind::Boolean => [json!(true), json!(false)],
            // Every field has a different number, because no port may occur twice.
            Kind::Integer | Kind::Any => [json!(1 + all.len()), json!(1001 + all.len())],
            Kind::IntegerIn { minimum, .. } => [json!(minimum), json!(minimum + 1)],
            Kind::Integers => [json!([1]), json!([2])],
            Kind::Ports => [json!([1]), json!([2])],
            // Only two kinds of gateway are tried: a rule refuses the third.
            Kind::Choice(words) => [json!(words[0]), json!(words[1])],
            Kind::Texts { .. } => [json!(["a"]), json!(["b"])],
            Kind::TextMap => [json!({ "k": "a" }), json!({ "k": "b" })],
            Kind::Headers => [json!({ "k": ["a"] }), json!({ "k": ["b"] })],
            Kind::Opaque => [json!({ "k": 1 }), json!({ "k": [0.1, null] })],
        };
        all.push((path, field.kind.clone(), values));
    }
}

fn leaves_of(mode: Mode) -> Vec<(String, Kind, [Value; 2])> {
    let mut all = Vec::new();
    leaves(&Shape::of_document(mode), "", &mut all);
    all
}

fn all_leaves() -> Vec<(String, Kind, [Value; 2])> {
    leaves_of(Mode::Agent)
}

/// Sets the value at this pointer, and creates the objects above it.
fn set(document: &mut Value, pointer: &str, value: &Value) {
    let at = pointer.split('/').skip(1).fold(document, |inner, step| match step {
        "0" => {
            if inner.is_null() {
                *inner = json!([{}]);
            }
            &mut inner[0]
        }
        step => &mut inner[step],
    });
    *at = value.clone();
}

/// The document with every field for which `with` is true.
fn filled(with: impl Fn(&str) -> bool) -> Value {
    filled_of(Mode::Agent, with)
}

fn filled_of(mode: Mode, with: impl Fn(&str) -> bool) -> Value {
    let mut document = json!({});
    for (path, _, [value, _]) in leaves_of(mode).iter().filter(|(path, ..)| with(path)) {
        set(&mut document, path, value);
    }
    document
}

/// The registrations: at the agent, or in the catalog if there is none.
fn registered(document: &Value) -> Value {
    let config = Config::parse(&document.to_string()).unwrap_or_else(|error| panic!("{error}: {document}"));
    let arn = "arn:aws:ecs:eu-north-1:210987654321:task/blue/f1a2";
    let task: Task = serde_json::from_value(json!({ "Cluster": "blue", "Family": "shop", "TaskARN": arn })).unwrap();
    let role = Role::of(&config);
    if config.mode() == Mode::Agentless {
        let names = catalog::names(role, &task);
        return serde_json::to_value(catalog::registrations(role, &config, &names, &task, "node")).unwrap();
    }
    serde_json::to_value(role.registrations(&config, &role.names(&task), &task, CheckTtl::default())).unwrap()
}

/// Checks that another value at the pointer changes the registration.
fn assert_shows(document: &Value, pointer: &str, values: &[Value; 2]) {
    let [one, other] = values.each_ref().map(|value| {
        let mut document = document.clone();
        set(&mut document, pointer, value);
        registered(&document)
    });
    assert_ne!(one, other, "{pointer} is not registered");
}

#[test]
fn every_field_of_a_service_shows_in_the_registration() {
    let own = |path: &str| OWN.iter().any(|own| path.starts_with(own));
    let mut seen = 0;
    for (path, _, values) in all_leaves() {
        if own(&path) || path.starts_with("/gateway") {
            continue;
        }
        // These two fields exclude each other.
        let others = if path == "/healthSyncContainers" { "/service/checks" } else { "/healthSyncContainers" };
        assert_shows(&filled(|path| !path.starts_with(others) && !path.starts_with("/gateway")), &path, &values);
        seen += 1;
    }
    assert!(seen > 50, "{seen} fields");
}

#[test]
fn every_field_of_a_gateway_shows_in_the_registration() {
    let mut seen = 0;
    for (path, _, values) in all_leaves().iter().filter(|(path, ..)| path.starts_with("/gateway")) {
        assert_shows(&filled(|path| path == "/bootstrapDir" || path.starts_with("/gateway")), path, values);
        seen += 1;
    }
    assert!(seen > 10, "{seen} fields");
}

/// The fields of a document without an agent that the registration does not have: those for mesh-init and the dataplane, and those that
/// must be off.
const NOT_REGISTERED: [&str; 8] = [
    "/bootstrapDir",
    "/logLevel",
    "/consulLogin",
    "/consulServers",
    "/controller",
    "/transparentProxy",
    "/service/networkResilienceConfig",
    "/proxy/healthCheckPort",
];

#[test]
fn every_field_of_a_task_without_an_agent_shows_in_the_catalog() {
    let mut seen = 0;
    for (path, _, values) in leaves_of(Mode::Agentless) {
        let is_of_gateway = path.starts_with("/gateway");
        let not_registered =
            NOT_REGISTERED.iter().any(|other| path.starts_with(other)) || path == "/gateway/healthCheckPort";
        if not_registered {
            continue;
        }
        let mut document = filled_of(Mode::Agentless, |path| {
            path.starts_with("/gateway") == is_of_gateway && !NOT_REGISTERED.iter().any(|other| path.starts_with(other))
        });
        document["bootstrapDir"] = json!("/c");
        document["consulServers"] = json!({ "hosts": "a" });
        assert_shows(&document, &path, &values);
        seen += 1;
    }
    assert!(seen > 35, "{seen} fields");
}

#[test]
fn each_integer_that_does_not_fit_breaks_a_rule() {
    let mut seen = 0;
    for mode in [Mode::Agent, Mode::Agentless] {
        let is_integer = |kind: &Kind| matches!(kind, Kind::Integer | Kind::IntegerIn { .. } | Kind::Any);
        for (path, kind, _) in leaves_of(mode).iter().filter(|(_, kind, _)| is_integer(kind)) {
            // Nanoseconds may be more than a port.
            let nanoseconds = matches!(kind, Kind::IntegerIn { maximum: None, .. });
            let far = [json!(1e300), json!(-1e300), json!(i64::MAX), json!(70000), json!(-1)];
            for far in far.into_iter().filter(|far| !nanoseconds || *far != 70000) {
                let mut document = filled_of(mode, |path| path != "/healthSyncContainers");
                set(&mut document, path, &far);
                let error = Config::parse(&document.to_string()).expect_err(path).to_string();
                let at = path.trim_start_matches('/').replace("/0/", "[0].").replace('/', ".");
                assert!(error.contains(&format!("{at}: expected an integer from ")), "{path} {far}: {error}");
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen} integers");
}
