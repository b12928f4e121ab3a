//! The service's answer at `/`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The service that answered, and the answers of its upstreams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The service's name.
    pub service: String,
    /// The ECS task's ID; none outside a task, or before the metadata endpoint has answered.
    pub task: Option<String>,
    /// The upstreams' answers, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub upstreams: BTreeMap<String, Upstream>,
}

/// The answer of one upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The HTTP status; none if there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The upstream's answer, if the upstream is a demo-app too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Why there is no answer, or the start of the answer of another program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Upstream {
    /// Whether the status is 2xx.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

impl Answer {
    /// Whether all upstreams answered with 2xx.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.upstreams.values().all(Upstream::is_good)
    }

    /// The tasks that took part, as `<service> <task ID>`, from the first to the last upstream.
    #[must_use]
    pub fn tasks(&self) -> Vec<String> {
        let mut tasks = vec![format!("{} {}", self.service, self.task.as_deref().unwrap_or("-"))];
        tasks.extend(self.upstreams.values().filter_map(|upstream| upstream.answer.as_ref()).flat_map(Answer::tasks));
        tasks
    }

    /// The deepest failure in the chain of upstreams, as `<upstream>: <status> <error>`.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.upstreams.iter().find(|(_, upstream)| !upstream.is_good()).map(|(name, upstream)| {
            if let Some(deeper) = upstream.answer.as_ref().and_then(Answer::failure) {
                return format!("{name}: {deeper}");
            }
            let status = upstream.status.map(|status| status.to_string());
            let parts = [status.as_deref(), upstream.error.as_deref()];
            format!("{name}: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(service: &str, upstreams: impl IntoIterator<Item = (&'static str, Upstream)>) -> Answer {
        let upstreams = upstreams.into_iter().map(|(name, upstream)| (name.to_owned(), upstream)).collect();
        Answer { service: service.to_owned(), task: Some("t1".to_owned()), upstreams }
    }

    #[test]
    fn an_answer_names_its_tasks_and_the_deepest_failure() {
        let broken = Upstream { status: Some(503), error: Some("no healthy upstream".into()), answer: None };
        let api = answer("api", [("db", broken)]);
        let web = answer("web", [("api", Upstream { status: Some(502), answer: Some(api), error: None })]);
        assert!(!web.is_good());
        assert_eq!(web.tasks(), ["web t1", "api t1"]);
        assert_eq!(web.failure().as_deref(), Some("api: db: 503 no healthy upstream"));

        let api = Upstream { status: Some(200), answer: Some(answer("api", [])), error: None };
        let web = answer("web", [("api", api)]);
        assert!(web.is_good());
        assert_eq!(web.failure(), None);
    }
}
