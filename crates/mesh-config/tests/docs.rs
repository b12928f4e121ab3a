//! The schema and the reference page in `docs/` are up to date with the code.

use std::path::Path;

use mesh_config::schema;

#[test]
fn the_documentation_matches_the_code() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let schema = format!("{:#}\n", schema::schema());
    for (name, made) in [("config.schema.json", schema), ("config.md", schema::reference())] {
        let path = docs.join(name);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == made,
            "docs/{name} is not what the code says: UPDATE_DOCS=1 cargo test -p mesh-config -p mesh-task"
        );
    }
}
