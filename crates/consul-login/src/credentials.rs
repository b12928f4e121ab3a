//! AWS credentials of the task: from the environment, else from the endpoint that ECS sets ("Container credential
//! provider" in the AWS SDKs and Tools Reference Guide).

use std::time::{Duration, SystemTime};

use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use sidecar_kit::env::Env;
use sidecar_kit::http::{self, Client, Limits};
use sidecar_kit::secret::{Secret, SecretFileError, SecretSource};

const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
/// The address at which ECS serves the path in [`RELATIVE`].
const ECS: &str = "http://169.254.170.2";
/// Hosts besides loopback that may be asked without TLS: ECS's and EKS's own.
const PLAIN_HOSTS: [&str; 4] = ["localhost", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];

const LIMITS: Limits = Limits { time: Duration::from_secs(5), bytes: 64 << 10 };

/// The credentials that sign the requests.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: Secret,
    pub(crate) session_token: Option<Secret>,
    /// The role's ARN, if the endpoint gives it.
    pub(crate) role_arn: Option<String>,
}

/// There are no credentials.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CredentialsError {
    #[error(
        "no AWS credentials: expected {RELATIVE}, which ECS sets for a task with a task role, or {FULL}, or \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    None,
    #[error("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: one of them is not set")]
    Half,
    #[error("{variable}: expected {expected}")]
    Variable { variable: &'static str, expected: &'static str },
    #[error("{TOKEN}_FILE")]
    Authorization(#[from] SecretFileError),
    #[error("{TOKEN} has characters that no header field may have")]
    AuthorizationText,
    #[error("no AWS credentials of the task role")]
    Http(#[from] http::Error),
    #[error("no AWS credentials of the task role: {server} answered {status}: {excerpt}")]
    Status { server: String, status: StatusCode, excerpt: String },
    #[error("no AWS credentials of the task role: {0} did not answer with AccessKeyId and SecretAccessKey")]
    Undecodable(String),
    #[error("the AWS credentials from {server} expired at {at}: is the task role still there?")]
    Expired { server: String, at: String },
}

impl CredentialsError {
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Http(_) | Self::Status { .. } | Self::Expired { .. })
    }
}

/// The source of the credentials.
#[derive(Debug)]
pub(crate) enum Source {
    Given(Credentials),
    Endpoint { url: String, authorization: Option<SecretSource> },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    token: Option<String>,
    role_arn: Option<String>,
    expiration: Option<String>,
}

impl Source {
    /// Chooses the source in the order of AWS's SDKs: the environment, the relative URI, the full URI.
    pub(crate) fn from_env(env: &Env) -> Result<Self, CredentialsError> {
        match (env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(key)) => {
                return Ok(Self::Given(Credentials {
                    access_key_id: id.to_owned(),
                    secret_access_key: Secret::new(key),
                    session_token: env.get("AWS_SESSION_TOKEN").map(Secret::new),
                    role_arn: None,
                }));
            }
            (None, None) => {}
            _ => return Err(CredentialsError::Half),
        }
        let authorization = env.secret(TOKEN);
        if let Some(path) = env.get(RELATIVE) {
            let url = format!("{ECS}{path}");
            if !path.starts_with('/') || url.parse::<Uri>().is_err() {
                let expected = "a path that begins with /";
                return Err(CredentialsError::Variable { variable: RELATIVE, expected });
            }
            return Ok(Self::Endpoint { url, authorization });
        }
        let Some(url) = env.get(FULL) else { return Err(CredentialsError::None) };
        let uri = url.parse::<Uri>().ok();
        let usable = uri.is_some_and(|uri| match (uri.scheme_str(), uri.host()) {
            (Some("https"), Some(_)) => true,
            (Some("http"), Some(host)) => PLAIN_HOSTS.contains(&host) || is_loopback(host),
            _ => false,
        });
        if usable {
            Ok(Self::Endpoint { url: url.to_owned(), authorization })
        } else {
            let expected = "https://…, or http:// and a loopback address or that of ECS";
            Err(CredentialsError::Variable { variable: FULL, expected })
        }
    }

    pub(crate) async fn get(&self, client: &Client) -> Result<Credentials, CredentialsError> {
        let (url, authorization) = match self {
            Self::Given(credentials) => return Ok(credentials.clone()),
            Self::Endpoint { url, authorization } => (url, authorization),
        };
        let mut request = Request::get(url);
        if let Some(source) = authorization {
            let mut value = HeaderValue::from_str(source.read()?.expose());
            if let Ok(value) = &mut value {
                value.set_sensitive(true);
            }
            request = request.header(AUTHORIZATION, value.map_err(|_| CredentialsError::AuthorizationText)?);
        }
        // An error must not show the path, because anybody in the task can get the role's keys with it.
        let server = || url.parse().map(|url| http::server_of(&url)).unwrap_or_default();
        let undecodable = || CredentialsError::Undecodable(server());
        let answer = client.send(request.body(Default::default()).map_err(|_| undecodable())?, LIMITS).await?;
        if answer.status != StatusCode::OK {
            let (status, excerpt) = (answer.status, answer.excerpt());
            return Err(CredentialsError::Status { server: server(), status, excerpt });
        }
        // The decoder's error may quote a secret.
        let answer: Answer = serde_json::from_slice(&answer.body).map_err(|_| undecodable())?;
        if let Some(at) = answer.expiration
            && humantime::parse_rfc3339_weak(&at).is_ok_and(|end| end <= SystemTime::now())
        {
            return Err(CredentialsError::Expired { server: server(), at });
        }
        Ok(Credentials {
            access_key_id: answer.access_key_id,
            secret_access_key: Secret::new(answer.secret_access_key),
            session_token: answer.token.filter(|token| !token.is_empty()).map(Secret::new),
            role_arn: answer.role_arn,
        })
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(variables: &[(&str, &str)]) -> Result<String, String> {
        match Source::from_env(&variables.iter().copied().collect()) {
            Ok(Source::Endpoint { url, .. }) => Ok(url),
            Ok(Source::Given(credentials)) => Ok(credentials.access_key_id),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn sources_of_credentials_have_the_order_of_the_aws_sdks() {
        let keys = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "k")];
        let (relative, full) = ((RELATIVE, "/v2/credentials/1"), (FULL, "http://127.0.0.1:1/c"));
        assert_eq!(url(&[keys[0], keys[1], relative, full]).unwrap(), "AKID");
        assert_eq!(url(&[relative, full]).unwrap(), "http://169.254.170.2/v2/credentials/1");
        assert_eq!(url(&[full]).unwrap(), "http://127.0.0.1:1/c");
        assert!(url(&[]).unwrap_err().contains(RELATIVE));
        assert!(url(&[keys[0], full]).unwrap_err().contains("one of them is not set"));
    }

    #[test]
    fn a_full_uri_without_tls_must_name_a_local_host() {
        for usable in ["https://credentials.example/c", "http://[::1]:1/c", "http://169.254.170.23/v1/credentials"] {
            assert_eq!(url(&[(FULL, usable)]).unwrap(), usable);
        }
        for refused in ["http://credentials.example/c", "http://10.0.0.1/c", "ftp://127.0.0.1/c", "/c"] {
            assert!(url(&[(FULL, refused)]).unwrap_err().starts_with(FULL), "{refused}");
        }
        assert!(url(&[(RELATIVE, "v2")]).unwrap_err().starts_with(RELATIVE));
    }
}
