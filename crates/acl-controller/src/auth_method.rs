//! Sets up what tasks need to log in with their IAM role: an auth method, its binding rules, and the roles and policies of gateways. The
//! names are those of consul-ecs, so that either controller can take over from the other.
//!
//! What a team has added stays: keys, principals and tags of the auth method, binding rules, and the rights of roles.

use std::collections::BTreeSet;

use consul_api::{AclLink, AuthMethod, BindingRule, NewPolicy, Role, TokenEntry, TokenGrants};
use ecs_meta::ClusterArn;
use serde_json::{Map, Value};

use crate::controller::Controller;
use crate::error::Error;
use crate::observe::Lists;
use crate::policies::RightPolicies;
use crate::term::Term;

/// The tags of an IAM role.
const SERVICE_NAME: &str = "consul.hashicorp.com.service-name";
const NAMESPACE: &str = "consul.hashicorp.com.namespace";
const GATEWAY_KIND: &str = "consul.hashicorp.com.gateway-kind";

/// The type of the auth method.
const AWS_IAM: &str = "aws-iam";

/// The accessor ID of the anonymous token, which Consul uses for requests that have no token.
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";

/// A policy: its name, its description and its rules.
type PolicyOf = (&'static str, &'static str, &'static str);

/// Each kind of gateway with its role, and the policy of the role. A terminating gateway's rights depend on the services that it links, so
/// the team gives them to the role.
const GATEWAYS: [(&str, &str, Option<PolicyOf>); 3] = [
    (
        "api-gateway",
        "consul-ecs-api-gateway-role",
        Some((
            "consul-ecs-api-gateway-policy",
            "What every API gateway may do, written by acl-controller",
            API_GATEWAY_RULES,
        )),
    ),
    ("terminating-gateway", "consul-ecs-terminating-gateway-role", None),
    (
        "mesh-gateway",
        "consul-ecs-mesh-gateway-role",
        Some((
            "consul-ecs-mesh-gateway-policy",
            "What every mesh gateway that logs in may do, written by acl-controller",
            MESH_GATEWAY_RULES,
        )),
    ),
];

/// The rules of API gateways.
pub const API_GATEWAY_RULES: &str =
    r#"mesh = "read" node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;
/// The rules of mesh gateways that log in.
pub const MESH_GATEWAY_RULES: &str = r#"mesh = "write" peering = "read""#;
/// The rules of requests without a token. A mesh gateway sends such requests to other datacenters, and must be able to read there.
pub const ANONYMOUS_RULES: &str = r#"node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;

const ANONYMOUS_POLICY: PolicyOf =
    ("anonymous-token-policy", "What requests without a token may do, written by acl-controller", ANONYMOUS_RULES);

/// The settings of the auth method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthMethodOptions {
    /// Its name.
    pub name: String,
    /// The path of the IAM roles that may log in.
    pub iam_role_path: String,
}

impl Controller {
    /// Makes sure that tasks can log in with their IAM role.
    ///
    /// # Errors
    /// When a part failed. The next cycle tries again.
    pub(crate) async fn keep_auth_method(
        &self,
        term: &Term,
        options: &AuthMethodOptions,
        right: &mut RightPolicies,
        lists: &Lists,
    ) -> Result<bool, Error> {
        let AuthMethodOptions { name, iam_role_path } = options;
        let found = self.consul.auth_method(name).await?;
        if let Some(found) = found.as_ref().filter(|found| found.kind != AWS_IAM) {
            return Err(Error::OtherAuthMethod { name: name.clone(), kind: found.kind.clone() });
        }
        let wanted = merged(found.as_ref(), name, principals(&self.names.cluster, iam_role_path));
        if found.as_ref() != Some(&wanted) {
            self.consul.put_auth_method(term, &wanted).await?;
            tracing::info!("auth method {name}: {}", made(found.is_some()));
        }
        let anonymous = self.consul.is_primary().then_some(ANONYMOUS_POLICY);
        for (name, description, rules) in GATEWAYS.iter().filter_map(|(.., policy)| *policy).chain(anonymous) {
            let new = NewPolicy { name, description, rules };
            self.ensure_policy(term, &new, right, &lists.policies).await?;
        }
        let roles = self.consul.roles().await?;
        for (kind, name, policy) in GATEWAYS {
            let found = roles.iter().find(|role| role.name == name);
            let wanted = with_policy(found, kind, name, policy.map(|(name, ..)| name));
            if found != Some(&wanted) {
                self.consul.put_role(term, &wanted).await?;
                tracing::info!("role {name}: {}", made(found.is_some()));
            }
        }
        let rules = self.consul.binding_rules(name).await?;
        for wanted in missing(&binding_rules(name), &rules) {
            self.consul.put_binding_rule(term, &wanted).await?;
            tracing::info!(
                "binding rule for {} {}: {}",
                wanted.bind_type,
                wanted.bind_name,
                made(!wanted.id.is_empty())
            );
        }
        if anonymous.is_some()
            && let Some((token, wanted)) = anonymous_token(&lists.tokens)
        {
            self.consul.update_token(term, &token.accessor_id, &wanted).await?;
            tracing::info!("anonymous token: has the policy {} from now on", ANONYMOUS_POLICY.0);
        }
        Ok(true)
    }
}

