//! The proof for the AWS IAM auth method: a signed sts:GetCallerIdentity request, which Consul's servers send in the task's name. Its
//! header fields hold a signed iam:GetRole (or iam:GetUser) request.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::{Request, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use sidecar_kit::http::{self, Client, Limits};
use sidecar_kit::secret::Secret;

use crate::credentials::Credentials;
use crate::proof::Settings;

const LIMITS: Limits = Limits { time: Duration::from_secs(10), bytes: 64 << 10 };
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
const CALLER: &str = "Action=GetCallerIdentity&Version=2011-06-15";
/// The characters that are escaped in a form: all except letters, digits and `-._~`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why the proof for the AWS IAM method cannot be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AwsError {
    #[error("cannot sign for {server}: check stsEndpoint and the region")]
    Signing { server: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot ask AWS STS for the role of these credentials")]
    Sts(#[from] http::Error),
    #[error("AWS STS at {server} answered {status} to GetCallerIdentity: {excerpt}")]
    Refused { server: String, status: StatusCode, excerpt: String },
    #[error(
        "the credentials are those of {0:?}, neither a role nor a user: expected consulLogin.includeEntity false (in agent-config: --login-include-entity false)"
    )]
    NoEntity(String),
}

impl AwsError {
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Sts(_) | Self::Refused { .. })
    }
}

/// A request with all its header fields, by their names as Go's `http.Header` has them: Consul looks them up that way.
struct Signed {
    url: String,
    headers: BTreeMap<String, Vec<String>>,
    body: String,
}

/// A request to sign, with its service and region.
struct Unsigned<'a> {
    method: &'a str,
    url: &'a str,
    service: &'a str,
    region: &'a str,
    headers: Vec<(String, String)>,
    body: &'a str,
}

/// The bearer token: JSON with the request in base64.
pub(crate) async fn bearer_token(
    settings: &Settings,
    region: &str,
    credentials: &Credentials,
    client: &Client,
) -> Result<Secret, AwsError> {
    let at = SystemTime::now();
    let sts = sts_url(settings.sts_endpoint.as_deref(), region);
    let server_id = settings.server_id.iter().map(|id| ("X-Consul-IAM-ServerID".to_owned(), id.clone()));
    let base = || vec![("Content-Type".to_owned(), FORM.to_owned())];
    let caller = |headers| Unsigned { method: "POST", url: &sts, service: "sts", region, headers, body: CALLER };
    let mut headers = base();
    headers.extend(server_id.clone());
    if settings.include_entity {
        let arn = match &credentials.role_arn {
            Some(arn) => arn.clone(),
            None => ask_for_arn(credentials.sign(caller(base()), at)?, client).await?,
        };
        let body = entity_request(&arn).ok_or(AwsError::NoEntity(arn))?;
        let (url, region) = iam(region);
        let mut entity_headers = base();
        entity_headers.extend(server_id);
        let entity = Unsigned { method: "POST", url, service: "iam", region, headers: entity_headers, body: &body };
        let entity = credentials.sign(entity, at)?;
        let field = |name: &str, value: String| (format!("X-Consul-IAM-GetEntity-{name}"), value);
        headers.extend([
            field("Method", "POST".to_owned()),
            field("URL", entity.url),
            field("Headers", json!(entity.headers).to_string()),
            field("Body", entity.body),
        ]);
    }
    let signed = credentials.sign(caller(headers), at)?;
    let encoded = |text: &str| BASE64_STANDARD.encode(text);
    let token = json!({
        "iam_http_request_method": "POST",
        "iam_request_url": encoded(&signed.url),
        "iam_request_headers": encoded(&json!(signed.headers).to_string()),
        "iam_request_body": encoded(&signed.body),
    });
    Ok(Secret::new(token.to_string()))
}

impl Credentials {
    /// Signs the request with Signature Version 4. The signature covers the given header fields, `host`, and the fields that signing adds.
    fn sign(&self, request: Unsigned<'_>, at: SystemTime) -> Result<Signed, AwsError> {
        let Unsigned { method, url, service, region, headers, body } = request;
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| AwsError::Signing { server: server(url), source };
        let token = self.session_token.as_ref().map(|token| token.expose().to_owned());
        let key = self.secret_access_key.expose();
        let identity =
            aws_credential_types::Credentials::new(&self.access_key_id, key, token, None, "consul-login").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name(service)
            .time(at)
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| failed(error.into()))?
            .into();
        let named = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let signable = SignableRequest::new(method, url, named, SignableBody::Bytes(body.as_bytes()));
        let signed = signable.and_then(|signable| sign(signable, &params));
        let (added, _) = signed.map_err(|error| failed(error.into()))?.into_parts();
        let added = added.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>();
        let headers = headers.into_iter().chain(added).map(|(name, value)| (as_go_has_it(&name), vec![value]));
        Ok(Signed { url: url.to_owned(), headers: headers.collect(), body: body.to_owned() })
    }
}

/// A header's name in Go's form, such as `X-Amz-Date`.
fn as_go_has_it(name: &str) -> String {
    let part = |part: &str| {
        part.get(..1).unwrap_or_default().to_uppercase() + &part.get(1..).unwrap_or_default().to_lowercase()
    };
    name.split('-').map(part).collect::<Vec<_>>().join("-")
}

fn sts_url(endpoint: Option<&str>, region: &str) -> String {
    match endpoint {
        Some(url) => format!("{}/", url.trim_end_matches('/')),
        None if region.starts_with("cn-") => format!("https://sts.{region}.amazonaws.com.cn/"),
        None => format!("https://sts.{region}.amazonaws.com/"),
    }
}

