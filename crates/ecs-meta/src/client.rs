//! A client for the task metadata endpoint.

use std::time::Duration;

use bytes::Bytes;
use hyper::{StatusCode, Uri};
use serde::de::DeserializeOwned;
use sidecar_kit::backoff::Backoff;
use sidecar_kit::env::Env;
use sidecar_kit::http;
use sidecar_kit::json::{self, JsonError};
use sidecar_kit::secret::shown;
use sidecar_kit::wait::{Attempt, WaitError, until};

use crate::metadata::{Container, Task};
use crate::watch::Watch;

/// The variable in which ECS tells a container its endpoint.
pub const VARIABLE: &str = "ECS_CONTAINER_METADATA_URI_V4";

pub(crate) const TASK: &str = "task metadata";

/// The endpoint is on the same host and answers within milliseconds. The answer for a large task has some 50 KiB.
pub(crate) const LIMITS: http::Limits = http::Limits { time: Duration::from_secs(2), bytes: 1 << 20 };

/// The reason why there is no metadata.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`VARIABLE`] is not set or empty.
    #[error(
        "{VARIABLE} is not set: ECS sets it in every container of a task, on Fargate from platform version 1.4.0, on EC2 \
         from container agent 1.39.0"
    )]
    MissingVariable,
    /// [`VARIABLE`] is not a usable URL.
    #[error("{VARIABLE} is {value}: expected a URL such as http://169.254.170.2/v4/<id>")]
    InvalidVariable {
        /// The value, if it may be shown.
        value: String,
    },
    /// The endpoint gave no answer, or none within the limits of time and size.
    #[error("cannot fetch the {what}")]
    Http {
        /// Task metadata or container metadata.
        what: &'static str,
        /// The cause.
        source: http::Error,
    },
    /// The endpoint answered with an error.
    #[error("the endpoint answered {status} for the {what}: {excerpt}")]
    Status {
        /// Task metadata or container metadata.
        what: &'static str,
        /// The status.
        status: StatusCode,
        /// The start of the body.
        excerpt: String,
    },
    /// The answer lacks something that every task has. ECS's agent sends such answers while it starts.
    #[error("the task metadata lists {missing}")]
    Incomplete {
        /// The missing part.
        missing: &'static str,
    },
    /// The answer is not what AWS documents. The error shows nothing of the answer's text.
    #[error("cannot decode the {what}")]
    Undecodable {
        /// Task metadata or container metadata.
        what: &'static str,
        /// Where, and what was expected.
        source: JsonError,
    },
}

impl Error {
    /// Whether a later request may succeed. When a task starts, the endpoint may not know it yet.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::MissingVariable | Self::InvalidVariable { .. } | Self::Undecodable { .. } => false,
            Self::Http { source, .. } => !matches!(source, http::Error::TooLarge { .. } | http::Error::NotHttp { .. }),
            Self::Status { .. } | Self::Incomplete { .. } => true,
        }
    }
}

impl Task {
    /// Checks that the answer is complete: it lists containers, and among them the one with the Docker ID `own`.
    ///
    /// # Errors
    /// [`Error::Incomplete`].
    pub fn ensure_lists(&self, own: Option<&str>) -> Result<(), Error> {
        if self.containers.is_empty() {
            return Err(Error::Incomplete { missing: "no containers" });
        }
        if own.is_some_and(|own| self.containers.iter().all(|container| container.docker_id != own)) {
            return Err(Error::Incomplete { missing: "containers, but not this one" });
        }
        Ok(())
    }
}

/// A client for the task metadata endpoint of one container. A request takes at most 2 seconds and 1 MiB, and is not repeated.
#[derive(Debug)]
pub struct MetadataClient {
    http: http::Client,
    uri: String,
}

