//! The environment as a value. A test can pass its own, and no function reads variables that its caller does not see.

use std::collections::BTreeMap;
use std::fmt;

use crate::secret::{Secret, SecretSource};

/// A set of environment variables. An empty variable counts as not set, because an ECS task definition or a compose file
/// cannot always leave a variable out.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect()
    }

    /// The variable's value, if it is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A copy with this variable set, for example by a flag.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Where the secret `NAME` comes from: the file in `NAME_FILE` if that is set, else the value of `NAME`. Consul uses the same order for
    /// `CONSUL_HTTP_TOKEN_FILE` and `CONSUL_HTTP_TOKEN`.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<SecretSource> {
        if let Some(path) = self.get(&format!("{name}_FILE")) {
            return Some(SecretSource::File(path.into()));
        }
        self.get(name).map(|value| SecretSource::Value(Secret::new(value)))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Env {
    /// Shows only the names, because some values are tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_unset_and_a_file_wins() {
        let env = Env::from_iter([("A", ""), ("T", "value"), ("T_FILE", "/run/t"), ("U", "s3cr3t")]);
        assert_eq!(env.get("A"), None);
        assert_eq!(env.secret("T"), Some(SecretSource::File("/run/t".into())));
        assert_eq!(env.secret("U"), Some(SecretSource::Value(Secret::new("s3cr3t"))));
        assert!(!format!("{env:?}").contains("s3cr3t"));
    }
}
