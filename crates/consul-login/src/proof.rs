//! The proof of a task's identity, for an auth method.

use std::collections::BTreeMap;

use ecs_meta::Task;
use sidecar_kit::env::Env;
use sidecar_kit::http;
use sidecar_kit::secret::{Secret, SecretSource};
use sidecar_kit::tls::{Authorities, TlsOptions};

use crate::aws;
use crate::credentials::Source;
use crate::login::LoginError;

/// The variable with the proof for a login that is not AWS IAM.
pub const BEARER_TOKEN: &str = "CONSUL_LOGIN_BEARER_TOKEN";

/// How to log in.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The auth method's name.
    pub method: String,
    /// Give the auth method the role's path and tags.
    pub include_entity: bool,
    /// Meta of the login, besides the task and its cluster.
    pub meta: BTreeMap<String, String>,
    /// The AWS region of STS; else `AWS_REGION`, else the task's.
    pub region: Option<String>,
    /// The URL of STS; else the region's.
    pub sts_endpoint: Option<String>,
    /// The value of `X-Consul-IAM-ServerID`.
    pub server_id: Option<String>,
}

#[derive(Debug)]
enum Proof {
    Given(SecretSource),
    Aws { credentials: Source, region: Option<String> },
}

/// Makes proofs for an auth method.
#[derive(Debug)]
pub struct Prover {
    settings: Settings,
    proof: Proof,
    aws: http::Client,
}

impl Prover {
    /// Checks what is given, without a request. The proof is the text in `CONSUL_LOGIN_BEARER_TOKEN` or its file; else a request that is
    /// signed with the task's AWS credentials.
    ///
    /// # Errors
    /// When credentials are missing or a variable cannot be used.
    pub fn new(settings: Settings, env: &Env) -> Result<Self, LoginError> {
        let proof = match env.secret(BEARER_TOKEN) {
            Some(source) => Proof::Given(source),
            None => {
                let region = settings.region.clone().or_else(|| env.get("AWS_REGION").map(str::to_owned));
                Proof::Aws { credentials: Source::from_env(env)?, region }
            }
        };
        let options = TlsOptions { authorities: Authorities::public(env)?, ..TlsOptions::default() };
        Ok(Self { settings, proof, aws: http::Client::with_tls(&options)? })
    }

    /// The auth method's name.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.settings.method
    }

    pub(crate) fn is_aws(&self) -> bool {
        matches!(self.proof, Proof::Aws { .. })
    }

    /// The meta of a login.
    #[must_use]
    pub fn meta(&self, task: &Task) -> BTreeMap<String, String> {
        meta(&self.settings.meta, task)
    }

    /// A new proof. A signature is valid for some minutes only, so each login needs a new one.
    ///
    /// # Errors
    /// If the credentials or the role cannot be read.
    pub async fn bearer_token(&self, task: &Task) -> Result<Secret, LoginError> {
        match &self.proof {
            Proof::Given(source) => Ok(source.read()?),
            Proof::Aws { credentials, region } => {
                let credentials = credentials.get(&self.aws).await?;
                let region = region.as_deref().unwrap_or_else(|| task.task_arn.region());
                Ok(aws::bearer_token(&self.settings, region, &credentials, &self.aws).await?)
            }
        }
    }
}

/// The meta of a login: the task and its cluster, with the same keys as in consul-ecs, and the user's, which wins.
#[must_use]
pub fn meta(user: &BTreeMap<String, String>, task: &Task) -> BTreeMap<String, String> {
    let cluster = task.cluster_arn().map_or_else(|_| task.cluster.clone(), |arn| arn.to_string());
    let mut meta = BTreeMap::from([
        ("consul.hashicorp.com/task-id".to_owned(), task.task_id().to_string()),
        ("consul.hashicorp.com/cluster".to_owned(), cluster),
    ]);
    meta.extend(user.clone());
    meta
}
