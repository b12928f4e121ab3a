//! A task's secrets. ECS's agent reads the `secrets` of a container definition and sets variables. This module writes files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::file::{WriteError, write_atomically};
use sidecar_kit::secret::Secret;
use sidecar_kit::signals::{SignalsError, StopSignals};
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::secrets_manager::{CallError, SecretsManager, SettingsError, Version};

/// The group may read the files. The containers of a task share this group.
const MODE: u32 = 0o640;

/// One of a task's secrets, written as `NAME=valueFrom`.
///
/// As in ECS, `valueFrom` is a secret's ARN, followed by a JSON key, a version stage and a version ID, separated by colons. Each of
/// these three may be empty ("Pass Secrets Manager secrets through Amazon ECS environment variables" in the Amazon ECS Developer
/// Guide). Here a secret's name may replace its ARN, and trailing colons may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSecret {
    name: String,
    version: Version,
    json_key: Option<String>,
}

/// Why a text is not a valid [`TaskSecret`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskSecretError {
    /// There is no `=`.
    #[error("expected NAME=SECRET[:json-key[:version-stage[:version-id]]]")]
    NoName,
    /// The name is not valid for a variable.
    #[error("{0:?} is not a name for a variable: expected letters, digits and _, not beginning with a digit")]
    Name(String),
    /// The text after `=` is neither a secret's ARN nor a secret's name.
    #[error(
        "{0:?} is neither the ARN of a secret (arn:<partition>:secretsmanager:<region>:<account>:secret:<name>) nor the name \
         of one, followed by at most :json-key:version-stage:version-id"
    )]
    ValueFrom(String),
}

impl FromStr for TaskSecret {
    type Err = TaskSecretError;

    fn from_str(text: &str) -> Result<Self, TaskSecretError> {
        let (name, value_from) = text.split_once('=').ok_or(TaskSecretError::NoName)?;
        let of_a_variable = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(of_a_variable) {
            return Err(TaskSecretError::Name(name.to_owned()));
        }
        let wrong = || TaskSecretError::ValueFrom(value_from.to_owned());
        let parts = value_from.split(':').collect::<Vec<_>>();
        let of_the_secret = match parts[..] {
            ["arn", partition, "secretsmanager", region, account, "secret", id, ..]
                if [partition, region, account, id].iter().all(|part| !part.is_empty()) =>
            {
                7
            }
            ["arn", ..] => return Err(wrong()),
            _ => 1,
        };
        // The characters that "SecretString" in the Secrets Manager API Reference allows in a name.
        let id = parts[of_the_secret - 1];
        let of_a_secret = |c: char| c.is_ascii_alphanumeric() || "/_+=.@!-".contains(c);
        if id.is_empty() || !id.chars().all(of_a_secret) || parts.len() > of_the_secret + 3 {
            return Err(wrong());
        }
        let rest = |index: usize| parts.get(of_the_secret + index).filter(|part| !part.is_empty());
        let owned = |part: &&str| (*part).to_owned();
        Ok(Self {
            name: name.to_owned(),
            json_key: rest(0).map(owned),
            version: Version {
                secret_id: parts[..of_the_secret].join(":"),
                version_stage: rest(1).map(owned),
                version_id: rest(2).map(owned),
            },
        })
    }
}

/// The settings of [`secrets`].
#[derive(Debug, Clone)]
pub struct SecretsOptions {
    /// The secrets, under different names.
    pub secrets: Vec<TaskSecret>,
    /// The directory of the files.
    pub dir: PathBuf,
    /// How long to wait until all secrets are there.
    pub timeout: Duration,
}

