//! How mesh-init, agent-config and health-sync reach Consul: by mutual TLS, by a unix socket, and with a login through an auth method.
//! health-sync also logs out.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use consul_api::{Client, Config};
use http_fixture::{Answer, Record, Request, Server};
use mesh_tests::consul::Agent;
use mesh_tests::metadata::Metadata;
use mesh_tests::moto::Moto;
pub(super) use mesh_tests::platform::{METHOD, Platform, logins};
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, free_port, http};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};
use sidecar_kit::env::Env;
use sidecar_kit::secret::Secret;
use tempfile::TempDir;

mod agentless;
mod auth_method;
mod aws;
mod refused;
mod servers;
mod transport;

const BOUND: Duration = Duration::from_secs(60);
const USER: &str = "arn:aws:iam::210987654321:user/team/ann";

/// A task: its metadata, its volume and its document.
struct Task {
    metadata: Metadata,
    volume: TempDir,
    document: Value,
}

impl Task {
    fn new() -> Self {
        let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["127.0.0.1"] }]);
        let app = json!([{ "Name": "app", "Networks": networks, "Health": { "status": "HEALTHY" } }]);
        let volume = tempfile::tempdir().unwrap();
        let document =
            json!({ "bootstrapDir": volume.path(), "healthSyncContainers": ["app"], "service": { "port": 8080 } });
        Self { metadata: Metadata::start("web", app), volume, document }
    }

    /// A task that logs in with [`METHOD`] at these servers.
    fn that_logs_in(servers: &str) -> Self {
        let mut task = Self::new();
        task.document["consulHTTPAddr"] = servers.into();
        task.document["consulLogin"] = json!({ "enabled": true, "method": METHOD, "meta": { "team": "shop" } });
        task
    }

    fn command(&self, program: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(binary(program));
        command.env_clear().env("ECS_CONTAINER_METADATA_URI_V4", &self.metadata.uri).env("LOG_LEVEL", "trace");
        command.env("CONSUL_ECS_CONFIG_JSON", self.document.to_string()).envs(variables.iter().copied());
        command
    }

    async fn starts(&self, variables: &[(&str, &str)]) -> Finished {
        let finished = run(&mut self.command("mesh-init", variables), BOUND).await;
        assert_eq!(finished.code, 0, "{}", finished.stderr);
        finished
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.volume.path().join("service-token")).unwrap()
    }

    /// Checks that mesh-init fails with one line that contains all of `texts`, and leaves nothing on the volume.
    async fn fails_with(&self, variables: &[(&str, &str)], texts: &[&str]) {
        let mut command = self.command("mesh-init", variables);
        command.env("LOG_LEVEL", "error").env("MESH_INIT_TIMEOUT", "1s");
        let finished = run(&mut command, BOUND).await;
        let line = finished.stderr.trim_end();
        assert_eq!((finished.code, line.lines().count()), (1, 1), "{line}");
        for text in texts {
            assert!(line.contains(text), "{text:?} is not in {line}");
        }
        assert_eq!(std::fs::read_dir(self.volume.path()).unwrap().count(), 0, "{line}");
    }
}

/// What STS answers to GetCallerIdentity.
pub(super) fn caller_identity() -> Answer {
    let answer = format!(
        "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{USER}</Arn><UserId>AIDAEXAMPLE</UserId>\
         <Account>210987654321</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
    );
    Answer::ok(answer).with_header("Content-Type", "text/xml")
}

fn login_answer(token: &str) -> Value {
    json!({ "AccessorID": "a", "SecretID": token, "Description": "" })
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