impl MetadataClient {
    /// A client for the endpoint in [`VARIABLE`].
    ///
    /// # Errors
    /// When the variable is missing or no `http://` URL.
    pub fn from_env(env: &Env) -> Result<Self, Error> {
        let value = env.get(VARIABLE).ok_or(Error::MissingVariable)?;
        let uri = value.trim_end_matches('/');
        let parsed: Option<Uri> = uri.parse().ok();
        let usable = parsed.is_some_and(|uri| {
            uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()) && uri.query().is_none()
        });
        if !usable {
            return Err(Error::InvalidVariable { value: shown(value) });
        }
        Ok(Self { http: http::Client::plain(), uri: uri.to_owned() })
    }

    /// The task and all its containers.
    ///
    /// # Errors
    /// When the endpoint does not answer, or not as AWS documents.
    pub async fn task(&self) -> Result<Task, Error> {
        decode(&self.fetch("/task", TASK).await?, TASK)
    }

    /// The task, if the answer is complete. An answer without containers, or without the container with the Docker ID `own`, says nothing
    /// about the other containers either.
    ///
    /// # Errors
    /// [`Error::Incomplete`], and those of [`MetadataClient::task`].
    pub async fn whole_task(&self, own: Option<&str>) -> Result<Task, Error> {
        let task = self.task().await?;
        task.ensure_lists(own)?;
        Ok(task)
    }

    /// Fetches the task at this interval from now on.
    #[must_use]
    pub fn watch(&self, interval: Duration) -> Watch {
        Watch::start(&self.uri, interval)
    }

    /// The task with its containers, for a program that is starting. It tries again for up to `bound`.
    ///
    /// # Errors
    /// At once if the failure cannot pass ([`Error::may_pass`]), otherwise at the bound.
    pub async fn task_within(&self, bound: Duration) -> Result<Task, WaitError<Error>> {
        until("the task metadata", bound, Backoff::default(), async || match self.whole_task(None).await {
            Ok(task) => Attempt::Done(task),
            Err(error) if error.may_pass() => Attempt::Again(error),
            Err(error) => Attempt::Final(error),
        })
        .await
    }

    /// This container.
    ///
    /// # Errors
    /// When the endpoint does not answer, or not as AWS documents.
    pub async fn container(&self) -> Result<Container, Error> {
        let what = "container metadata";
        decode(&self.fetch("", what).await?, what)
    }

    /// Docker's ID of this container.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if the ID is empty, and those of [`MetadataClient::container`].
    pub async fn own_id(&self) -> Result<String, Error> {
        let id = self.container().await?.docker_id;
        if id.is_empty() { Err(Error::Incomplete { missing: "this container without a Docker ID" }) } else { Ok(id) }
    }

    async fn fetch(&self, path: &str, what: &'static str) -> Result<Bytes, Error> {
        let request = hyper::Request::get(format!("{}{path}", self.uri))
            .body(Default::default())
            .map_err(|_| Error::InvalidVariable { value: shown(&self.uri) })?;
        let answer = self.http.send(request, LIMITS).await.map_err(|source| Error::Http { what, source })?;
        if answer.status != StatusCode::OK {
            return Err(Error::Status { what, status: answer.status, excerpt: answer.excerpt() });
        }
        Ok(answer.body)
    }
}

pub(crate) fn decode<T: DeserializeOwned>(answer: &[u8], what: &'static str) -> Result<T, Error> {
    json::decode(answer).map_err(|source| Error::Undecodable { what, source })
}

#[cfg(test)]
mod tests {
    use http_fixture::{Answer, Server};
    use sidecar_kit::exit::one_line;

    use super::*;

    /// An endpoint that gives this answer to every request, and a client for it.
    fn endpoint(answer: Answer) -> (MetadataClient, Server) {
        let server = Server::start(move |_| answer.clone());
        let uri = format!("{}/v4/abc", server.url());
        (MetadataClient::from_env(&Env::from_iter([(VARIABLE, uri)])).unwrap(), server)
    }

