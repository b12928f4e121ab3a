//! A login at the servers' gRPC.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use consul_grpc::{Connection, LoginRequest, Servers};
use ecs_meta::Task;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;

use crate::login::{LOGOUT_AT_ONE, LoginError, UNANSWERED, cure};
use crate::proof::Prover;

/// A login that a task makes through the servers' gRPC.
#[derive(Debug)]
pub struct GrpcLogin {
    prover: Prover,
    servers: Arc<Servers>,
    partition: Option<String>,
    datacenter: Option<String>,
    /// Whether the log says that a login had no answer.
    reported: AtomicBool,
}

impl GrpcLogin {
    /// A login at these servers, in this admin partition and in the datacenter of the auth method.
    #[must_use]
    pub fn new(prover: Prover, servers: Arc<Servers>, partition: Option<String>, datacenter: Option<String>) -> Self {
        Self { prover, servers, partition, datacenter, reported: AtomicBool::new(false) }
    }

    /// Logs in. Other servers may not know the token for some 80 ms: a `consul_grpc::Follower` confirms it before it is used.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn log_in(&self, task: &Task) -> Result<Secret, LoginError> {
        let proof = self.prover.bearer_token(task).await?;
        let request = LoginRequest {
            auth_method: self.prover.method().to_owned(),
            bearer_token: proof.expose().to_owned(),
            meta: self.prover.meta(task),
            namespace: String::new(),
            partition: self.partition.clone().unwrap_or_default(),
            datacenter: self.datacenter.clone().unwrap_or_default(),
        };
        let log_in = |server: Connection| {
            let request = request.clone();
            async move { server.login(request).await }
        };
        let token = self.servers.call_beside_stream(false, log_in).await.map_err(|error| self.judge(error))?;
        tracing::info!("logged in with {}: token with accessor ID {}", self.prover.method(), token.accessor_id);
        Ok(token.secret_id)
    }

    fn judge(&self, error: consul_grpc::Error) -> LoginError {
        if error.may_have_arrived() && !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!("a login had no answer ({}): {UNANSWERED}", one_line(&error));
        }
        match error.message().and_then(cure) {
            Some(cure) => {
                let method = self.prover.method().to_owned();
                LoginError::Refused { method, cure, source: error.into() }
            }
            None => LoginError::Grpc(error),
        }
    }

    /// Deletes the token.
    ///
    /// # Errors
    /// If no server answers, or if the token is not from a login.
    pub async fn log_out(&self, token: &Secret) -> Result<(), LoginError> {
        let datacenter = self.datacenter.as_deref();
        let log_out =
            |server: Connection| async move { server.answering_within(LOGOUT_AT_ONE).logout(token, datacenter).await };
        Ok(self.servers.call_beside_stream(true, log_out).await?)
    }
}
