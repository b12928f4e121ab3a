//! Decides whether the mesh runs the vendors' images of Consul and Envoy, or stand-ins from package registries.

use std::fmt;
use std::time::Duration;

use tokio::process::Command;

use crate::command::run;

/// The vendor's Consul, the one that mesh-task takes for production.
pub const CONSUL: &str = mesh_task::CONSUL_IMAGE;

/// The vendor's Envoy, a version that this Consul supports.
pub const ENVOY: &str = "envoyproxy/envoy:v1.34.1";

/// How long the decision may take.
const BOUND: Duration = Duration::from_secs(10);

/// The variables of which each replaces Consul or Envoy.
const VARIABLES: [&str; 4] = ["CONSUL", "CONSUL_IMAGE", "ENVOY", "ENVOY_IMAGE"];

/// Where Consul and Envoy come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Programs {
    /// The images [`CONSUL`] and [`ENVOY`].
    Vendors,
    /// The packages of Debian and PyPI, or what the variables name.
    StandIns {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vendors => write!(f, "Consul and Envoy: the vendors' images {CONSUL} and {ENVOY}"),
            Self::StandIns { reason } => {
                write!(f, "Consul and Envoy: stand-ins from Debian's and PyPI's packages ({reason})")
            }
        }
    }
}

/// Takes the vendors' images if this machine has them or can pull them. `stand_ins` asks for the stand-ins, and so does each variable
/// that names another Consul or Envoy.
pub async fn choose(stand_ins: bool) -> Programs {
    if stand_ins {
        return Programs::StandIns { reason: "--stand-ins".to_owned() };
    }
    let is_set = |variable: &&str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    let set: Vec<_> = VARIABLES.into_iter().filter(is_set).collect();
    if !set.is_empty() {
        return Programs::StandIns { reason: format!("except for {}", set.join(" and ")) };
    }
    let both = async { tokio::join!(can_have(CONSUL), can_have(ENVOY)) };
    match tokio::time::timeout(BOUND, both).await {
        Ok((Ok(()), Ok(()))) => Programs::Vendors,
        Ok((Err(reason), _) | (_, Err(reason))) => Programs::StandIns { reason },
        Err(_) => {
            let bound = humantime::format_duration(BOUND);
            Programs::StandIns { reason: format!("no image registry answers within {bound}") }
        }
    }
}

/// Whether Docker has this image, or a registry has it.
async fn can_have(image: &str) -> Result<(), String> {
    let local = ["image", "inspect", "--format", "{{.Id}}", image];
    if run(Command::new("docker").args(local)).await.is_ok() {
        return Ok(());
    }
    let remote = run(Command::new("docker").args(["manifest", "inspect", image])).await;
    remote.map(drop).map_err(|_| format!("cannot pull {image}"))
}
