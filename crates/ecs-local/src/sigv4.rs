//! Signature Version 4 of a POST to `/` ("Create a signed AWS API request" in the IAM User Guide).

use std::fmt::Write;

use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, sign as hmac};
use sidecar_kit::secret::Secret;
use time::OffsetDateTime;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who signs.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: Secret,
    /// With temporary credentials only.
    pub(crate) session_token: Option<Secret>,
}

/// For which service, where and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) service: &'a str,
    pub(crate) region: &'a str,
    pub(crate) at: OffsetDateTime,
}

impl Scope<'_> {
    /// The value of `X-Amz-Date`.
    pub(crate) fn timestamp(self) -> String {
        let at = self.at.to_utc();
        format!("{}T{:02}{:02}{:02}Z", self.date(), at.hour(), at.minute(), at.second())
    }

    fn date(self) -> String {
        let at = self.at.to_utc();
        format!("{:04}{:02}{:02}", at.year(), u8::from(at.month()), at.day())
    }
}

impl Credentials {
    /// The value of `Authorization` for a request with these header fields (lower-case names, in alphabetical order), which
    /// it must carry, and this body.
    pub(crate) fn authorization(&self, scope: Scope<'_>, headers: &[(&str, &str)], body: &[u8]) -> String {
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect::<String>();
        let canonical = format!("POST\n/\n\n{lines}\n{names}\n{}", hex(digest(&SHA256, body).as_ref()));
        let (date, Scope { region, service, .. }) = (scope.date(), scope);
        let credential_scope = format!("{date}/{region}/{service}/aws4_request");
        let hash = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
        let to_sign = format!("{ALGORITHM}\n{}\n{credential_scope}\n{hash}", scope.timestamp());
        let signature = hex(hmac(&self.signing_key(scope), to_sign.as_bytes()).as_ref());
        let id = &self.access_key_id;
        format!("{ALGORITHM} Credential={id}/{credential_scope}, SignedHeaders={names}, Signature={signature}")
    }

    fn signing_key(&self, scope: Scope<'_>) -> Key {
        let first = Key::new(HMAC_SHA256, format!("AWS4{}", self.secret_access_key.expose()).as_bytes());
        let parts = [&scope.date(), scope.region, scope.service, "aws4_request"];
        parts.iter().fold(first, |key, part| Key::new(HMAC_SHA256, hmac(&key, part.as_bytes()).as_ref()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_signed_as_botocore_signs_it() {
        let credentials = Credentials {
            access_key_id: "AKIAEXAMPLE".to_owned(),
            secret_access_key: Secret::new("an/example+key"),
            session_token: None,
        };
        let at = OffsetDateTime::from_unix_timestamp(1_925_089_445).unwrap();
        let scope = Scope { service: "secretsmanager", region: "eu-north-1", at };
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("host", "127.0.0.1:5000"),
            ("x-amz-date", "20310102T030405Z"),
            ("x-amz-target", "secretsmanager.GetSecretValue"),
        ];
        assert_eq!(scope.timestamp(), headers[2].1);
        let authorization = credentials.authorization(scope, &headers, br#"{"SecretId":"a"}"#);
        assert_eq!(
            authorization,
            "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20310102/eu-north-1/secretsmanager/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-target, \
             Signature=c5fc73db44827c4fac20cd745cc544bf4f957fc8c820c3f3d30d89d63db92d87"
        );
    }
}
