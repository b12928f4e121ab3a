//! Why a container of the mesh failed, as its log or Docker shows it.

use bollard::Docker;
use bollard::models::{ContainerState, HealthStatusEnum};
use ecs_local::labels::CONTAINER_NAME;

use crate::docker::{DockerError, PROJECT_LABEL, TASK, containers, inspect, label, last_lines};

/// How many lines of a log are searched for a reason.
const LINES: usize = 400;

/// How many characters of a log's line an error shows.
const SHOWN: usize = 500;

/// The reason of a failed start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Diagnosis {
    /// Another program has a port of the host.
    #[error("{address} is in use: end the program that listens there")]
    PortInUse {
        /// The address and the port.
        address: String,
    },
    /// Envoy refused a part of its configuration.
    #[error("Envoy of {of} refused a {kind}: {reason}")]
    Refused {
        /// The task.
        of: String,
        /// `listener`, `cluster`, …
        kind: String,
        /// Envoy's reason.
        reason: String,
    },
    /// The agent has not joined the servers.
    #[error("the Consul agent of {of} did not join the servers: {reason}")]
    NotJoined {
        /// The task.
        of: String,
        /// The agent's reason.
        reason: String,
    },
    /// Consul has no such token.
    #[error("Consul does not know the token of {of}: {reason}")]
    UnknownToken {
        /// The container, and its task.
        of: String,
        /// The line of the container's log.
        reason: String,
    },
    /// A container exited with an error.
    #[error("{of} exited with {code}; its last line: {line}")]
    Exited {
        /// The container, and its task.
        of: String,
        /// The exit code.
        code: i64,
        /// The last line of its log.
        line: String,
    },
    /// A container's health check fails.
    #[error("{of} is unhealthy; its last line: {line}")]
    Unhealthy {
        /// The container, and its task.
        of: String,
        /// The last line of its log.
        line: String,
    },
}

/// The end of a container's log.
#[derive(Debug)]
struct Log {
    task: Option<String>,
    /// The container's name within its task, or its name in docker-compose.yml.
    container: String,
    lines: Vec<String>,
}

impl Log {
    fn of(&self) -> String {
        match &self.task {
            Some(task) => format!("{} of task {task}", self.container),
            None => self.container.clone(),
        }
    }

    fn task(&self) -> String {
        self.task.as_ref().map_or_else(|| self.container.clone(), |task| format!("task {task}"))
    }

    fn last_line(&self) -> String {
        shortened(self.lines.iter().rev().find(|line| !line.is_empty()).map_or("", String::as_str))
    }
}

/// How a container failed.
#[derive(Debug)]
enum Failure {
    Exited(i64),
    Unhealthy,
}

/// Why the mesh did not start, or does not answer. The reason comes from the logs of the containers, see [`explain`]. `None` if no log
/// shows a reason. A container counts as failed if it is unhealthy, or if it exited with an error after `begun`: a time as Docker prints
/// it, RFC 3339 in UTC.
pub(crate) async fn of_containers(docker: &Docker, begun: &str) -> Result<Option<Diagnosis>, DockerError> {
    let (mut failed, mut logs) = (Vec::new(), Vec::new());
    for container in containers(docker, &[PROJECT_LABEL]).await? {
        let Some(id) = &container.id else { continue };
        let service = label(&container, "com.docker.compose.service").unwrap_or_default();
        let name = label(&container, CONTAINER_NAME).unwrap_or(service).to_owned();
        let task = label(&container, TASK).map(str::to_owned);
        let log = Log { task, container: name, lines: last_lines(docker, id, LINES).await };
        let state = inspect(docker, id).await?.state.unwrap_or_default();
        match failure(&state, begun) {
            Some(failure) => failed.push((state.finished_at.unwrap_or_default(), log, failure)),
            // A server that runs also logs what the tasks do wrong, and what was wrong before it had a leader.
            None if service.starts_with("consul-server") => {}
            None => logs.push(log),
        }
    }
    // The earliest failure comes first. The later ones may be its consequence.
    failed.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    Ok(explain(&failed.into_iter().map(|(_, log, failure)| (log, failure)).collect::<Vec<_>>(), &logs))
}

fn failure(state: &ContainerState, begun: &str) -> Option<Failure> {
    let health = state.health.as_ref().and_then(|health| health.status);
    if state.running == Some(true) {
        return (health == Some(HealthStatusEnum::UNHEALTHY)).then_some(Failure::Unhealthy);
    }
    let code = state.exit_code.unwrap_or_default();
    let recent = state.finished_at.as_deref().is_some_and(|finished| finished > begun);
    (code != 0 && recent).then_some(Failure::Exited(code))
}

