//! A fake of ECS and Secrets Manager with the calls that acl-controller makes, as AWS documents them. It has what moto lacks: paging,
//! failures, states that stay, refusals on demand, and a record of every call.
//!
//! The protocol is AWS JSON 1.1: POST to `/`, the call in `X-Amz-Target`, errors with status 400 and their code in `__type`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_fixture::{Answer as Response, Request, Server};
use serde_json::{Value, json};

/// The cluster's name.
pub const CLUSTER: &str = "blue";
const ARN: &str = "arn:aws:ecs:eu-north-1:210987654321";

/// A recorded call.
#[derive(Debug, Clone)]
pub struct Made {
    /// The action, such as `ListTasks`.
    pub name: String,
    /// The access key that signed the call.
    pub key: String,
    /// The request's body.
    pub body: Value,
}

struct Secret {
    /// Empty while the secret has no value.
    version: String,
    /// The version before the current one.
    previous: Option<String>,
    created: SystemTime,
    text: String,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<String, Value>,
    /// Tasks that are listed, but missing when they are described.
    vanished: BTreeSet<String>,
    /// Tasks that are listed, but that DescribeTasks fails to describe.
    undescribed: BTreeSet<String>,
    secrets: BTreeMap<String, Secret>,
    versions: u64,
    calls: Vec<Made>,
    /// Calls that are refused, `Call` or `Call secret`, with the error's code.
    refused: BTreeMap<String, String>,
    /// Calls that are refused once.
    refused_once: BTreeMap<String, String>,
    /// Whether ListSecrets shows the version before the current one.
    lags: bool,
    /// Calls that are answered after a delay, `Call` or `Call secret`.
    slow: BTreeMap<String, Duration>,
}

/// One account with one cluster.
pub struct Aws {
    /// The endpoint of both services.
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Aws {
    /// Starts an account without tasks and secrets.
    ///
    /// # Panics
    /// When loopback has no port left.
    #[must_use]
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let server = Server::start(move |request| answer(request, &shared));
        Self { url: server.url(), state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no other thread panics")
    }

    /// Adds a running task of a mesh service, created now. Returns its ARN.
    pub fn run(&self, id: &str, service: &str) -> String {
        self.run_at(id, service, SystemTime::now())
    }

    /// Adds a running task of a mesh service, created at this time. Returns its ARN.
    pub fn run_at(&self, id: &str, service: &str, created: SystemTime) -> String {
        let tags = [("consul.hashicorp.com/mesh", "true"), ("consul.hashicorp.com/service-name", service)];
        self.put_task(id, "family", &tags, created)
    }

    /// Adds a running task of this family with these tags. Returns its ARN.
    pub fn put_task(&self, id: &str, family: &str, tags: &[(&str, &str)], created: SystemTime) -> String {
        let arn = format!("{ARN}:task/{CLUSTER}/{id}");
        let tags = tags.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect::<Vec<_>>();
        let task = json!({
            "taskArn": arn, "clusterArn": format!("{ARN}:cluster/{CLUSTER}"), "tags": tags,
            "taskDefinitionArn": format!("{ARN}:task-definition/{family}:7"), "createdAt": seconds(created),
            "desiredStatus": "RUNNING", "lastStatus": "RUNNING"
        });
        self.state().tasks.insert(arn.clone(), task);
        arn
    }

    /// Sets a task's desired and last status.
    ///
    /// # Panics
    /// When there is no such task.
    pub fn set_status(&self, arn: &str, desired: &str, last: &str) {
        let mut state = self.state();
        let task = state.tasks.get_mut(arn).expect("the task is there");
        (task["desiredStatus"], task["lastStatus"]) = (desired.into(), last.into());
    }

    /// Stops a task as StopTask does: the tags are deleted, and the task is STOPPING.
    ///
    /// # Panics
    /// When there is no such task.
    pub fn stop(&self, arn: &str) {
        self.set_status(arn, "STOPPED", "STOPPING");
        self.state().tasks.get_mut(arn).expect("the task is there")["tags"] = json!([]);
    }

    /// Removes a task.
    pub fn forget(&self, arn: &str) {
        self.state().tasks.remove(arn);
    }

    /// From now on the task is listed, but missing when it is described.
    pub fn vanish(&self, arn: &str) {
        self.state().vanished.insert(arn.to_owned());
    }

    /// From now on, DescribeTasks fails for this task with a reason other than MISSING, or no longer does. The task is still listed.
    pub fn undescribed(&self, arn: &str, undescribed: bool) {
        let mut state = self.state();
        if undescribed {
            state.undescribed.insert(arn.to_owned());
        } else {
            state.undescribed.remove(arn);
        }
    }

    /// Adds a new version to a secret.
    pub fn set_secret(&self, name: &str, text: &str) {
        put(&mut self.state(), name, text);
    }

    /// Adds a secret without a value, as Terraform's `aws_secretsmanager_secret` does.
    pub fn add_secret(&self, name: &str) {
        let secret = Secret { version: String::new(), previous: None, created: SystemTime::now(), text: String::new() };
        self.state().secrets.insert(name.to_owned(), secret);
    }

    /// From now on, ListSecrets shows the version before the current one, or no longer does.
    pub fn lag(&self, lags: bool) {
        self.state().lags = lags;
    }

    /// Removes a secret.
    pub fn remove_secret(&self, name: &str) {
        self.state().secrets.remove(name);
    }

    /// A secret's value as JSON; null if there is none or it isn't JSON.
    #[must_use]
    pub fn secret(&self, name: &str) -> Value {
        self.state().secrets.get(name).and_then(|secret| serde_json::from_str(&secret.text).ok()).unwrap_or(Value::Null)
    }

    /// The values of all secrets.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        self.state().secrets.values().map(|secret| secret.text.clone()).collect()
    }

