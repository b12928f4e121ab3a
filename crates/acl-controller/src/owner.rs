//! Token owners: the names of their secrets and policies, and the descriptions of their tokens.
//!
//! A description begins as the controllers of consul-ecs 0.2 to 0.4 write it, and acl-controller adds its own lines. The controller of 0.4
//! deletes a token if its description has a line with this cluster, unless the first line names a service that has tasks. So the token
//! of a service has these two lines as 0.4 writes them. The token of the consul-clients names the cluster under another key, so that 0.4
//! does not find it.

use std::collections::BTreeSet;

use consul_api::{AclLink, Policy, ServiceIdentity, TokenGrants};
use ecs_meta::ClusterArn;

use crate::rotation::SUPERSEDED;
use crate::tasks::may_be_identity;

/// The line with the cluster of a service's token. consul-ecs writes it too, with the cluster's name or its ARN.
const CLUSTER: &str = "consul.hashicorp.com/cluster: ";
/// The line with the cluster of the consul-clients' token. It must not contain [`CLUSTER`], by which consul-ecs 0.4 finds its tokens.
const CLIENTS_OF: &str = "consul.hashicorp.com/consul-clients-of: ";
/// The line with the service of a token. It stays right even if somebody changes the token's service identity.
const SERVICE: &str = "consul.hashicorp.com/service-name: ";
/// The first line of the consul-clients' token.
const CLIENT_TOKEN: &str = "ECS Consul client Token";

/// The owner of a token and of the secret with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenOwner {
    /// All consul-clients.
    Clients,
    /// The tasks of this service.
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

/// Who made the token that a secret holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// This cluster's controller: Consul lists the token with this cluster's line, or Consul does not list it and the record has it.
    Ourselves,
    /// The controller of another cluster, for the service of the same name: the service has moved.
    SameService,
    /// Somebody else in this Consul, for another purpose.
    Another,
    /// Unknown: the token belongs to another Consul, or was deleted before it was recorded.
    Unknown,
}

