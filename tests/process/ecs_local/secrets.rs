//! Tests of `ecs-local secrets` with moto's Secrets Manager.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mesh_tests::moto::Moto;
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, free_port, readme};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(20);

fn secrets(endpoint: &str, dir: &Path, secrets: &[&str]) -> Command {
    let mut command = Command::new(binary("ecs-local"));
    command.arg("secrets").arg("--dir").arg(dir);
    for secret in secrets {
        command.args(["--secret", secret]);
    }
    for variable in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"] {
        command.env_remove(variable);
    }
    command.env("AWS_ENDPOINT_URL_SECRETS_MANAGER", endpoint).env("AWS_REGION", "eu-north-1");
    command.env("LOG_LEVEL", "trace");
    command
}

async fn answered(moto: &Moto, arguments: &[&str]) -> Value {
    let answer = moto.aws(arguments).await;
    assert_eq!(answer.code, 0, "{arguments:?}: {}", answer.stderr);
    serde_json::from_str(&answer.stdout).unwrap_or_default()
}

/// Creates a secret, and returns its ARN and its version's ID.
async fn create(moto: &Moto, name: &str, value: &str) -> (String, String) {
    let created = answered(moto, &["secretsmanager", "create-secret", "--name", name, "--secret-string", value]).await;
    (created["ARN"].as_str().unwrap().to_owned(), created["VersionId"].as_str().unwrap().to_owned())
}

async fn put(moto: &Moto, name: &str, value: &str) {
    answered(moto, &["secretsmanager", "put-secret-value", "--secret-id", name, "--secret-string", value]).await;
}

fn files(dir: &Path) -> Vec<(String, String)> {
    let mut files = fs::read_dir(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read_to_string(entry.path()).unwrap())
    });
    let mut files = files.by_ref().collect::<Vec<_>>();
    files.sort();
    files
}