/// A known reason from the log of a failed container, then from the other logs of its task; else the last line of the container that
/// failed first.
fn explain(failed: &[(Log, Failure)], others: &[Log]) -> Option<Diagnosis> {
    let of_same_task = |log: &&Log| failed.iter().any(|(failed, _)| failed.task.is_some() && failed.task == log.task);
    let known = failed.iter().map(|(log, _)| log).find_map(known_reason);
    let known = known.or_else(|| others.iter().filter(of_same_task).find_map(known_reason));
    // A container that waits for secrets fails because of acl-controller. Without a failed container, any log may have the reason.
    let any = failed.is_empty() || failed.iter().any(|(log, _)| log.container.ends_with("-secrets"));
    let known = known.or_else(|| others.iter().filter(|_| any).find_map(known_reason));
    known.or_else(|| {
        failed.first().map(|(log, failure)| match failure {
            Failure::Exited(code) => Diagnosis::Exited { of: log.of(), code: *code, line: log.last_line() },
            Failure::Unhealthy => Diagnosis::Unhealthy { of: log.of(), line: log.last_line() },
        })
    })
}

fn known_reason(log: &Log) -> Option<Diagnosis> {
    refused(log).or_else(|| not_joined(log)).or_else(|| unknown_token(log))
}

/// Envoy logs `delta config for type.googleapis.com/envoy.config.listener.v3.Listener rejected: REASON`, or
/// `lds: listener 'NAME' config rejected: REASON`. The reason may have further lines, which do not begin with `[`.
fn refused(log: &Log) -> Option<Diagnosis> {
    let by_type = |line: &str| line.contains("config for type.googleapis.com/");
    let is_refusal =
        |line: &String| line.contains(" rejected: ") && (by_type(line) || line.contains("config rejected"));
    let at = log.lines.iter().rposition(is_refusal)?;
    let (before, reason) = log.lines[at].split_once(" rejected: ")?;
    let kind = match before.rsplit('.').next() {
        Some(kind) if by_type(before) => kind.to_lowercase(),
        _ if before.contains("listener '") => "listener".to_owned(),
        _ => "configuration".to_owned(),
    };
    let more = log.lines[at + 1..].iter().take_while(|line| !line.starts_with('['));
    let reason = std::iter::once(reason).chain(more.map(String::as_str)).collect::<Vec<_>>().join(" ");
    Some(Diagnosis::Refused { of: log.task(), kind, reason: shortened(&reason) })
}

/// The lines that an agent logs when it cannot join. With TLS it first asks the servers for a certificate.
const NOT_JOINED: [&str; 4] = [
    "AutoEncrypt.Sign RPC failed",
    "IP resolution failed",
    "No installed keys could decrypt the message",
    "couldn't join",
];

/// The agent logs the reason, or after `couldn't join` the reason for each address on a line of its own.
fn not_joined(log: &Log) -> Option<Diagnosis> {
    let at = log.lines.iter().rposition(|line| NOT_JOINED.iter().any(|failed| line.contains(failed)))?;
    if log.lines[at..].iter().any(|line| line.contains("Join") && line.contains("completed")) {
        return None;
    }
    let reasons = log.lines[at + 1..].iter().map_while(|line| {
        // Consul 1.10 and later write `error=` and then `| \t* REASON`.
        let line = line.trim_start_matches(['|', ' ']).trim_start_matches("\\t").trim_start();
        (!line.starts_with("20")).then_some(line)
    });
    let reasons = reasons.filter_map(|line| line.strip_prefix("* ")).collect::<Vec<_>>().join("; ");
    // The line begins with the time and the level.
    let line = log.lines[at].split_once("] ").map_or(log.lines[at].as_str(), |(_, message)| message);
    let reason = if reasons.is_empty() { line } else { &reasons };
    Some(Diagnosis::NotJoined { of: log.task(), reason: shortened(reason) })
}

fn unknown_token(log: &Log) -> Option<Diagnosis> {
    let line = log.lines.iter().rev().find(|line| line.contains("ACL not found"))?;
    Some(Diagnosis::UnknownToken { of: log.of(), reason: shortened(line) })
}

/// The reason in Compose's own message: Docker could not publish a port.
pub(crate) fn of_compose(message: &str) -> Option<Diagnosis> {
    let address = |text: &str| text.split_whitespace().next().map(|address| address.trim_end_matches(':').to_owned());
    let (_, after) = if message.contains("address already in use") {
        message.split_once("listen tcp4 ").or_else(|| message.split_once("listen tcp "))?
    } else {
        message.split_once("port is already allocated").and_then(|(before, _)| before.rsplit_once("Bind for "))?
    };
    Some(Diagnosis::PortInUse { address: address(after)? })
}

