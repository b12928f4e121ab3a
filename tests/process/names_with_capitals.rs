//! `docs/migration.md`, "Names with capitals": callers of the old name reach the service under its new name.

use std::process::Command;

use local_mesh::workspace;
use mesh_tests::process::run;
use mesh_tests::{eventually, part};
use serde_json::Value;

use crate::xds_bridge::{BOUND, Bridge, app, ask, callee, caller};

/// The config entry in the document.
fn resolver() -> String {
    let document = std::fs::read_to_string(workspace().join("docs/migration.md")).unwrap();
    let (_, section) = document.split_once("### Names with capitals").expect("the section exists");
    let (_, entry) = section.split_once("consul config write - <<'END'\n").expect("the section has the command");
    entry.split_once("   END\n").expect("the entry ends").0.to_owned()
}

async fn write(bridge: &Bridge, entry: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("entry.hcl");
    std::fs::write(&file, entry).unwrap();
    let mut consul = Command::new(part("consul"));
    consul.args(["config", "write", "-http-addr", &format!("127.0.0.1:{}", bridge.http)]).arg(&file);
    let written = run(&mut consul, BOUND).await;
    assert_eq!(written.code, 0, "{}", written.stderr);
}

#[tokio::test]
async fn callers_of_the_old_name_reach_the_new_service() {
    let bridge = Bridge::start().await;
    let (old_app, _old) = app("the old task").await;
    let (new_app, _new) = app("the new task").await;
    let old = callee(&bridge, "Shop-Web", old_app).await;
    let (_caller, upstream) = caller(&bridge, "Shop-Web").await;
    let answer = eventually("an answer before the move", BOUND, async || ask(upstream).await).await;
    assert_eq!(answer, "the old task");

    write(&bridge, &resolver()).await;
    let _new_envoy = callee(&bridge, "shop-web-ecs", new_app).await;
    bridge.call("PUT", "/v1/agent/service/deregister/Shop-Web-proxy", &Value::Null).await;
    drop(old);
    let answer = eventually("an answer after the old task's end", BOUND, async || ask(upstream).await).await;
    assert_eq!(answer, "the new task");
}