/// The names of one cluster's secrets, policies and keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The cluster. The name alone is not enough: two accounts or regions may each have a cluster `default`.
    pub cluster: ClusterArn,
    /// The start of the names of secrets and policies; empty if the controller uses no secrets.
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

    /// The name of the mesh gateways' policy.
    #[must_use]
    pub fn mesh_gateway_policy(&self) -> String {
        format!("{}-mesh-gateway-policy", self.prefix)
    }

    /// Adds what a mesh gateway's token needs beside its service identity.
    #[must_use]
    pub fn of_mesh_gateway(&self, grants: TokenGrants) -> TokenGrants {
        let policies = vec![AclLink { id: String::new(), name: self.mesh_gateway_policy() }];
        TokenGrants { policies, ..grants }
    }

    /// Whether a token belongs to a mesh gateway.
    #[must_use]
    pub fn is_of_mesh_gateway(&self, token: &TokenGrants) -> bool {
        token.policies.iter().any(|policy| policy.name == self.mesh_gateway_policy())
    }

    /// A key in Consul's KV store for this cluster's controllers.
    #[must_use]
    pub fn key(&self, below: &str) -> String {
        format!("ecs-mesh/acl-controller/{}/{below}", self.cluster)
    }

    /// Whether secrets with this other prefix may have the same names as this cluster's secrets.
    #[must_use]
    pub fn collides(&self, other: &str) -> bool {
        let begins = |one: &str, with: &str| one.strip_prefix(with).is_some_and(|rest| rest.starts_with('-'));
        begins(&self.prefix, other) || begins(other, &self.prefix)
    }

    /// The owner of a token; none if the token belongs to another cluster or its owner is unknown.
    #[must_use]
    pub fn owner(&self, token: &TokenGrants) -> Option<TokenOwner> {
        let cluster = self.cluster.to_string();
        if line(token, CLIENTS_OF) == Some(&cluster) {
            return Some(TokenOwner::Clients);
        }
        if lines(token, CLUSTER).any(|of| of == cluster) { service(token).map(TokenOwner::Service) } else { None }
    }

    /// The possible owner of a token of consul-ecs 0.2 to 0.4. For tasks on EC2, consul-ecs wrote only the cluster's name into the token,
    /// and for the consul-clients no cluster. So acl-controller takes the token over only if this owner's secret holds it.
    #[must_use]
    pub fn former_owner(&self, token: &TokenGrants) -> Option<TokenOwner> {
        let is_clients = token.description.trim() == CLIENT_TOKEN
            && matches!(&token.policies[..], [policy] if policy.name == self.policy());
        if is_clients {
            Some(TokenOwner::Clients)
        } else if lines(token, CLUSTER).any(|of| of == self.cluster.name()) && self.owner(token).is_none() {
            service(token).map(TokenOwner::Service)
        } else {
            None
        }
    }

    /// Who made the token in an owner's secret. `token`: what Consul lists under its accessor ID. `is_recorded`: this cluster's controllers
    /// have recorded that they stored it.
    #[must_use]
    pub fn maker(&self, owner: &TokenOwner, token: Option<&TokenGrants>, is_recorded: bool) -> Maker {
        let Some(token) = token else { return if is_recorded { Maker::Ourselves } else { Maker::Unknown } };
        let is_same = match owner {
            TokenOwner::Clients => token.description.lines().next() == Some(CLIENT_TOKEN),
            TokenOwner::Service(name) => line(token, CLUSTER).is_some() && service(token).as_ref() == Some(name),
        };
        if self.owner(token).is_some() {
            Maker::Ourselves
        } else if is_same {
            Maker::SameService
        } else {
            Maker::Another
        }
    }

    /// The service of a policy that consul-ecs 0.4 made for this cluster; none for other policies.
    #[must_use]
    pub fn policy_of_consul_ecs<'a>(&self, policy: &'a Policy) -> Option<&'a str> {
        let service = policy.name.strip_suffix("-service")?;
        let of = policy.description.strip_prefix(&format!("Policy for {service} service\n{CLUSTER}"))?;
        (of == self.cluster.name() || of == self.cluster.to_string()).then_some(service)
    }

    /// The grants that an owner's token should have. `links` are the services that a terminating gateway links.
    #[must_use]
    pub fn grants(&self, owner: &TokenOwner, links: &BTreeSet<String>) -> TokenGrants {
        let cluster = &self.cluster;
        match owner {
            TokenOwner::Clients => TokenGrants {
                description: format!("{CLIENT_TOKEN}\n{CLIENTS_OF}{cluster}"),
                policies: vec![AclLink { id: String::new(), name: self.policy() }],
                ..TokenGrants::default()
            },
            TokenOwner::Service(service) => TokenGrants {
                description: format!("Token for {service} service\n{CLUSTER}{cluster}\n{SERVICE}{service}"),
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

/// Whether a token's description begins with the right lines.
#[must_use]
pub fn is_described(wanted: &TokenGrants, found: &TokenGrants) -> bool {
    found.description.strip_prefix(&wanted.description).is_some_and(|rest| rest.is_empty() || rest.starts_with('\n'))
}

/// The right description for a token. Other lines of the found description stay, such as `superseded-by`.
#[must_use]
pub fn described(wanted: &TokenGrants, found: &TokenGrants) -> String {
    if is_described(wanted, found) {
        return found.description.clone();
    }
    let ours = |line: &&str| [CLUSTER, CLIENTS_OF, SERVICE].iter().any(|key| line.trim().starts_with(key));
    let first = |line: &&str| service_in_first_line(line).is_some() || *line == CLIENT_TOKEN;
    let kept = found.description.lines().filter(|line| !ours(line) && !first(line) && !line.trim().is_empty());
    // The superseded lines stay last.
    let (superseded, kept) = kept.partition::<Vec<_>, _>(|line| line.trim().starts_with(SUPERSEDED));
    std::iter::once(wanted.description.as_str()).chain(kept).chain(superseded).collect::<Vec<_>>().join("\n")
}

fn lines<'a>(token: &'a TokenGrants, key: &'a str) -> impl Iterator<Item = &'a str> {
    token.description.lines().filter_map(move |line| line.trim().strip_prefix(key))
}

fn line<'a>(token: &'a TokenGrants, key: &'a str) -> Option<&'a str> {
    lines(token, key).next()
}

fn service_in_first_line(line: &str) -> Option<&str> {
    line.strip_prefix("Token for ")?.strip_suffix(" service")
}

/// The service of a controller's token. Here all service names are lower case, but consul-ecs accepts capitals. A token for a name
/// with capitals is left alone: this controller would find no tasks for it, and delete it while tasks use it.
fn service(token: &TokenGrants) -> Option<String> {
    let described = || token.description.lines().next().and_then(service_in_first_line);
    let identity = || match &token.service_identities[..] {
        [identity] => Some(identity.service_name.as_str()),
        _ => None,
    };
    let name = line(token, SERVICE).or_else(described).or_else(identity)?;
    may_be_identity(name).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLUE: &str = "arn:aws:ecs:eu-north-1:210987654321:cluster/blue";

    fn names() -> Names {
        Names { cluster: BLUE.parse().unwrap(), prefix: "p".into() }
    }

    fn web() -> TokenOwner {
        TokenOwner::Service("web".into())
    }

    /// A token with this description and a policy, as consul-ecs 0.4 makes them.
    fn described_as(description: &str, policy: &str) -> TokenGrants {
        let policies = vec![AclLink { id: "1".into(), name: policy.into() }];
        TokenGrants { description: description.into(), policies, ..TokenGrants::default() }
    }

    /// The service of a token that consul-ecs 0.4.1 takes for its own, in the cluster with this name or ARN. consul-ecs deletes the token if
    /// this service has no tasks.
    fn claimed_by_consul_ecs<'a>(description: &'a str, cluster: &str) -> Option<&'a str> {
        let claimed = description.contains(&format!("consul.hashicorp.com/cluster: {cluster}"));
        let first = description.split_once('\n').map_or(description, |(first, _)| first);
        claimed.then(|| service_in_first_line(first).unwrap_or_default())
    }

    #[test]
    fn consul_ecs_0_4_claims_only_the_tokens_of_services() {
        let grants = |owner: &TokenOwner| names().grants(owner, &BTreeSet::new());
        assert_eq!(claimed_by_consul_ecs(&grants(&web()).description, BLUE), Some("web"));
        assert_eq!(claimed_by_consul_ecs(&grants(&web()).description, "blue"), None);
        for cluster in [BLUE, "blue", ""] {
            assert_eq!(claimed_by_consul_ecs(&grants(&TokenOwner::Clients).description, cluster), None);
        }
    }

    #[test]
    fn a_token_s_lines_name_its_cluster_and_its_owner() {
        let mut grants = names().grants(&web(), &BTreeSet::new());
        grants.service_identities[0].service_name = "api".into();
        assert_eq!(names().owner(&grants), Some(web()));
        assert_eq!(names().owner(&names().grants(&TokenOwner::Clients, &BTreeSet::new())), Some(TokenOwner::Clients));
        let arn = |account: &str| grants.description.replace("210987654321", account);
        let other_account = arn("111122223333");
        let longer = grants.description.replace("cluster/blue", "cluster/blue-2");
        let inside = format!("see {CLUSTER}{BLUE}");
        for description in ["", "blue", &inside, &longer, &other_account] {
            assert_eq!(names().owner(&described_as(description, "any")), None, "{description}");
            assert_eq!(names().former_owner(&described_as(description, "any")), None, "{description}");
        }
    }

    #[test]
    fn a_token_of_consul_ecs_has_an_owner_or_a_former_owner() {
        let of = |first: &str, cluster: &str| described_as(&format!("{first}\n{CLUSTER}{cluster}"), "web-service");
        let names = names();
        let both = |token: &TokenGrants| (names.owner(token), names.former_owner(token));
        assert_eq!(both(&of("Token for web service", BLUE)), (Some(web()), None));
        assert_eq!(both(&of("Token for web service", "blue")), (None, Some(web())));
        assert_eq!(both(&of("Token for web service", "green")), (None, None));
        // No service identity can have a name with capitals.
        for cluster in [BLUE, "blue"] {
            assert_eq!(both(&of("Token for Caps service", cluster)), (None, None));
        }
        assert_eq!(both(&described_as(CLIENT_TOKEN, "p-consul-client-policy")), (None, Some(TokenOwner::Clients)));
        assert_eq!(both(&described_as(CLIENT_TOKEN, "q-consul-client-policy")), (None, None));
    }

    #[test]
    fn the_maker_is_known_from_the_list_or_the_record() {
        let names = names();
        let maker = |token: Option<&TokenGrants>, recorded| names.maker(&web(), token, recorded);
        let green = Names { cluster: BLUE.replace("blue", "green").parse().unwrap(), ..names.clone() };
        let api = TokenOwner::Service("api".into());
        let rows = [
            (Some(names.grants(&web(), &BTreeSet::new())), false, Maker::Ourselves),
            (Some(names.grants(&api, &BTreeSet::new())), false, Maker::Ourselves),
            (Some(green.grants(&web(), &BTreeSet::new())), false, Maker::SameService),
            (Some(green.grants(&api, &BTreeSet::new())), false, Maker::Another),
            (Some(green.grants(&api, &BTreeSet::new())), true, Maker::Another),
            (Some(described_as("by hand", "web")), false, Maker::Another),
            (None, true, Maker::Ourselves),
            (None, false, Maker::Unknown),
        ];
        for (token, recorded, expected) in rows {
            assert_eq!(maker(token.as_ref(), recorded), expected, "{token:?} {recorded}");
        }
        let clients = green.grants(&TokenOwner::Clients, &BTreeSet::new());
        assert_eq!(names.maker(&TokenOwner::Clients, Some(&clients), false), Maker::SameService);
        assert_eq!(names.maker(&web(), Some(&clients), false), Maker::Another);
    }

    #[test]
    fn a_takeover_changes_only_the_controller_s_lines() {
        let wanted = names().grants(&web(), &BTreeSet::new());
        let ours = &wanted.description;
        let rows = [
            (format!("Token for web service\n{CLUSTER}blue"), ours.clone()),
            (format!("by hand\n{CLUSTER}{BLUE}"), format!("{ours}\nby hand")),
            (format!("{SUPERSEDED}b\nToken for web service\n{CLUSTER}{BLUE}"), format!("{ours}\n{SUPERSEDED}b")),
            (format!("{ours}\n{SUPERSEDED}b"), format!("{ours}\n{SUPERSEDED}b")),
            (format!("{ours}-2"), ours.clone()),
        ];
        for (found, expected) in rows {
            let found = described_as(&found, "web-service");
            assert_eq!(described(&wanted, &found), expected);
            assert_eq!(names().owner(&TokenGrants { description: expected, ..found }), Some(web()));
        }
    }

    #[test]
    fn only_an_exact_description_marks_a_consul_ecs_policy() {
        let policy = |name: &str, description: &str| {
            let (name, description) = (name.to_owned(), description.to_owned());
            Policy { id: "1".into(), name, description, rules: String::new(), datacenters: Vec::new(), modify_index: 1 }
        };
        let of = |cluster: &str| format!("Policy for web service\n{CLUSTER}{cluster}");
        let names = names();
        for (name, description, expected) in [
            ("web-service", of(BLUE), Some("web")),
            ("web-service", of("blue"), Some("web")),
            ("web-service", of("green"), None),
            ("web-service", of(BLUE) + "\nkept by hand", None),
            ("api-service", of(BLUE), None),
            ("web-service", "for web".to_owned(), None),
        ] {
            assert_eq!(names.policy_of_consul_ecs(&policy(name, &description)), expected, "{name} {description}");
        }
    }
}
