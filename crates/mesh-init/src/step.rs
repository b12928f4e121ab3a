//! What registering at an agent and in the catalog share: the error of a step, and taking registrations out again.

use std::time::Duration;

use consul_api::ServiceId;
use mesh_config::Names;
use sidecar_kit::exit::one_line;
use sidecar_kit::wait::WaitError;

/// How long deregistering may delay the report of an error.
const DEREGISTER_BOUND: Duration = Duration::from_secs(5);

/// Why a step of the registration failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StepError {
    #[error("cannot {step}")]
    Consul { step: String, source: Box<WaitError<consul_api::Error>> },
    #[error("cannot {step} (expected a token with the service identity {service})")]
    Denied { step: String, service: String, source: Box<WaitError<consul_api::Error>> },
}

impl StepError {
    pub(crate) fn new(step: String, source: WaitError<consul_api::Error>, names: &Names) -> Self {
        let denied =
            matches!(source, WaitError::TimedOut { last: Some(consul_api::Error::PermissionDenied { .. }), .. });
        let source = Box::new(source);
        if denied {
            Self::Denied { step, service: names.service.clone(), source }
        } else {
            Self::Consul { step, source }
        }
    }
}

/// Deregisters these services in this order, each with one call of `deregister`. A failure is only logged.
pub(crate) async fn deregister_all<'a>(
    ids: impl Iterator<Item = &'a ServiceId>,
    deregister: impl AsyncFn(&ServiceId) -> Result<(), consul_api::Error>,
) {
    let all = async {
        for id in ids {
            match deregister(id).await {
                Ok(()) => tracing::info!("deregistered {id}"),
                Err(consul_api::Error::NotFound { .. }) => {}
                Err(error) => tracing::warn!("cannot deregister {id}: {}", one_line(&error)),
            }
        }
    };
    if tokio::time::timeout(DEREGISTER_BOUND, all).await.is_err() {
        tracing::warn!("cannot deregister: Consul did not answer within {DEREGISTER_BOUND:?}");
    }
}
