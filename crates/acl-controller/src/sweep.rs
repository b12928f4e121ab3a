//! Removes what a stopped task without an agent has left: its services on the cluster's node, and the tokens of its logins.
//!
//! A task has stopped only if ECS says so about this very task. Its tags, or a list without it, prove nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::SystemTime;

use consul_api::{AccessorId, HealthService, ServiceId, TokenEntry};
use ecs_meta::{ClusterArn, TaskArn};
use futures_util::stream::{self, StreamExt};

use crate::aws::{End, Ended, Tasks};
use crate::controller::Controller;
use crate::error::Error;
use crate::registered::{self, Registered};
use crate::rotation::made;
use crate::term::Term;

/// What the description of a login's token begins with. The login's meta follows, as JSON.
const LOGIN: &str = "token created via login: ";

/// Something that a task has made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leftover {
    task: String,
    what: What,
    /// Whether it has existed for more than an hour.
    is_old: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Service(ServiceId),
    Token(AccessorId),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(id) => write!(f, "service {id}"),
            Self::Token(accessor) => write!(f, "login token {accessor}"),
        }
    }
}

impl Controller {
    /// Removes what stopped tasks have left. False if something failed; the rest is still done. The record of [`Registered`] is needed only
    /// for tasks that ECS does not know. Without it, the sweep still removes what is left of tasks that ECS reports as stopped.
    pub(crate) async fn sweep(
        &self,
        term: &Term,
        registered: &mut Option<Registered>,
        services: &[HealthService],
        listed: Option<&[TokenEntry]>,
        tasks: &Tasks,
    ) -> Result<bool, Error> {
        let mut whole = true;
        if registered.is_none() {
            match Registered::read(&self.consul, &self.names).await {
                Ok(read) => *registered = Some(read),
                Err(error) => whole = self.went_on("read how old the services are", Err(error))?,
            }
        }
        let now = SystemTime::now();
        if let Some(registered) = registered {
            registered.note(services.iter().map(|service| service.create_index).max(), now);
        }
        let secondary = if listed.is_some() { self.consul.tokens_of_secondary().await } else { Ok(None) };
        let (secondary, listed) = match secondary {
            Ok(secondary) => (secondary, listed),
            Err(error) => {
                whole = self.went_on("list the tokens of this datacenter", Err(error.into()))?;
                (None, None)
            }
        };
        let tokens = secondary.as_deref().or(listed).unwrap_or_default();
        let cluster = &self.names.cluster;
        let services = services.iter().filter_map(|service| {
            let is_old = registered.as_ref().is_some_and(|registered| registered.is_old(service.create_index, now));
            Some(Leftover { task: task_of_service(service, cluster)?, what: What::Service(service.id.clone()), is_old })
        });
        let tokens = tokens.iter().filter_map(|token| {
            let is_old = registered::is_old(made(token), now);
            Some(Leftover {
                task: task_of_token(token, cluster)?,
                what: What::Token(token.accessor_id.clone()),
                is_old,
            })
        });
        let running = tasks.tasks.iter().map(|task| &*task.arn).collect::<HashSet<_>>();
        let left = services.chain(tokens).filter(|left| !running.contains(left.task.as_str())).collect::<Vec<_>>();
        let asked = left.iter().map(|left| left.task.clone()).collect::<BTreeSet<_>>();
        let (_, ended) = self.aws.describe(asked.into_iter().collect()).await?;
        let removed = stream::iter(due(left, &ended)).map(|(left, end)| self.remove(term, left, end));
        let removed: Vec<_> = removed.buffer_unordered(self.rules.concurrency).collect().await;
        for removed in removed {
            whole &= removed?;
        }
        if let Some(registered) = registered {
            registered.write(&self.consul, term, &self.names).await?;
        }
        Ok(whole)
    }

    async fn remove(&self, term: &Term, left: Leftover, end: End) -> Result<bool, Error> {
        let node = self.names.cluster.to_string();
        let Leftover { task, what, .. } = left;
        let removed = match &what {
            What::Service(id) => self.consul.deregister_service(term, &node, id).await,
            What::Token(accessor) => self.consul.delete_login_token(term, accessor).await,
        };
        match removed.map_err(Error::from) {
            Ok(()) => {
                let why = match end {
                    End::Stopped => "has stopped",
                    End::Missing => "is unknown to ECS",
                };
                tracing::info!("{what}: removed, because the task {task} {why}");
                self.metrics.leftover_removed(matches!(what, What::Service(_)));
                Ok(true)
            }
            failed => self.went_on(&format!("remove {what} of the stopped task {task}"), failed.map(|()| true)),
        }
    }
}

