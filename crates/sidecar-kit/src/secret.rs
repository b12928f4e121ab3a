//! Values that must never be printed.

use std::fmt;
use std::path::{Path, PathBuf};

/// A token or a key. `Debug` shows nothing of it, and there is no `Display`. Only [`Secret::expose`] returns the text, so a search for this
/// name finds every use.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Trims the text: a newline that an editor adds is no part of a token.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().trim().to_owned())
    }

    /// The text, to send or store it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The source of a secret: a variable's value, as ECS sets it, or a file that a variable names.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The secret itself.
    Value(Secret),
    /// A file with the secret. It is read each time, so that a rotated secret takes effect.
    File(PathBuf),
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(secret) => secret.fmt(f),
            Self::File(path) => write!(f, "File({})", shown_secret_path(path)),
        }
    }
}

/// A secret's file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the secret in {file}")]
pub struct SecretFileError {
    /// The file's name, if it may be shown.
    file: String,
    source: std::io::Error,
}

impl SecretSource {
    /// Reads the secret.
    ///
    /// # Errors
    /// When its file cannot be read, or is empty because the secret has not been written yet.
    pub fn read(&self) -> Result<Secret, SecretFileError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => {
                let failed = |source| SecretFileError { file: shown_secret_path(path), source };
                let text = std::fs::read_to_string(path).map_err(failed)?;
                if text.trim().is_empty() {
                    Err(failed(std::io::Error::other("it is empty")))
                } else {
                    Ok(Secret::new(text))
                }
            }
        }
    }
}

/// A variable's value for a message, in quotes. A secret may be in the wrong variable. So the message does not show PEM, JSON, an
/// address with a password, or a very long text.
#[must_use]
pub fn shown(value: &str) -> String {
    let may_be_secret = value.contains(['@', '{', '\n']) || value.contains("-----") || value.chars().count() > 80;
    if may_be_secret { "a value that is not shown".to_owned() } else { format!("{value:?}") }
}

/// The name of a file for a message. If the variable holds the file's text instead of its name, the text is not shown.
#[must_use]
pub fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.contains("-----") || text.contains(['\n', '{']) {
        "a file: the variable holds a text where the name of a file belongs (not shown)".to_owned()
    } else {
        text.into_owned()
    }
}

/// The name of a secret's file for a message. A token has no slash, but a key in base64 may begin with one.
fn shown_secret_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with(['/', '.']) && !text.ends_with('=') {
        shown_path(path)
    } else {
        "a file: the variable holds something else than the full name of a file (not shown, it may be the secret)"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_value() {
        let source = SecretSource::Value(Secret::new("b1gs33cr3t"));
        assert!(!format!("{source:?}").contains("b1gs33cr3t"));
    }

    #[test]
    fn an_error_does_not_show_a_secret_given_as_a_file_name() {
        let secrets = [
            "6f1c2c1e-0000-4000-8000-5ec3e7000000",
            "{\"accessor_id\":\"a\",\"token\":\"5ec3e7\"}",
            "/UqJrVyVRj5jsiYEkM/5ec3e7==",
            "-----BEGIN PRIVATE KEY-----\n5ec3e7\n-----END PRIVATE KEY-----",
            "/-----BEGIN PRIVATE KEY-----5ec3e7",
        ];
        for secret in secrets {
            let source = SecretSource::File(secret.into());
            let error = source.read().unwrap_err();
            let line = crate::exit::one_line(&error);
            assert!(line.contains("not shown"), "{line}");
            assert!(!format!("{line} {error:?} {source:?}").contains("5ec3e7"), "{line}");
        }
        for file in ["/run/secrets/token", "./token"] {
            let error = SecretSource::File(file.into()).read().unwrap_err();
            assert!(error.to_string().ends_with(file), "{error}");
        }
    }

    #[test]
    fn a_value_is_shown_unless_it_may_be_a_secret() {
        assert_eq!(shown("ftp://consul"), "\"ftp://consul\"");
        for hidden in ["http://user:5ec3e7@consul", "-----BEGIN PRIVATE KEY----- 5ec3e7", "{\"token\":\"5ec3e7\"}"] {
            assert_eq!(shown(hidden), "a value that is not shown", "{hidden}");
        }
        assert_eq!(shown(&"x".repeat(81)), "a value that is not shown");
    }

    #[test]
    fn a_secret_s_file_is_read_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let source = SecretSource::File(path.clone());
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), "one");
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), "two");
        std::fs::remove_file(&path).unwrap();
        assert!(source.read().unwrap_err().to_string().contains(path.to_str().unwrap()));
    }
}