fn made(existed: bool) -> &'static str {
    if existed { "repaired" } else { "created" }
}

/// The IAM roles below a path, in the cluster's account.
fn principals(cluster: &ClusterArn, path: &str) -> String {
    let path = path.trim_matches('/');
    let slash = if path.is_empty() { "" } else { "/" };
    format!("arn:{}:iam::{}:role/{path}{slash}*", cluster.partition(), cluster.account())
}

/// The auth method as it should be. What was found stays, and what is missing is added.
fn merged(found: Option<&AuthMethod>, name: &str, principals: String) -> AuthMethod {
    let new = || AuthMethod {
        name: name.to_owned(),
        kind: AWS_IAM.to_owned(),
        config: Map::new(),
        other: Map::from_iter([("Description".to_owned(), "Logins of ECS tasks with their IAM role".into())]),
    };
    let mut method = found.cloned().unwrap_or_else(new);
    let tags = [GATEWAY_KIND, NAMESPACE, SERVICE_NAME].map(str::to_owned);
    for (key, wanted) in [("BoundIAMPrincipalARNs", &[principals][..]), ("IAMEntityTags", &tags)] {
        let mut listed = method.config.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        for wanted in wanted {
            if !listed.iter().any(|listed| listed == wanted) {
                listed.push(wanted.as_str().into());
            }
        }
        method.config.insert(key.to_owned(), listed.into());
    }
    // Consul needs it for tags and for patterns.
    method.config.insert("EnableIAMEntityDetails".to_owned(), true.into());
    method
}

/// A role that links this policy. What a team has given to the role stays.
fn with_policy(found: Option<&Role>, kind: &str, name: &str, policy: Option<&str>) -> Role {
    let new = || Role {
        id: String::new(),
        name: name.to_owned(),
        policies: Vec::new(),
        other: Map::from_iter([("Description".to_owned(), format!("ECS tasks of the kind {kind} that log in").into())]),
    };
    let mut role = found.cloned().unwrap_or_else(new);
    if let Some(policy) = policy.filter(|policy| role.policies.iter().all(|link| link.name != *policy)) {
        role.policies.push(AclLink { id: String::new(), name: policy.to_owned() });
    }
    role
}

/// The binding rules: each login gets its service identity, and a gateway also gets the role of its kind.
fn binding_rules(auth_method: &str) -> Vec<BindingRule> {
    let rule = |description: String, selector: String, bind_type: &str, bind_name: String| BindingRule {
        id: String::new(),
        description,
        auth_method: auth_method.to_owned(),
        selector,
        bind_type: bind_type.to_owned(),
        bind_name,
    };
    let service = rule(
        "The service identity that the IAM role's tag names".to_owned(),
        String::new(),
        "service",
        format!("${{entity_tags.{SERVICE_NAME}}}"),
    );
    let gateways = GATEWAYS.iter().map(|(kind, role, _)| {
        let selector = format!("entity_tags[\"{GATEWAY_KIND}\"] == \"{kind}\"");
        rule(format!("The role of each {kind}"), selector, "role", (*role).to_owned())
    });
    [service].into_iter().chain(gateways).collect()
}

/// What has to be written so that each wanted rule exists. A rule with the same effect counts, whoever made it. A rule that somebody has
/// edited is recognised by its description.
fn missing(wanted: &[BindingRule], found: &[BindingRule]) -> Vec<BindingRule> {
    let effect = |rule: &BindingRule| (rule.selector.clone(), rule.bind_type.clone(), rule.bind_name.clone());
    let missing = wanted.iter().filter(|wanted| !found.iter().any(|found| effect(found) == effect(wanted)));
    let missing = missing.map(|wanted| {
        let edited = found.iter().find(|found| found.description == wanted.description);
        BindingRule { id: edited.map(|edited| edited.id.clone()).unwrap_or_default(), ..wanted.clone() }
    });
    missing.collect()
}