/// The endpoint of IAM, and the region for the signature. Each of AWS's partitions has one of each.
fn iam(region: &str) -> (&'static str, &'static str) {
    if region.starts_with("cn-") {
        ("https://iam.cn-north-1.amazonaws.com.cn/", "cn-north-1")
    } else if region.starts_with("us-gov-") {
        ("https://iam.us-gov.amazonaws.com/", "us-gov-west-1")
    } else {
        ("https://iam.amazonaws.com/", "us-east-1")
    }
}

/// The server of a URL, for an error: the URL itself may hold a password.
fn server(url: &str) -> String {
    url.parse().map_or_else(|_| "a URL that cannot be used".to_owned(), |url| http::server_of(&url))
}

/// Asks STS for the role's ARN. This needs no permission.
async fn ask_for_arn(signed: Signed, client: &Client) -> Result<String, AwsError> {
    let Signed { url, headers, body } = signed;
    let mut request = Request::post(&url);
    for (name, values) in &headers {
        for value in values {
            request = request.header(name, value);
        }
    }
    let request =
        request.body(body.into()).map_err(|error| AwsError::Signing { server: server(&url), source: error.into() })?;
    let answer = client.send(request, LIMITS).await?;
    let text = String::from_utf8_lossy(&answer.body);
    let arn = text.split_once("<Arn>").and_then(|(_, rest)| rest.split_once("</Arn>")).map(|(arn, _)| arn.to_owned());
    match arn {
        Some(arn) if answer.status == StatusCode::OK => Ok(arn),
        _ => Err(AwsError::Refused { server: server(&url), status: answer.status, excerpt: answer.excerpt() }),
    }
}

/// The body of the request for the path and tags of the role or user with this ARN.
fn entity_request(arn: &str) -> Option<String> {
    let mut parts = arn.splitn(6, ':').nth(5)?.split('/');
    let kind = parts.next()?;
    let name = match kind {
        "role" | "user" => parts.next_back(),
        "assumed-role" => parts.next(),
        _ => None,
    };
    let name = utf8_percent_encode(name.filter(|name| !name.is_empty())?, RESERVED);
    Some(match kind {
        "user" => format!("Action=GetUser&UserName={name}&Version=2010-05-08"),
        _ => format!("Action=GetRole&RoleName={name}&Version=2010-05-08"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AWS's own test suite for Signature Version 4: its credentials, date, region and service.
    fn signature(session_token: Option<&str>, request: Unsigned<'_>) -> String {
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session_token: session_token.map(Secret::new),
            role_arn: None,
        };
        let at = humantime::parse_rfc3339("2015-08-30T12:36:00Z").unwrap();
        let signed = credentials.sign(request, at).unwrap();
        assert_eq!(signed.headers["X-Amz-Date"], ["20150830T123600Z"]);
        let authorization = &signed.headers["Authorization"][0];
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/"));
        authorization.split_once("Signature=").unwrap().1.to_owned()
    }

    #[test]
    fn requests_are_signed_as_aws_s_published_vectors_say() {
        let vector = |method, url, service, headers: &[(&str, &str)], body| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            signature(None, Unsigned { method, url, service, region: "us-east-1", headers, body })
        };
        let url = "https://example.amazonaws.com/";
        let get_vanilla = vector("GET", url, "service", &[], "");
        assert_eq!(get_vanilla, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
        let post_vanilla = vector("POST", url, "service", &[], "");
        assert_eq!(post_vanilla, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");
        let form = [("Content-Type", "application/x-www-form-urlencoded")];
        let post_form = vector("POST", url, "service", &form, "Param1=value1");
        assert_eq!(post_form, "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a");
        let list_users = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08";
        let list_users = vector("GET", list_users, "iam", &[("Content-Type", FORM)], "");
        assert_eq!(list_users, "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7");
    }

    #[test]
    fn a_session_token_is_signed_as_in_aws_s_test_vector() {
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8\
                     YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q\
                     6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJab\
                     IQwj2ICCR/oLxBA==";
        let request = Unsigned {
            method: "POST",
            url: "https://example.amazonaws.com/",
            service: "service",
            region: "us-east-1",
            headers: Vec::new(),
            body: "",
        };
        assert_eq!(signature(Some(token), request), "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead");
    }

    #[test]
    fn the_iam_request_names_the_role_or_the_user() {
        let rows = [
            ("arn:aws:iam::1:role/mesh/web", Some("Action=GetRole&RoleName=web&Version=2010-05-08")),
            ("arn:aws:sts::1:assumed-role/a+b/f1a2", Some("Action=GetRole&RoleName=a%2Bb&Version=2010-05-08")),
            ("arn:aws:iam::1:user/team/ann", Some("Action=GetUser&UserName=ann&Version=2010-05-08")),
            ("arn:aws:iam::1:root", None),
            ("arn:aws:sts::1:federated-user/ann", None),
            ("arn:aws:iam::1:role/", None),
            ("nonsense", None),
        ];
        for (arn, expected) in rows {
            assert_eq!(entity_request(arn).as_deref(), expected, "{arn}");
        }
    }

    #[test]
    fn each_partition_has_its_endpoints() {
        assert_eq!(sts_url(None, "eu-north-1"), "https://sts.eu-north-1.amazonaws.com/");
        assert_eq!(sts_url(None, "cn-north-1"), "https://sts.cn-north-1.amazonaws.com.cn/");
        assert_eq!(sts_url(Some("https://vpce.example"), "eu-north-1"), "https://vpce.example/");
        assert_eq!(iam("eu-north-1"), ("https://iam.amazonaws.com/", "us-east-1"));
        assert_eq!(iam("us-gov-east-1").1, "us-gov-west-1");
        assert_eq!(as_go_has_it("X-Consul-IAM-GetEntity-URL"), "X-Consul-Iam-Getentity-Url");
    }
}
