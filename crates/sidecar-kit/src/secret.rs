//! Values that must never be printed.

use std::fmt;
use std::path::PathBuf;

/// A token or a key. Its `Debug` shows nothing of the value and it has no `Display`; [`Secret::expose`] is the one way
/// to the text, so that every use can be found by name.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the text, without white space around it (an editor's last newline is no part of a token).
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().trim().to_owned())
    }

    /// The text itself, for the place that has to send or store it.
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

/// Where a secret comes from: the variable's value, as ECS injects it, or a file that the variable names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// The secret itself.
    Value(Secret),
    /// A file that holds it; read anew each time, so that a rotated secret is picked up.
    File(PathBuf),
}

/// A secret's file could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the secret in {}", path.display())]
pub struct SecretFileError {
    /// The file.
    pub path: PathBuf,
    source: std::io::Error,
}

impl SecretSource {
    /// The secret as it stands now.
    ///
    /// # Errors
    /// When it is in a file that cannot be read or is empty: a secret that was not written yet is none.
    pub fn read(&self) -> Result<Secret, SecretFileError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) if text.trim().is_empty() => {
                    Err(SecretFileError { path: path.clone(), source: std::io::Error::other("it is empty") })
                }
                Ok(text) => Ok(Secret::new(text)),
                Err(source) => Err(SecretFileError { path: path.clone(), source }),
            },
        }
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
    fn a_file_is_read_anew_each_time() {
        let path = std::env::temp_dir().join(format!("secret-{}", std::process::id()));
        let source = SecretSource::File(path.clone());
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), "one");
        std::fs::write(&path, "two\n").unwrap();
        assert_eq!(source.read().unwrap().expose(), "two");
        std::fs::remove_file(&path).unwrap();
        assert!(source.read().unwrap_err().to_string().contains(path.to_str().unwrap()));
    }
}
