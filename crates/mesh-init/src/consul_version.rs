//! The version of the task's Consul agent. Major and minor decide which configuration keys the agent accepts.

use std::str::FromStr;

/// A version of Consul, such as `1.8` or `1.21.4`. The patch and the edition after it do not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConsulVersion {
    major: u32,
    minor: u32,
}

/// The text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a version of Consul, such as 1.8 or 1.21.4")]
pub struct ConsulVersionError;

impl ConsulVersion {
    /// The first version with the stanza `tls`. From then on, Consul warns about the keys that the stanza replaces.
    pub(crate) const TLS_STANZA: Self = Self { major: 1, minor: 12 };
    /// The first version with the key `advertise_reconnect_timeout`.
    pub(crate) const RECONNECT_TIMEOUT: Self = Self { major: 1, minor: 10 };
}

impl FromStr for ConsulVersion {
    type Err = ConsulVersionError;

    fn from_str(text: &str) -> Result<Self, ConsulVersionError> {
        let number = |part: Option<&str>| {
            part.filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|part| part.parse().ok())
                .ok_or(ConsulVersionError)
        };
        let mut parts = text.strip_prefix('v').unwrap_or(text).split(['.', '-', '+']);
        Ok(Self { major: number(parts.next())?, minor: number(parts.next())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_major_and_minor_number() {
        let version = |text: &str| text.parse::<ConsulVersion>().unwrap();
        assert!(version("1.8.7") < ConsulVersion::RECONNECT_TIMEOUT);
        for current in ["1.12", "1.21.4", "v1.22.0-dev", "1.18.2+ent", "2.0.0"] {
            assert!(version(current) >= ConsulVersion::TLS_STANZA, "{current}");
        }
        for wrong in ["", "1", "latest", "1.x", "1.-2"] {
            assert_eq!(wrong.parse::<ConsulVersion>(), Err(ConsulVersionError), "{wrong}");
        }
    }
}
