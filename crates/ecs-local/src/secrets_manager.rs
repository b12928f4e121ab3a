//! A client for the calls of Secrets Manager that the local mesh needs: `GetSecretValue`, `CreateSecret` and `PutSecretValue` ("AWS
//! Secrets Manager API Reference"; AWS JSON 1.1).

use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sidecar_kit::env::Env;
use sidecar_kit::http::{self, Client, Limits};
use sidecar_kit::secret::{Secret, SecretFileError, SecretSource};

const SERVICE: &str = "secretsmanager";
const JSON: &str = "application/x-amz-json-1.1";
const ENDPOINTS: [&str; 2] = ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"];
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// A secret has at most 64 KiB.
const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 1 << 20 };

/// Why the variables with the endpoint and the credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// None of the endpoint's variables is set. There is no default, because this program must not use the real Secrets Manager.
    #[error(
        "AWS_ENDPOINT_URL_SECRETS_MANAGER and AWS_ENDPOINT_URL are not set: expected http://host:port, such as moto's"
    )]
    NoEndpoint,
    /// The endpoint is not `http://host:port`.
    #[error("{variable} is {value:?}: expected http://host:port")]
    Endpoint {
        /// The variable.
        variable: &'static str,
        /// Its value; not shown if it may contain a password.
        value: String,
    },
    /// The file of a credential cannot be read.
    #[error(transparent)]
    Credential(#[from] SecretFileError),
}

/// Why a call of Secrets Manager failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Secrets Manager did not answer.
    #[error("no answer from Secrets Manager")]
    Unanswered(#[source] http::Error),
    /// Secrets Manager refused the call.
    #[error("Secrets Manager refused {action}: {status}: {kind}: {message}")]
    Refused {
        /// The call.
        action: &'static str,
        /// The HTTP status.
        status: StatusCode,
        /// AWS's code of the error.
        kind: String,
        /// What it said.
        message: String,
    },
    /// IAM forbids the call.
    #[error(
        "Secrets Manager refused {action}: {said}; the IAM policy must have \
         {{\"Effect\":\"Allow\",\"Action\":\"secretsmanager:{action}\",\"Resource\":\"{resource}\"}}"
    )]
    Denied {
        /// The call.
        action: &'static str,
        /// What it said.
        said: String,
        /// The secret's ARN, or a pattern for the ARNs of this name.
        resource: String,
    },
    /// The answer has a wrong form. The error does not show the answer, because the answer may have the secret.
    #[error("Secrets Manager's answer is not that of GetSecretValue")]
    Malformed,
    /// The secret is binary. ECS does not accept binary secrets.
    #[error("the secret holds no text")]
    Binary,
    /// The request cannot be signed, or a value is not valid in a header.
    #[error("cannot sign the request to Secrets Manager: check AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN and AWS_REGION")]
    Unsigned(#[source] Box<dyn Error + Send + Sync>),
    /// Neither the secret's ARN nor a variable names a region.
    #[error("AWS_REGION is not set, and the secret is not given by its ARN: expected a region such as us-east-1")]
    NoRegion,
}

impl CallError {
    /// Whether there is no such secret.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { kind, .. } if kind == "ResourceNotFoundException")
    }

    /// Whether the same request may succeed later: the secret does not exist yet, or Secrets Manager does not answer yet.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unanswered(_) => true,
            Self::Refused { status, kind, .. } => {
                status.is_server_error() || self.is_missing() || kind.starts_with("Throttling")
            }
            Self::Denied { .. } | Self::Malformed | Self::Binary | Self::Unsigned(_) | Self::NoRegion => false,
        }
    }
}

/// A version of a secret, as `GetSecretValue` names it. Without a stage and an ID it is the current version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// The secret's name or ARN.
    pub secret_id: String,
    /// A stage such as `AWSPREVIOUS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_stage: Option<String>,
    /// The version's ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
}

impl Version {
    /// The current version of a secret.
    #[must_use]
    pub fn current(secret_id: &str) -> Self {
        Self { secret_id: secret_id.to_owned(), version_stage: None, version_id: None }
    }

    /// The region in the secret's ARN; none if the secret is given by its name.
    fn region(&self) -> Option<&str> {
        self.secret_id.strip_prefix("arn:")?.split(':').nth(2)
    }
}