/// The anonymous token and the grants that it should have; none if it has them.
fn anonymous_token(tokens: &[TokenEntry]) -> Option<(&TokenEntry, TokenGrants)> {
    let token = tokens.iter().find(|token| token.accessor_id.as_str() == ANONYMOUS)?;
    let policies = token.grants.policies.iter().map(|policy| policy.name.as_str()).collect::<BTreeSet<_>>();
    if policies.contains(ANONYMOUS_POLICY.0) {
        return None;
    }
    let mut grants = token.grants.clone();
    grants.policies.push(AclLink { id: String::new(), name: ANONYMOUS_POLICY.0.to_owned() });
    Some((token, grants))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(partition: &str) -> ClusterArn {
        format!("arn:{partition}:ecs:eu-north-1:210987654321:cluster/blue").parse().unwrap()
    }

    #[test]
    fn principals_are_the_roles_below_the_path() {
        for (path, expected) in [
            ("/consul-ecs/", "arn:aws:iam::210987654321:role/consul-ecs/*"),
            ("a/b", "arn:aws:iam::210987654321:role/a/b/*"),
            ("/", "arn:aws:iam::210987654321:role/*"),
        ] {
            assert_eq!(principals(&cluster("aws"), path), expected);
        }
        assert_eq!(principals(&cluster("aws-cn"), "/a/"), "arn:aws-cn:iam::210987654321:role/a/*");
    }

    #[test]
    fn auth_method_keeps_what_a_team_has_added() {
        let found: AuthMethod = serde_json::from_value(json!({
            "Name": "m", "Type": "aws-iam", "Description": "ours", "MaxTokenTTL": "1h0m0s", "TokenLocality": "global",
            "Config": {
                "BoundIAMPrincipalARNs": ["arn:aws:iam::1:role/x", "p"], "EnableIAMEntityDetails": false,
                "IAMEntityTags": ["team", SERVICE_NAME], "ServerIDHeaderValue": "consul.example",
            },
            "CreateIndex": 3, "ModifyIndex": 4,
        }))
        .unwrap();
        let method = merged(Some(&found), "m", "p".to_owned());
        let mut expected = serde_json::to_value(&found).unwrap();
        expected["Config"]["EnableIAMEntityDetails"] = true.into();
        expected["Config"]["IAMEntityTags"] = json!(["team", SERVICE_NAME, GATEWAY_KIND, NAMESPACE]);
        assert_eq!(serde_json::to_value(&method).unwrap(), expected);
        assert_eq!(merged(Some(&method), "m", "p".to_owned()), method);
        let new = merged(None, "m", "p".to_owned());
        assert_eq!((new.kind.as_str(), &new.config["BoundIAMPrincipalARNs"]), ("aws-iam", &json!(["p"])));
    }

    #[test]
    fn role_keeps_what_a_team_has_given_to_it() {
        let found: Role = serde_json::from_value(json!({
            "ID": "1", "Name": "r", "Description": "ours", "Policies": [{ "ID": "2", "Name": "team" }],
            "ServiceIdentities": [{ "ServiceName": "billing" }],
        }))
        .unwrap();
        assert_eq!(with_policy(Some(&found), "k", "r", None), found);
        let role = with_policy(Some(&found), "k", "r", Some("p"));
        assert_eq!(role.policies.iter().map(|policy| policy.name.as_str()).collect::<Vec<_>>(), ["team", "p"]);
        assert_eq!((&role.id, &role.other), (&found.id, &found.other));
        assert_eq!(with_policy(Some(&role), "k", "r", Some("p")), role);
    }

    #[test]
    fn binding_rule_with_the_same_effect_is_not_made_again() {
        let wanted = binding_rules("m");
        assert_eq!(missing(&wanted, &[]), wanted);
        let mut found = wanted.clone();
        for (number, rule) in found.iter_mut().enumerate() {
            rule.id = number.to_string();
            rule.description = "of another controller".to_owned();
        }
        assert_eq!(missing(&wanted, &found), []);
        // Somebody has edited one of ours.
        found[1] = BindingRule { selector: String::new(), id: "1".to_owned(), ..wanted[1].clone() };
        assert_eq!(missing(&wanted, &found), [BindingRule { id: "1".to_owned(), ..wanted[1].clone() }]);
    }

    #[test]
    fn anonymous_token_gets_one_more_policy() {
        let link = |name: &str| AclLink { id: String::new(), name: name.to_owned() };
        let mut token = TokenEntry {
            accessor_id: ANONYMOUS.into(),
            grants: TokenGrants { policies: vec![link("team")], ..TokenGrants::default() },
            create_time: String::new(),
            create_index: 1,
            modify_index: 1,
        };
        let grants = anonymous_token(std::slice::from_ref(&token)).unwrap().1;
        assert_eq!(grants.policies, [link("team"), link("anonymous-token-policy")]);
        token.grants = grants;
        assert_eq!(anonymous_token(&[token]), None);
        assert_eq!(anonymous_token(&[]), None);
    }
}
