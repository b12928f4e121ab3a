//! Whose token a token is: what the names of secrets and policy are, and what descriptions say.

use std::collections::BTreeSet;

use consul_api::{AclLink, ServiceIdentity, TokenGrants};

/// What makes a token ours, before the cluster.
const CLUSTER: &str = "consul.hashicorp.com/cluster: ";
/// Whose token it is, so that this is known also when somebody has changed its identity.
const SERVICE: &str = "consul.hashicorp.com/service-name: ";
const CLIENTS: &str = "consul.hashicorp.com/consul-client: true";

/// Who has a token and the secret that holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenOwner {
    /// All consul-clients.
    Clients,
    /// A service's tasks.
    Service(String),
}

impl std::fmt::Display for TokenOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Clients => f.write_str("client token"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// The names of what belongs to one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The cluster's name or ARN, as the tokens have it.
    pub cluster: String,
    /// What the secrets' and the policy's names begin with.
    pub prefix: String,
}

impl Names {
    /// The name of an owner's secret.
    #[must_use]
    pub fn secret(&self, owner: &TokenOwner) -> String {
        match owner {
            TokenOwner::Clients => format!("{}-consul-client-token", self.prefix),
            TokenOwner::Service(service) => format!("{}-{service}", self.prefix),
        }
    }

    /// The name of the consul-clients' policy.
    #[must_use]
    pub fn policy(&self) -> String {
        format!("{}-consul-client-policy", self.prefix)
    }

    /// Whether a token is ours.
    #[must_use]
    pub fn is_ours(&self, token: &TokenGrants) -> bool {
        token.description.lines().any(|line| line.trim().strip_prefix(CLUSTER) == Some(&self.cluster))
    }

    /// Whose token this is; none if it isn't ours, or nothing says whose.
    #[must_use]
    pub fn owner(&self, token: &TokenGrants) -> Option<TokenOwner> {
        let line = |start: &str| token.description.lines().find_map(|line| line.trim().strip_prefix(start));
        if !self.is_ours(token) {
            return None;
        }
        if let Some(service) = line(SERVICE) {
            return Some(TokenOwner::Service(service.to_owned()));
        }
        if line(CLIENTS).is_some() {
            return Some(TokenOwner::Clients);
        }
        // Tokens of an earlier generation name nobody.
        match (&token.service_identities[..], &token.policies[..]) {
            ([identity], _) => Some(TokenOwner::Service(identity.service_name.clone())),
            ([], [policy]) if policy.name == self.policy() => Some(TokenOwner::Clients),
            _ => None,
        }
    }

    /// What an owner's token is to be. `links` are the services that a terminating gateway speaks for besides itself.
    #[must_use]
    pub fn grants(&self, owner: &TokenOwner, links: &BTreeSet<String>) -> TokenGrants {
        let cluster = format!("{CLUSTER}{}", self.cluster);
        match owner {
            TokenOwner::Clients => TokenGrants {
                description: format!("Token of the consul-clients, kept by acl-controller\n{cluster}\n{CLIENTS}"),
                policies: vec![AclLink { id: String::new(), name: self.policy() }],
                ..TokenGrants::default()
            },
            TokenOwner::Service(service) => TokenGrants {
                description: format!(
                    "Token of the service {service}, kept by acl-controller\n{cluster}\n{SERVICE}{service}"
                ),
                service_identities: [service]
                    .into_iter()
                    .chain(links.iter().filter(|link| *link != service))
                    .map(|name| ServiceIdentity { service_name: name.clone(), datacenters: Vec::new() })
                    .collect(),
                ..TokenGrants::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names { cluster: "blue".into(), prefix: "p".into() }
    }

    fn web() -> TokenOwner {
        TokenOwner::Service("web".into())
    }

    #[test]
    fn ours_is_what_has_the_whole_line_and_a_token_keeps_its_owner_under_another_identity() {
        let mut grants = names().grants(&web(), &BTreeSet::new());
        grants.service_identities[0].service_name = "api".into();
        assert_eq!(names().owner(&grants), Some(web()));
        assert_eq!(names().owner(&names().grants(&TokenOwner::Clients, &BTreeSet::new())), Some(TokenOwner::Clients));
        for description in ["", "consul.hashicorp.com/cluster: blue2", "see consul.hashicorp.com/cluster: blue", "blue"]
        {
            assert_eq!(names().owner(&TokenGrants { description: description.into(), ..grants.clone() }), None);
        }
        let earlier = "Token for the api service\nconsul.hashicorp.com/cluster: blue";
        let earlier = TokenGrants { description: earlier.into(), ..grants };
        assert_eq!(names().owner(&earlier), Some(TokenOwner::Service("api".into())));
    }
}