/// A client of Secrets Manager, with its credentials.
pub struct SecretsManager {
    client: Client,
    /// The endpoint's URL.
    pub endpoint: Uri,
    region: Option<String>,
    credentials: Credentials,
}

impl fmt::Debug for SecretsManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretsManager({})", self.endpoint)
    }
}

impl SecretsManager {
    /// Creates a client from the AWS SDKs' variables. If there are no credentials, it signs with invented ones. moto accepts them
    /// unless it is configured to check credentials.
    pub fn from_env(env: &Env) -> Result<Self, SettingsError> {
        let endpoint = ENDPOINTS.iter().find_map(|variable| Some((*variable, env.get(variable)?)));
        let (variable, value) = endpoint.ok_or(SettingsError::NoEndpoint)?;
        let shown = if value.contains('@') { "(not shown)" } else { value };
        let wrong = || SettingsError::Endpoint { variable, value: shown.to_owned() };
        let endpoint: Uri = value.parse().map_err(|_| wrong())?;
        let plain = endpoint.scheme_str() == Some("http") && ["", "/"].contains(&endpoint.path());
        if !plain || endpoint.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(wrong());
        }
        let read = |name: &str| env.secret(name).as_ref().map(SecretSource::read).transpose();
        let secret_access_key = read("AWS_SECRET_ACCESS_KEY")?.unwrap_or_else(|| Secret::new("ecs-local"));
        let session_token = read("AWS_SESSION_TOKEN")?.map(|token| token.expose().to_owned());
        let access_key_id = env.get("AWS_ACCESS_KEY_ID").unwrap_or("ecs-local");
        let credentials = Credentials::new(access_key_id, secret_access_key.expose(), session_token, None, "ecs-local");
        let region = REGIONS.iter().find_map(|variable| env.get(variable)).map(str::to_owned);
        Ok(Self { client: Client::plain(), endpoint, region, credentials })
    }

    /// Reads a secret's text. The request is signed for the region in the secret's ARN, otherwise for the region of the variables.
    pub async fn get(&self, version: &Version) -> Result<Secret, CallError> {
        let body = serde_json::to_vec(version).unwrap_or_default();
        let answer = self.call("GetSecretValue", version.region(), body).await.map_err(|error| match error {
            CallError::Refused { action, kind, message, .. }
                if kind.starts_with("AccessDenied") || message.contains("<Code>AccessDenied</Code>") =>
            {
                CallError::Denied { action, said: message, resource: self.arn(version) }
            }
            error => error,
        })?;
        let value: Value = serde_json::from_slice(&answer.body).map_err(|_| CallError::Malformed)?;
        value.secret_string.map(Secret::new).ok_or(CallError::Binary)
    }

    /// The secret's ARN or a pattern for it, for an IAM policy. AWS adds a hyphen and six characters to the name.
    fn arn(&self, version: &Version) -> String {
        let id = &version.secret_id;
        let region = self.region.as_deref().unwrap_or("*");
        if id.starts_with("arn:") {
            id.clone()
        } else {
            format!("arn:aws:secretsmanager:{region}:*:secret:{id}-??????")
        }
    }

    /// Creates a secret with this text. Returns false if a secret with this name exists already, and does not change it.
    pub async fn create(&self, name: &str, text: &Secret) -> Result<bool, CallError> {
        let body = json!({ "Name": name, "SecretString": text.expose() }).to_string();
        match self.call("CreateSecret", None, body.into()).await {
            Ok(_) => Ok(true),
            Err(CallError::Refused { kind, .. }) if kind == "ResourceExistsException" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds a new current version with this text to a secret.
    pub async fn put(&self, secret_id: &str, text: &Secret) -> Result<(), CallError> {
        let body = json!({ "SecretId": secret_id, "SecretString": text.expose() }).to_string();
        self.call("PutSecretValue", None, body.into()).await.map(drop)
    }

    async fn call(
        &self,
        action: &'static str,
        region: Option<&str>,
        body: Vec<u8>,
    ) -> Result<http::Response, CallError> {
        let region = region.or(self.region.as_deref()).ok_or(CallError::NoRegion)?;
        let request = self.request(action, region, SystemTime::now(), body)?;
        let answer = self.client.send(request, LIMITS).await.map_err(CallError::Unanswered)?;
        if answer.status == StatusCode::OK { Ok(answer) } else { Err(refused(action, &answer)) }
    }

    /// Builds a request with Signature Version 4.
    fn request(&self, action: &str, region: &str, at: SystemTime, body: Vec<u8>) -> Result<http::Request, CallError> {
        let host = self.endpoint.authority().map_or("", |authority| authority.as_str());
        let target = format!("secretsmanager.{action}");
        let headers = [(CONTENT_TYPE.as_str(), JSON), (HOST.as_str(), host), ("x-amz-target", &target)];
        let mut request = hyper::Request::builder().method(Method::POST).uri(&self.endpoint);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let unsigned = |error: Box<dyn Error + Send + Sync>| CallError::Unsigned(error);
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(SERVICE)
            .time(at)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| unsigned(error.into()))?
            .into();
        let url = self.endpoint.to_string();
        let signable = SignableRequest::new("POST", url, headers.into_iter(), SignableBody::Bytes(&body));
        let signed = signable.and_then(|signable| sign(signable, &params)).map_err(|error| unsigned(error.into()))?;
        for (name, value) in signed.output().headers() {
            request = request.header(name, value);
        }
        request.body(body.into()).map_err(|error| unsigned(error.into()))
    }
}