    #[tokio::test]
    async fn task_and_container_are_fetched_from_their_paths() {
        let body =
            r#"{"Cluster": "blue", "TaskARN": "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b", "Family": "f"}"#;
        let (client, served) = endpoint(Answer::ok(body));
        assert_eq!(client.task().await.unwrap().task_id(), "0a1b");
        assert_eq!(served.requests()[0].target, "/v4/abc/task");

        let (client, served) = endpoint(Answer::ok(r#"{"Name": "web"}"#));
        assert_eq!(client.container().await.unwrap().name, "web");
        assert_eq!(served.requests()[0].target, "/v4/abc");
    }

    #[tokio::test]
    async fn an_empty_docker_id_is_not_this_containers_id() {
        let (client, _) = endpoint(Answer::ok(r#"{"Name": "web", "DockerId": "0f1e"}"#));
        assert_eq!(client.own_id().await.unwrap(), "0f1e");
        for id in ["", r#", "DockerId": """#, r#", "DockerId": null"#] {
            let (client, _) = endpoint(Answer::ok(format!(r#"{{"Name": "web"{id}}}"#)));
            let error = client.own_id().await.unwrap_err();
            assert!(error.may_pass());
            assert_eq!(error.to_string(), "the task metadata lists this container without a Docker ID", "{id}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_this_container_is_incomplete() {
        let task = |rest: &str| {
            let arn = "arn:aws:ecs:eu-north-1:210987654321:task/blue/0a1b";
            Answer::ok(format!(r#"{{"Cluster": "blue", "TaskARN": "{arn}", "Family": "f"{rest}}}"#))
        };
        for nothing in ["", r#", "Containers": null"#, r#", "Containers": []"#] {
            let (client, _) = endpoint(task(nothing));
            let error = client.whole_task(None).await.unwrap_err();
            assert!(error.may_pass());
            assert_eq!(error.to_string(), "the task metadata lists no containers", "{nothing}");
        }
        let app = r#", "Containers": [{"Name": "app", "DockerId": "a"}]"#;
        let (client, _) = endpoint(task(app));
        let error = client.whole_task(Some("b")).await.unwrap_err();
        assert_eq!(error.to_string(), "the task metadata lists containers, but not this one");
        for own in [None, Some("a")] {
            let (client, _) = endpoint(task(app));
            assert_eq!(client.whole_task(own).await.unwrap().containers.len(), 1);
        }
    }

    #[tokio::test]
    async fn a_missing_or_wrong_variable_is_named() {
        let error = MetadataClient::from_env(&Env::default()).unwrap_err();
        assert!(matches!(error, Error::MissingVariable));
        assert!(error.to_string().starts_with("ECS_CONTAINER_METADATA_URI_V4 is not set: ECS sets it"), "{error}");
        for value in ["169.254.170.2/v4/x", "https://host/v4/x", "http://", "http:///v4", "http://host/ v4", "x"] {
            let error = MetadataClient::from_env(&Env::from_iter([(VARIABLE, value)])).unwrap_err();
            assert!(error.to_string().contains(&format!("is {value:?}: expected a URL")), "{error}");
        }
    }

    #[tokio::test]
    async fn every_failure_has_its_type_and_says_what_was_fetched() {
        let (client, _) = endpoint(Answer::new("404 Not Found", "\"no such container\""));
        let error = client.task().await.unwrap_err();
        assert!(error.may_pass());
        assert_eq!(
            one_line(&error),
            "the endpoint answered 404 Not Found for the task metadata: \"no such container\""
        );

        let (client, _) = endpoint(Answer::ok(r#"{"Cluster": "blue", "TaskARN": "nonsense"}"#));
        let error = client.task().await.unwrap_err();
        assert!(matches!(error, Error::Undecodable { .. }) && !error.may_pass());
        let line = one_line(&error);
        assert!(line.starts_with("cannot decode the task metadata: JSON of another form (line 1, column "), "{line}");
        assert!(!line.contains("nonsense"), "{line}");

        let (client, _) = endpoint(Answer::ok(format!("[{}]", "1,".repeat(1 << 20))));
        let error = client.task().await.unwrap_err();
        assert!(matches!(error, Error::Http { source: http::Error::TooLarge { .. }, .. }), "{error:?}");

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = MetadataClient::from_env(&Env::from_iter([(VARIABLE, format!("http://{free}/v4/x"))])).unwrap();
        let error = client.container().await.unwrap_err();
        assert!(matches!(error, Error::Http { source: http::Error::Unreachable { .. }, .. }), "{error:?}");
        assert!(one_line(&error).starts_with("cannot fetch the container metadata: cannot reach http://127.0.0.1:"));
    }

    #[tokio::test]
    async fn a_request_without_an_answer_fails_after_two_seconds() {
        let (client, _) = endpoint(Answer::silent());
        let error = client.task().await.unwrap_err();
        let Error::Http { source: http::Error::TimedOut { limit, .. }, .. } = error else { panic!("{error:?}") };
        assert_eq!(limit, Duration::from_secs(2));
    }
}