/// Checks that the program failed with one line that ends with this text, and that it wrote no file.
fn failed(ended: &Finished, code: i32, dir: &TempDir, says: &str) {
    assert_eq!(ended.code, code, "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("ecs-local: ") && last.contains(says), "{}", ended.stderr);
    assert_eq!(files(dir.path()), []);
}

#[tokio::test]
async fn secrets_are_read_by_arn_name_key_and_version() {
    let moto = Moto::start().await;
    let (arn, first) = create(&moto, "mesh-web", r#"{"accessor_id":"acc-1","token":"tok-1"}"#).await;
    put(&moto, "mesh-web", r#"{"accessor_id":"acc-2","token":"tok-2"}"#).await;
    create(&moto, "gossip/key", "g0ss1p").await;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("TOKEN"), "of an earlier run").unwrap();
    let wanted = [
        format!("TOKEN={arn}:token::"),
        "ACCESSOR=mesh-web:accessor_id".to_owned(),
        format!("PREVIOUS={arn}:token:AWSPREVIOUS:"),
        format!("FIRST=mesh-web:token::{first}"),
        "GOSSIP_KEY=gossip/key".to_owned(),
    ];
    let wanted = wanted.iter().map(String::as_str).collect::<Vec<_>>();
    // An ARN has its region. Only names need the variable.
    let ended = run(&mut secrets(&moto.url, dir.path(), &wanted), BOUND).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let expected = [
        ("ACCESSOR", "acc-2"),
        ("FIRST", "tok-1"),
        ("GOSSIP_KEY", "g0ss1p"),
        ("PREVIOUS", "tok-1"),
        ("TOKEN", "tok-2"),
    ];
    assert_eq!(files(dir.path()), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for (name, value) in expected {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "{name}");
        assert!(!ended.stderr.contains(value), "a secret is in the log: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("wrote ACCESSOR, FIRST, GOSSIP_KEY, PREVIOUS, TOKEN to "), "{}", ended.stderr);

    // With variables only.
    let dir = tempfile::tempdir().unwrap();
    let mut command = secrets(&moto.url, dir.path(), &[]);
    command.env("ECS_LOCAL_SECRETS", format!("A={arn}:token,B=gossip/key")).env_remove("AWS_REGION");
    command.env("AWS_DEFAULT_REGION", "eu-north-1");
    let ended = run(&mut command, BOUND).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(files(dir.path()), [("A".to_owned(), "tok-2".to_owned()), ("B".to_owned(), "g0ss1p".to_owned())]);
}

#[tokio::test]
async fn secrets_waits_for_all_before_it_writes_any() {
    let moto = Moto::start().await;
    create(&moto, "other", "there").await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::spawn(&mut secrets(&moto.url, dir.path(), &["OTHER=other", "TOKEN=mesh-web:token"]));
    process.says("waiting for the task's secrets from http://127.0.0.1:", BOUND).await;
    process.says("at most 1h: TOKEN from mesh-web: ", BOUND).await;
    process.says("can't find the specified secret", BOUND).await;
    create(&moto, "mesh-web", "{}").await;
    process.says("TOKEN from mesh-web: the secret is still empty", BOUND).await;
    put(&moto, "mesh-web", r#"{"accessor_id":"acc"}"#).await;
    process.says("TOKEN from mesh-web: the secret has no key token yet", BOUND).await;
    assert_eq!(files(dir.path()), []);
    put(&moto, "mesh-web", r#"{"accessor_id":"acc","token":"tok"}"#).await;
    assert_eq!(process.exit_code(BOUND).await, 0);
    assert_eq!(files(dir.path()), [("OTHER".to_owned(), "there".to_owned()), ("TOKEN".to_owned(), "tok".to_owned())]);
}

#[tokio::test]
async fn secrets_waits_for_secrets_manager_until_its_bound() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let dir = tempfile::tempdir().unwrap();
    let ended = run(secrets(&nobody, dir.path(), &["T=a"]).args(["--timeout", "500ms"]), BOUND).await;
    failed(&ended, 1, &dir, "gave up waiting for the task's secrets from ");
    assert!(ended.stderr.lines().last().unwrap().contains(&format!("cannot reach {nobody}")), "{}", ended.stderr);

    let mut process = Process::spawn(&mut secrets(&nobody, dir.path(), &["T=a"]));
    process.says("waiting for", BOUND).await;
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(BOUND).await, 1);
    process.says("ecs-local: told to end before all of the task's secrets were there", BOUND).await;
}

#[tokio::test]
async fn final_error_is_one_line_without_the_secret() {
    let moto = Moto::start().await;
    create(&moto, "plain", "s3cr3t").await;
    let dir = tempfile::tempdir().unwrap();
    let ended = run(&mut secrets(&moto.url, dir.path(), &["T=plain:token"]), BOUND).await;
    failed(&ended, 1, &dir, "T from plain: the secret is not a JSON object, so it has no key token");
    assert!(!ended.stderr.contains("s3cr3t"), "{}", ended.stderr);
    let rows: [(&[&str], i32, &str); 5] = [
        (&["T=plain", "T=other"], 1, "two secrets have the name T"),
        (&["T=arn:aws:ssm:eu-north-1:2:parameter/p"], 2, "is neither the ARN of a secret"),
        (&["../T=plain"], 2, "is not a name for a variable"),
        (&["T"], 2, "expected NAME=SECRET"),
        (&[], 2, "required arguments were not provided"),
    ];
    for (wrong, code, says) in rows {
        let ended = run(&mut secrets(&moto.url, dir.path(), wrong), BOUND).await;
        failed(&ended, code, &dir, says);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
    let ended = run(secrets(&moto.url, dir.path(), &["T=plain"]).env("AWS_REGION", ""), BOUND).await;
    failed(&ended, 1, &dir, "AWS_REGION is not set");
    let ended = run(&mut secrets("https://real", dir.path(), &["T=plain"]), BOUND).await;
    failed(&ended, 1, &dir, r#"AWS_ENDPOINT_URL_SECRETS_MANAGER is "https://real": expected http://host:port"#);
    let nowhere = dir.path().join("nowhere");
    let ended = run(&mut secrets(&moto.url, &nowhere, &["T=plain"]), BOUND).await;
    failed(&ended, 1, &dir, "nowhere/T: No such file or directory");
}

#[tokio::test]
async fn signature_is_right_and_one_action_is_enough() {
    let moto = Moto::start().await;
    create(&moto, "mesh-web", r#"{"token":"tok"}"#).await;
    let keys = [moto.user("reader", Some(&readme("ecs-local", "json", 0))).await, moto.user("nobody", None).await];
    moto.require_authorization().await;

    let dir = tempfile::tempdir().unwrap();
    let key_file = tempfile::NamedTempFile::new().unwrap();
    fs::write(key_file.path(), &keys[0][1]).unwrap();
    let mut reader = secrets(&moto.url, dir.path(), &["T=mesh-web:token"]);
    reader.env("AWS_ACCESS_KEY_ID", &keys[0][0]).env("AWS_SECRET_ACCESS_KEY_FILE", key_file.path());
    let ended = run(&mut reader, BOUND).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stderr.contains(&keys[0][1]), "{}", ended.stderr);
    assert_eq!(files(dir.path()), [("T".to_owned(), "tok".to_owned())]);

    let dir = tempfile::tempdir().unwrap();
    let refused = async |id: &str, key: &str, says: &str| {
        let mut command = secrets(&moto.url, dir.path(), &["T=mesh-web:token"]);
        command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", key);
        failed(&run(&mut command, BOUND).await, 1, &dir, says);
    };
    refused(&keys[1][0], &keys[1][1], "<Code>AccessDenied</Code>").await;
    let statement =
        r#"the IAM policy must have {"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"arn:aws:"#;
    refused(&keys[1][0], &keys[1][1], statement).await;
    refused(&keys[0][0], "another key", "<Code>SignatureDoesNotMatch</Code>").await;
}