/// The task that registered a service; none if it was no task of this cluster.
fn task_of_service(service: &HealthService, cluster: &ClusterArn) -> Option<String> {
    let arn: TaskArn = service.meta.get("task-arn")?.parse().ok()?;
    let whole = cluster.task(arn.task_id().as_str());
    (arn == whole && is_task_id(arn.task_id().as_str())).then(|| arn.to_string())
}

/// The task that logged in for a token; none if no task of this cluster did.
fn task_of_token(token: &TokenEntry, cluster: &ClusterArn) -> Option<String> {
    let meta = token.grants.description.strip_prefix(LOGIN)?;
    let meta: BTreeMap<String, String> = serde_json::from_str(meta).ok()?;
    let id = meta.get("consul.hashicorp.com/task-id").filter(|id| is_task_id(id))?;
    let of = meta.get("consul.hashicorp.com/cluster")?;
    (*of == cluster.to_string()).then(|| cluster.task(id).to_string())
}

/// Whether ECS accepts a task ID. One wrong ID makes ECS refuse a call for a hundred tasks.
fn is_task_id(id: &str) -> bool {
    matches!(id.len(), 32 | 36) && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// What to remove. A task that ECS does not know may have just been created.
fn due(left: Vec<Leftover>, ended: &Ended) -> Vec<(Leftover, End)> {
    let due = left.into_iter().filter_map(|left| match ended.get(&left.task)? {
        End::Missing if !left.is_old => None,
        end => Some((left, *end)),
    });
    due.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn cluster() -> ClusterArn {
        "arn:aws:ecs:eu-north-1:210987654321:cluster/blue".parse().unwrap()
    }

    fn arn() -> String {
        format!("arn:aws:ecs:eu-north-1:210987654321:task/blue/{ID}")
    }

    #[test]
    fn only_services_of_the_cluster_s_tasks_are_looked_at() {
        let service = |meta: &[(&str, &str)]| HealthService {
            id: "web-1".into(),
            service: "web".into(),
            port: 0,
            meta: meta.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            create_index: 1,
        };
        let of = |arn: &str| task_of_service(&service(&[("task-arn", arn)]), &cluster());
        assert_eq!(of(&arn()), Some(arn()));
        assert_eq!(task_of_service(&service(&[("task-id", ID)]), &cluster()), None);
        for other in [
            arn().replace("blue", "green"),
            arn().replace("eu-north-1", "us-east-1"),
            arn().replace("210987654321", "111122223333"),
            arn().replace("blue/", ""),
            arn().replace(ID, "f1a2"),
            arn().replace('0', "x"),
            ID.to_owned(),
        ] {
            assert_eq!(of(&other), None, "{other}");
        }
    }

    #[test]
    fn only_tokens_of_logins_of_the_cluster_s_tasks_are_looked_at() {
        let of = |description: &str| {
            let grants = consul_api::TokenGrants { description: description.to_owned(), ..Default::default() };
            let create_time = String::new();
            let token = TokenEntry { accessor_id: "a".into(), grants, create_time, create_index: 1, modify_index: 1 };
            task_of_token(&token, &cluster())
        };
        let meta = |cluster: &str, task: &str| {
            format!(
                r#"{{"team":"shop","consul.hashicorp.com/cluster":"{cluster}","consul.hashicorp.com/task-id":"{task}"}}"#
            )
        };
        let good = meta(&cluster().to_string(), ID);
        assert_eq!(of(&format!("{LOGIN}{good}")), Some(arn()));
        for other in [
            good.clone(),
            format!("Token for web service\n{LOGIN}{good}"),
            LOGIN.to_owned(),
            format!("{LOGIN}{{}}"),
            format!("{LOGIN}{}", meta("blue", ID)),
            format!("{LOGIN}{}", meta(&cluster().to_string().replace("blue", "green"), ID)),
            format!("{LOGIN}{}", meta(&cluster().to_string(), "f1a2")),
        ] {
            assert_eq!(of(&other), None, "{other}");
        }
    }

    #[test]
    fn a_task_that_ecs_does_not_know_is_gone_only_when_it_is_old() {
        let left = |task: &str, is_old| Leftover { task: task.to_owned(), what: What::Token("a".into()), is_old };
        let ended = Ended::from([("stopped".to_owned(), End::Stopped), ("missing".to_owned(), End::Missing)]);
        let due = |task: &str, is_old| due(vec![left(task, is_old)], &ended).len() == 1;
        assert!(due("stopped", false) && due("stopped", true) && due("missing", true));
        assert!(!due("missing", false) && !due("running", true) && !due("running", false));
    }
}
