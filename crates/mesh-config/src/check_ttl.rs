//! The time to live of the checks that health-sync updates.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// If health-sync does not refresh a check for this long, Consul sets it critical. mesh-init and health-sync register the same checks, so
/// both need the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckTtl(Duration);

/// The value of consul-ecs. A check with it practically never expires.
const MAXIMUM: Duration = Duration::from_secs(100_000 * 60 * 60);
const MINIMUM: Duration = Duration::from_secs(1);

/// The text is not a valid time to live.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a duration from 1s to 100000h, such as 30s")]
pub struct CheckTtlError;

impl CheckTtl {
    /// As a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl Default for CheckTtl {
    /// 30 s.
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl FromStr for CheckTtl {
    type Err = CheckTtlError;

    fn from_str(text: &str) -> Result<Self, CheckTtlError> {
        let duration = humantime::parse_duration(text).map_err(|_| CheckTtlError)?;
        if (MINIMUM..=MAXIMUM).contains(&duration) { Ok(Self(duration)) } else { Err(CheckTtlError) }
    }
}

/// As in Go, which has no unit for days.
impl fmt::Display for CheckTtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        match (milliseconds % 3_600_000, milliseconds % 1_000) {
            (0, _) => write!(f, "{}h", milliseconds / 3_600_000),
            (_, 0) => write!(f, "{}s", milliseconds / 1_000),
            _ => write!(f, "{milliseconds}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_has_consul_s_format_and_is_within_the_limits() {
        let rows = [("30s", "30s"), ("100000h", "100000h"), ("1m 30s", "90s"), ("1500ms", "1500ms"), ("2h", "2h")];
        for (text, written) in rows {
            assert_eq!(text.parse::<CheckTtl>().unwrap().to_string(), written);
        }
        assert_eq!(CheckTtl::default().to_string(), "30s");
        for wrong in ["", "30", "0s", "999ms", "100001h", "-1s", "never"] {
            assert_eq!(wrong.parse::<CheckTtl>(), Err(CheckTtlError), "{wrong}");
        }
    }
}