fn shortened(text: &str) -> String {
    let mut shown = text.trim().chars().take(SHOWN).collect::<String>();
    if shown.len() < text.trim().len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(task: &str, container: &str, lines: &[&str]) -> Log {
        let task = (!task.is_empty()).then(|| task.to_owned());
        Log { task, container: container.to_owned(), lines: lines.iter().map(|line| (*line).to_owned()).collect() }
    }

    #[test]
    fn an_unhealthy_proxy_shows_envoy_s_reason() {
        let envoy = log(
            "web",
            "sidecar-proxy",
            &[
                "[2026-11-30 02:00:00.000][1][warning][config] [x.cc:296] delta config for \
             type.googleapis.com/envoy.config.listener.v3.Listener rejected: Error adding/updating listener(s) \
             public_listener:0.0.0.0:20000: cannot bind '0.0.0.0:20000': Address already in use",
                "api:127.0.0.1:1234: cannot bind",
                "[2026-11-30 02:00:01.000][1][warning][main] something else",
            ],
        );
        let found = explain(&[(envoy, Failure::Unhealthy)], &[]).unwrap().to_string();
        assert_eq!(
            found,
            "Envoy of task web refused a listener: Error adding/updating listener(s) public_listener:0.0.0.0:20000: \
             cannot bind '0.0.0.0:20000': Address already in use api:127.0.0.1:1234: cannot bind"
        );
    }

    #[test]
    fn a_failed_mesh_init_shows_that_the_agent_did_not_join() {
        let failed =
            "2026-11-30T02:00:00.000Z [WARN]  agent: Join cluster failed, will retry: cluster=LAN retry_interval=30s";
        let lines_of_1_21 = [
            "2026-11-30T02:00:00.000Z [WARN]  agent: (LAN) couldn't join: number_of_nodes=0",
            "error=",
            "| 2 errors occurred:",
            "| \\t* Failed to join 127.0.0.1:9: connection refused",
            "| \\t* Failed to resolve nowhere: no such host",
            "|",
            failed,
        ];
        let lines_of_1_8 = [
            "2026-11-30T02:00:00.000Z [WARN]  agent: (LAN) couldn't join: number_of_nodes=0 error=\"2 errors occurred:",
            "* Failed to join 127.0.0.1:9: connection refused",
            "* Failed to resolve nowhere: no such host",
            "",
            "\"",
            failed,
        ];
        for lines in [&lines_of_1_21[..], &lines_of_1_8] {
            let init = (log("web", "mesh-init", &["mesh-init: gave up waiting for the agent"]), Failure::Exited(1));
            let found = explain(&[init], &[log("web", "consul-client", lines)]).unwrap().to_string();
            assert_eq!(
                found,
                "the Consul agent of task web did not join the servers: Failed to join 127.0.0.1:9: connection refused; \
                 Failed to resolve nowhere: no such host"
            );
        }
        let joined = "2026-11-30T02:00:30.000Z [INFO]  agent: Join cluster completed. Synced with initial agents";
        assert_eq!(not_joined(&log("web", "consul-client", &[failed, joined])), None);
    }

    #[test]
    fn an_agent_without_a_certificate_shows_the_answer() {
        for (line, reason) in [
            (
                "2026-11-30T02:00:00.000Z [ERROR] agent.auto_config: AutoEncrypt.Sign RPC failed: addr=10.0.0.2:8300 error=\"refused\"",
                "agent.auto_config: AutoEncrypt.Sign RPC failed: addr=10.0.0.2:8300 error=\"refused\"",
            ),
            (
                "2026-11-30T02:00:00.000Z [WARN]  agent: IP resolution failed: host=nowhere error=\"no such host\"",
                "agent: IP resolution failed: host=nowhere error=\"no such host\"",
            ),
        ] {
            let found = not_joined(&log("web", "consul-client", &[line]));
            assert_eq!(found, Some(Diagnosis::NotJoined { of: "task web".to_owned(), reason: reason.to_owned() }));
        }
    }

    #[test]
    fn envoy_s_other_form_of_a_refusal_is_found() {
        let line = "[2026-11-30 02:00:00.000][8][warning][config] [x.cc:1] lds: listener 'x' config rejected: address is necessary";
        let found = refused(&log("web", "sidecar-proxy", &[line])).unwrap().to_string();
        assert_eq!(found, "Envoy of task web refused a listener: address is necessary");
    }

    #[test]
    fn an_unknown_token_is_reported_with_its_container() {
        let failed = log("api-1", "mesh-init", &["mesh-init: 403 Forbidden: ACL not found"]);
        let found = explain(&[(failed, Failure::Exited(1))], &[]).unwrap().to_string();
        assert_eq!(
            found,
            "Consul does not know the token of mesh-init of task api-1: mesh-init: 403 Forbidden: ACL not found"
        );
    }

    #[test]
    fn unknown_failure_shows_the_last_line_of_the_first() {
        let failed =
            [(log("", "setup", &["a", "b", ""]), Failure::Exited(2)), (log("web", "app", &["c"]), Failure::Exited(1))];
        assert_eq!(explain(&failed, &[]).unwrap().to_string(), "setup exited with 2; its last line: b");
        assert_eq!(explain(&[], &[]), None);
    }

    #[test]
    fn a_port_in_use_is_found_in_docker_s_message() {
        for (message, address) in [
            ("driver failed: Bind for 127.0.0.1:9090 failed: port is already allocated", "127.0.0.1:9090"),
            (
                "Error starting userland proxy: listen tcp4 127.0.0.1:8500: bind: address already in use",
                "127.0.0.1:8500",
            ),
        ] {
            assert_eq!(of_compose(message), Some(Diagnosis::PortInUse { address: address.to_owned() }));
        }
        assert_eq!(of_compose("no such image"), None);
    }
}