    /// Refuses a call with this error code from now on. `call` may name a secret (`PutSecretValue p-web`) or the first task
    /// (`DescribeTasks <ARN>`). `code` may have a message: `Code: message`.
    pub fn refuse(&self, call: &str, code: &str) {
        self.state().refused.insert(call.to_owned(), code.to_owned());
    }

    /// Refuses a call once.
    pub fn refuse_once(&self, call: &str, code: &str) {
        self.state().refused_once.insert(call.to_owned(), code.to_owned());
    }

    /// Ends the refusals of a call.
    pub fn allow(&self, call: &str) {
        self.state().refused.remove(call);
    }

    /// Answers a call, or a call for one secret, after this time from now on.
    pub fn slow(&self, call: &str, time: Duration) {
        self.state().slow.insert(call.to_owned(), time);
    }

    /// Ends all refusals and delays.
    pub fn refuse_nothing(&self) {
        let mut state = self.state();
        state.refused.clear();
        state.slow.clear();
    }

    /// The calls since this function was last called.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Made> {
        std::mem::take(&mut self.state().calls)
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn put(state: &mut State, name: &str, text: &str) -> String {
    state.versions += 1;
    let version = format!("{:0>32}", state.versions);
    let previous = state.secrets.get(name).map(|secret| secret.version.clone()).filter(|version| !version.is_empty());
    let secret = Secret { version: version.clone(), previous, created: SystemTime::now(), text: text.to_owned() };
    state.secrets.insert(name.to_owned(), secret);
    version
}

fn answer(request: &Request, state: &Mutex<State>) -> Response {
    let lock = || state.lock().expect("no other thread panics");
    let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
    let name = request.header("x-amz-target").rsplit('.').next().unwrap_or_default().to_owned();
    let of_one = body["SecretId"].as_str().or(body["tasks"][0].as_str()).unwrap_or_default();
    let of_that = format!("{name} {of_one}");
    let key = request.header("authorization").split("Credential=").nth(1).and_then(|rest| rest.split('/').next());
    let key = key.unwrap_or_default().to_owned();
    let wait = {
        let mut state = lock();
        state.calls.push(Made { name: name.clone(), key, body: body.clone() });
        state.slow.get(&name).or(state.slow.get(&of_that)).copied()
    };
    std::thread::sleep(wait.unwrap_or_default());
    let mut state = lock();
    let once = state.refused_once.remove(&name).or_else(|| state.refused_once.remove(&of_that));
    let answer = match once.as_ref().or(state.refused.get(&name)).or(state.refused.get(&of_that)) {
        Some(refusal) => Err(match refusal.split_once(": ") {
            Some((code, message)) => (code.to_owned(), message.to_owned()),
            None => (refusal.clone(), format!("User: arn:aws:sts::210987654321:role is refused: {name}")),
        }),
        None if !signed(request) => Err(("MissingAuthenticationTokenException".into(), "not signed".into())),
        None => respond(&mut state, &name, &body),
    };
    let response = match answer {
        Ok(answer) => Response::ok(answer),
        Err((code, message)) => Response::new("400 Bad Request", json!({ "__type": code, "message": message })),
    };
    response.with_header("content-type", "application/x-amz-json-1.1")
}

/// Whether the request is signed for this region and the service that it calls.
fn signed(request: &Request) -> bool {
    let service = if request.header("x-amz-target").starts_with("secretsmanager.") { "secretsmanager" } else { "ecs" };
    let scope = format!("/eu-north-1/{service}/aws4_request");
    let authorization = request.header("authorization");
    authorization.starts_with("AWS4-HMAC-SHA256 ") && authorization.contains(&scope)
}

type Answer = Result<Value, (String, String)>;

fn error<T>(code: &str, message: &str) -> Result<T, (String, String)> {
    Err((code.to_owned(), message.to_owned()))
}

/// A page of at most `most` items, and the token of the next page.
fn page(all: &[Value], token: &Value, most: &Value) -> Result<(Vec<Value>, Option<String>), (String, String)> {
    let from = match token.as_str().map(|token| token.strip_prefix("page-").and_then(|at| at.parse::<usize>().ok())) {
        None => 0,
        Some(Some(from)) if from < all.len() => from,
        Some(_) => return error("InvalidParameterException", "Invalid token"),
    };
    let most = most.as_u64().unwrap_or(100);
    if !(1..=100).contains(&most) {
        return error("InvalidParameterException", "maxResults must be between 1 and 100");
    }
    let to = all.len().min(from + usize::try_from(most).unwrap_or(100));
    Ok((all[from..to].to_vec(), (to < all.len()).then(|| format!("page-{to}"))))
}

fn respond(state: &mut State, name: &str, body: &Value) -> Answer {
    let of_cluster = || match body["cluster"].as_str() {
        Some(CLUSTER) => Ok(()),
        Some(arn) if arn == format!("{ARN}:cluster/{CLUSTER}") => Ok(()),
        _ => error("ClusterNotFoundException", "Cluster not found."),
    };
    let secret = |state: &State| match state.secrets.get(body["SecretId"].as_str().unwrap_or_default()) {
        Some(secret) => Ok((secret.version.clone(), secret.text.clone(), secret.created)),
        None => error("ResourceNotFoundException", "Secrets Manager can't find the specified secret."),
    };
    match name {
        "ListTasks" => {
            of_cluster()?;
            let desired = body["desiredStatus"].as_str().unwrap_or("RUNNING");
            let tasks = state.tasks.iter().filter(|(_, task)| task["desiredStatus"] == desired);
            let arns = tasks.map(|(arn, _)| Value::from(arn.as_str())).collect::<Vec<_>>();
            let (arns, next) = page(&arns, &body["nextToken"], &body["maxResults"])?;
            Ok(with_next(json!({ "taskArns": arns }), "nextToken", next))
        }
        "DescribeTasks" => {
            of_cluster()?;
            let arns = body["tasks"].as_array().cloned().unwrap_or_default();
            if arns.is_empty() || arns.len() > 100 {
                return error("InvalidParameterException", "Tasks must be between 1 and 100");
            }
            let tags = body["include"].as_array().is_some_and(|include| include.contains(&"TAGS".into()));
            let (mut tasks, mut failures) = (Vec::new(), Vec::new());
            for arn in arns.iter().filter_map(Value::as_str) {
                if state.undescribed.contains(arn) {
                    failures.push(json!({ "arn": arn, "reason": "ACCESS_DENIED" }));
                    continue;
                }
                match state.tasks.get(arn).filter(|_| !state.vanished.contains(arn)) {
                    Some(task) => {
                        let mut task = task.clone();
                        if !tags {
                            task["tags"] = json!([]);
                        }
                        tasks.push(task);
                    }
                    None => failures.push(json!({ "arn": arn, "reason": "MISSING" })),
                }
            }
            Ok(json!({ "tasks": tasks, "failures": failures }))
        }
        "ListSecrets" => {
            let filter = &body["Filters"][0];
            let prefix = filter["Values"][0].as_str().filter(|_| filter["Key"] == "name").unwrap_or_default();
            let secrets = state.secrets.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(name, secret)| {
                let current = secret.previous.as_ref().filter(|_| state.lags).unwrap_or(&secret.version);
                let arn = ARN.replace(":ecs:", ":secretsmanager:");
                let mut listed = json!({ "Name": name, "ARN": format!("{arn}:secret:{name}-a1B2c3") });
                if !secret.version.is_empty() {
                    listed["SecretVersionsToStages"] = json!({
                        current.clone(): ["AWSCURRENT"], "ffffffffffffffffffffffffffffffff": ["AWSPREVIOUS"]
                    });
                }
                listed
            });
            let secrets = secrets.collect::<Vec<_>>();
            let (secrets, next) = page(&secrets, &body["NextToken"], &body["MaxResults"])?;
            Ok(with_next(json!({ "SecretList": secrets }), "NextToken", next))
        }
        "GetSecretValue" => {
            let (version, text, created) = secret(state)?;
            if version.is_empty() {
                let message = "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT";
                return error("ResourceNotFoundException", message);
            }
            let created = seconds(created);
            Ok(json!({ "Name": body["SecretId"], "VersionId": version, "SecretString": text, "CreatedDate": created }))
        }
        "PutSecretValue" => {
            secret(state)?;
            let name = body["SecretId"].as_str().unwrap_or_default();
            let version = put(state, name, body["SecretString"].as_str().unwrap_or_default());
            Ok(json!({ "Name": name, "VersionId": version, "VersionStages": ["AWSCURRENT"] }))
        }
        _ => error("UnknownOperationException", name),
    }
}

fn with_next(mut answer: Value, field: &str, next: Option<String>) -> Value {
    if let Some(next) = next {
        answer[field] = next.into();
    }
    answer
}
