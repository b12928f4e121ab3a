//! moto on loopback: an independent Secrets Manager, ECS and IAM.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, Process, run};
use crate::{eventually, free_port, http, part};

/// A running moto, without any resources at first. Dropping it ends it.
pub struct Moto {
    /// The endpoint of every service.
    pub url: String,
    process: Process,
}

impl Moto {
    /// Starts moto and waits until it answers.
    pub async fn start() -> Self {
        let port = free_port();
        let mut command = Command::new("python3");
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = Process::spawn(command.env("PYTHONPATH", part("moto")));
        let moto = Self { url: format!("http://127.0.0.1:{port}"), process };
        let data = format!("{}/moto-api/data.json", moto.url);
        eventually("moto answers", Duration::from_secs(60), async || {
            http::get(&data).await.map_err(|error| format!("{error}: {}", moto.output()))
        })
        .await;
        moto
    }

    /// Creates a user, with this IAM policy if there is one. Returns the access key and its secret.
    ///
    /// # Panics
    /// When moto refuses.
    pub async fn user(&self, name: &str, policy: Option<&str>) -> [String; 2] {
        let iam = async |arguments: &[&str]| {
            let ended = self.aws(&[&["iam"], arguments].concat()).await;
            assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
            serde_json::from_str::<Value>(&ended.stdout).unwrap_or_default()
        };
        iam(&["create-user", "--user-name", name]).await;
        if let Some(policy) = policy {
            let put = ["put-user-policy", "--user-name", name, "--policy-name", "p", "--policy-document", policy];
            iam(&put).await;
        }
        let key = iam(&["create-access-key", "--user-name", name]).await["AccessKey"].take();
        ["AccessKeyId", "SecretAccessKey"].map(|field| key[field].as_str().expect("moto makes keys").to_owned())
    }

    /// From now on moto accepts only requests with a right signature that the IAM policies of their user allow.
    ///
    /// # Panics
    /// When it doesn't answer.
    pub async fn require_authorization(&self) {
        let reset = format!("{}/moto-api/reset-auth", self.url);
        let (status, body) = http::request("POST", &reset, &[], "0").await.expect("moto answers");
        assert_eq!(status, 200, "{body}");
    }

    /// Runs the AWS CLI against moto.
    pub async fn aws(&self, arguments: &[&str]) -> Finished {
        aws(&self.url, arguments).await
    }

    /// moto's log: a line for each request.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.output()
    }
}

/// Runs the real AWS CLI against an endpoint, with made-up credentials.
pub async fn aws(endpoint: &str, arguments: &[&str]) -> Finished {
    let mut aws = Command::new("python3");
    aws.arg(part("awscli").join("bin/aws")).env("PYTHONPATH", part("awscli"));
    aws.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env_remove("AWS_SESSION_TOKEN");
    aws.env("AWS_REGION", "eu-north-1").env("AWS_DEFAULT_REGION", "eu-north-1");
    aws.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_MAX_ATTEMPTS", "1");
    aws.args(["--endpoint-url", endpoint, "--output", "json"]).args(arguments);
    run(&mut aws, Duration::from_secs(60)).await
}
