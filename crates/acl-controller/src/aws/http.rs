//! Connects the AWS SDK to the workspace's HTTP client.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use sidecar_kit::env::Env;
use sidecar_kit::http::{Client, Error, Limits};
use sidecar_kit::tls::{Authorities, TlsOptions, TlsOptionsError};

/// The limits of one attempt. The largest answer is that of DescribeTasks for 100 tasks.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 32 << 20 };

/// A client for the SDK's configuration.
///
/// # Errors
/// When the public CA certificates cannot be read.
pub fn client(env: &Env) -> Result<SharedHttpClient, TlsOptionsError> {
    let options = TlsOptions { authorities: Authorities::public(env)?, ..TlsOptions::default() };
    let connector = SharedHttpConnector::new(Connector(Arc::new(Client::with_tls(&options)?)));
    Ok(http_client_fn(move |_, _| connector.clone()))
}

#[derive(Debug)]
struct Connector(Arc<Client>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            // No request here has a streamed body.
            let whole = |body: SdkBody| Bytes::copy_from_slice(body.bytes().unwrap_or_default());
            let answer = client.send(request.map(|body| whole(body).into()), LIMITS).await.map_err(connector_error)?;
            let mut response = hyper::Response::new(SdkBody::from(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Converts an error. The SDK tries again after `timeout` and `io` errors.
fn connector_error(error: Error) -> ConnectorError {
    match error {
        Error::TimedOut { .. } => ConnectorError::timeout(error.into()),
        Error::Unreachable { .. } | Error::Broken { .. } => ConnectorError::io(error.into()),
        Error::Tls { .. } | Error::TooLarge { .. } | Error::NotHttp { .. } => ConnectorError::other(error.into(), None),
    }
}