/// Why a task's secrets were not written.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// Two secrets have the same name, and so the same file.
    #[error("two secrets have the name {0}")]
    SameName(String),
    /// A variable is wrong or missing.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The program cannot catch TERM and INT.
    #[error(transparent)]
    Signals(#[from] SignalsError),
    /// TERM or INT came before all secrets were there.
    #[error("told to end before all of the task's secrets were there")]
    Ended,
    /// Not all secrets were there in time, or waiting cannot help.
    #[error(transparent)]
    Wait(#[from] WaitError<SecretError>),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The secret that has no value, and why.
#[derive(Debug, thiserror::Error)]
#[error("{name} from {secret_id}")]
pub struct SecretError {
    name: String,
    secret_id: String,
    source: ValueError,
}

/// Why a secret has no value.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The request to Secrets Manager failed.
    #[error(transparent)]
    Get(#[from] CallError),
    /// The value is `{}` or empty: nobody has filled it in yet.
    #[error("the secret is still empty")]
    Empty,
    /// The secret has no such key, or an empty value under the key.
    #[error("the secret has no key {0} yet")]
    NoKey(String),
    /// A key is asked for, but the secret has no keys. The error does not show the secret's value.
    #[error("the secret is not a JSON object, so it has no key {0}")]
    NotJson(String),
}

impl ValueError {
    fn may_pass(&self) -> bool {
        match self {
            Self::Get(error) => error.may_pass(),
            Self::Empty | Self::NoKey(_) => true,
            Self::NotJson(_) => false,
        }
    }
}

/// Reads a task's secrets from Secrets Manager, waits until all are there, and then writes each one to a file with its name. The
/// AWS SDKs' variables give the endpoint, the region and the credentials.
///
/// # Errors
/// If the environment is wrong, if Secrets Manager refuses for good, or if not all secrets are there in time or before TERM or
/// INT. In these cases no file has been written. If a file cannot be written, the files before it have been written.
pub async fn secrets(options: SecretsOptions, env: &Env) -> Result<ExitCode, SecretsError> {
    let SecretsOptions { secrets, dir, timeout } = options;
    let mut names = BTreeSet::new();
    if let Some(again) = secrets.iter().find(|secret| !names.insert(&secret.name)) {
        return Err(SecretsError::SameName(again.name.clone()));
    }
    let manager = SecretsManager::from_env(env)?;
    let what = format!("the task's secrets from {}", manager.endpoint);
    let mut signals = StopSignals::catch()?;
    let values = until(&what, timeout, Backoff::default(), async || match read_all(&manager, &secrets).await {
        Ok(values) => Attempt::Done(values),
        Err(error) if error.source.may_pass() => Attempt::Again(error),
        Err(error) => Attempt::Final(error),
    });
    let values = tokio::select! {
        values = values => values?,
        _ = signals.next() => return Err(SecretsError::Ended),
    };
    for (secret, value) in secrets.iter().zip(&values) {
        write_atomically(&dir.join(&secret.name), value.expose().as_bytes(), MODE)?;
    }
    let names = names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    tracing::info!("wrote {names} to {}", dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Reads the values of all secrets. It reads each version once, so several values from one version belong together.
async fn read_all(manager: &SecretsManager, secrets: &[TaskSecret]) -> Result<Vec<Secret>, SecretError> {
    let mut texts: Vec<(&Version, Secret)> = Vec::new();
    let mut values = Vec::new();
    for secret in secrets {
        let failed =
            |source| SecretError { name: secret.name.clone(), secret_id: secret.version.secret_id.clone(), source };
        if !texts.iter().any(|(version, _)| **version == secret.version) {
            texts.push((&secret.version, manager.get(&secret.version).await.map_err(|error| failed(error.into()))?));
        }
        let text = texts.iter().find(|(version, _)| **version == secret.version).map(|(_, text)| text);
        let text = text.expect("each version has been read");
        values.push(value(text, secret.json_key.as_deref()).map_err(failed)?);
    }
    Ok(values)
}

/// The whole text, or the value of a JSON key: a string without its quotes, anything else as JSON.
fn value(text: &Secret, json_key: Option<&str>) -> Result<Secret, ValueError> {
    let object = serde_json::from_str::<Map<String, Value>>(text.expose());
    if text.expose().is_empty() || object.as_ref().is_ok_and(Map::is_empty) {
        return Err(ValueError::Empty);
    }
    let Some(key) = json_key else { return Ok(text.clone()) };
    // serde's error would show a part of the secret.
    let object = object.map_err(|_| ValueError::NotJson(key.to_owned()))?;
    match object.get(key) {
        None | Some(Value::Null) => Err(ValueError::NoKey(key.to_owned())),
        Some(Value::String(held)) if held.trim().is_empty() => Err(ValueError::NoKey(key.to_owned())),
        Some(Value::String(held)) => Ok(Secret::new(held)),
        Some(held) => Ok(Secret::new(held.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, secret_id: &str, [key, stage, id]: [&str; 3]) -> TaskSecret {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        TaskSecret {
            name: name.to_owned(),
            json_key: some(key),
            version: Version { secret_id: secret_id.to_owned(), version_stage: some(stage), version_id: some(id) },
        }
    }

    #[test]
    fn a_secret_is_parsed_from_its_arn_or_its_name() {
        let arn = "arn:aws:secretsmanager:eu-north-1:210987654321:secret:dev/db-AbCdEf";
        let rows = [
            (format!("T={arn}"), secret("T", arn, ["", "", ""])),
            (format!("T={arn}:token::"), secret("T", arn, ["token", "", ""])),
            (format!("T={arn}::AWSPREVIOUS:"), secret("T", arn, ["", "AWSPREVIOUS", ""])),
            (
                format!("T={arn}:token:AWSCURRENT:{:032}", 7),
                secret("T", arn, ["token", "AWSCURRENT", &format!("{:032}", 7)]),
            ),
            ("_T1=mesh-web".to_owned(), secret("_T1", "mesh-web", ["", "", ""])),
            ("T=a/b_c+d=e.f@g-h:token".to_owned(), secret("T", "a/b_c+d=e.f@g-h", ["token", "", ""])),
        ];
        for (text, expected) in rows {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn an_invalid_secret_is_refused_and_shown_in_the_error() {
        let value_from = |text: &str| TaskSecretError::ValueFrom(text.to_owned());
        let name = |text: &str| TaskSecretError::Name(text.to_owned());
        let rows = [
            ("T", TaskSecretError::NoName),
            ("=a", name("")),
            ("../T=a", name("../T")),
            ("1T=a", name("1T")),
            ("T=", value_from("")),
            ("T=a b", value_from("a b")),
            ("T=a:k:s:v:more", value_from("a:k:s:v:more")),
            ("T=arn:aws:ssm:eu-north-1:2:parameter/a", value_from("arn:aws:ssm:eu-north-1:2:parameter/a")),
            ("T=arn:aws:secretsmanager::2:secret:a", value_from("arn:aws:secretsmanager::2:secret:a")),
        ];
        for (text, error) in rows {
            assert_eq!(text.parse::<TaskSecret>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_string_has_no_quotes_and_other_values_are_json() {
        let text = Secret::new(r#"{"token":"t\"1","ttl":30,"list":[1]}"#);
        let of = |key| value(&text, key).unwrap().expose().to_owned();
        assert_eq!(of(Some("token")), "t\"1");
        assert_eq!(of(Some("ttl")), "30");
        assert_eq!(of(Some("list")), "[1]");
        assert_eq!(of(None), text.expose());
        assert_eq!(value(&Secret::new("plain"), None).unwrap().expose(), "plain");
    }

    #[test]
    fn an_empty_secret_is_waited_for_but_not_a_malformed_one() {
        let error = |text: &str, key: Option<&str>| value(&Secret::new(text), key).unwrap_err();
        for (text, key) in [
            ("{}", Some("token")),
            ("{}", None),
            (" ", None),
            (r#"{"a":1}"#, Some("token")),
            (r#"{"token":""}"#, Some("token")),
        ] {
            assert!(error(text, key).may_pass(), "{text}");
        }
        for text in ["s3cr3t", r#""s3cr3t""#, r#"{"token": s3cr3t"#] {
            let error = error(text, Some("token"));
            assert!(!error.may_pass());
            assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error:?}");
        }
    }
}