/// The error of a refused call. If IAM refuses the call, moto answers with XML.
fn refused(action: &'static str, answer: &http::Response) -> CallError {
    let status = answer.status;
    match serde_json::from_slice::<Refusal>(&answer.body) {
        Ok(Refusal { kind, message }) => {
            CallError::Refused { action, status, kind: kind.rsplit('#').next().unwrap_or_default().to_owned(), message }
        }
        Err(_) => CallError::Refused { action, status, kind: "not JSON".to_owned(), message: answer.excerpt() },
    }
}

/// The only field of the answer that this client uses.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Value {
    secret_string: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: String,
}

#[cfg(test)]
mod tests {
    use sidecar_kit::exit::one_line;

    use super::*;

    fn from_env(variables: &[(&str, &str)]) -> Result<SecretsManager, SettingsError> {
        SecretsManager::from_env(&variables.iter().copied().collect())
    }

    #[test]
    fn an_endpoint_is_required_and_the_service_s_own_wins() {
        let both = [("AWS_ENDPOINT_URL", "http://all:1"), ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://own:2")];
        assert_eq!(from_env(&both).unwrap().endpoint, "http://own:2");
        assert_eq!(from_env(&both[..1]).unwrap().endpoint, "http://all:1");
        assert!(matches!(from_env(&[]), Err(SettingsError::NoEndpoint)));
        let (url, password) = ("http://own/path", "http://me:pass@own");
        for (wrong, shown) in [("own", "own"), ("https://own", "https://own"), (url, url), (password, "(not shown)")] {
            let error = from_env(&[("AWS_ENDPOINT_URL", wrong)]).unwrap_err().to_string();
            assert_eq!(error, format!("AWS_ENDPOINT_URL is {shown:?}: expected http://host:port"));
        }
    }

    #[test]
    fn debug_shows_neither_credentials_nor_a_secret() {
        let manager = from_env(&[
            ("AWS_ENDPOINT_URL", "http://all:1"),
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
            ("AWS_SESSION_TOKEN", "t0k3n"),
        ])
        .unwrap();
        let shown = format!("{manager:?} {:?}", manager.credentials);
        assert!(!shown.contains("s3cr3t") && !shown.contains("t0k3n"), "{shown}");
    }

    #[test]
    fn a_request_is_signed_as_botocore_signs_it() {
        let manager = from_env(&[
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:5000"),
            ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "an/example+key"),
        ]);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_925_089_445);
        let body = br#"{"SecretId":"a"}"#.to_vec();
        let request = manager.unwrap().request("GetSecretValue", "eu-north-1", at, body).unwrap();
        assert_eq!(request.headers()["x-amz-date"], "20310102T030405Z");
        assert_eq!(
            request.headers()["authorization"],
            "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20310102/eu-north-1/secretsmanager/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-target, \
             Signature=c5fc73db44827c4fac20cd745cc544bf4f957fc8c820c3f3d30d89d63db92d87"
        );
    }

    #[tokio::test]
    async fn a_secret_s_name_without_a_region_is_refused() {
        let manager = from_env(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]).unwrap();
        let error = manager.get(&Version::current("a")).await.unwrap_err();
        assert!(!error.may_pass() && one_line(&error).starts_with("AWS_REGION is not set"), "{error}");
    }
}
