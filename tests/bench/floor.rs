//! The floor: the time that the necessary calls take with a client that does nothing else.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use mesh_tests::aws::CLUSTER;
use serde_json::{Value, json};
use sidecar_kit::http::{Client, Limits};

use crate::acl_controller::{PREFIX, World};

/// acl-controller's default.
const CONCURRENCY: usize = 32;

const LIMITS: Limits = Limits { time: Duration::from_secs(30), bytes: 16 << 20 };

/// The time from the first list to the last filled secret. All lists are read at once, each of them page by page. Then three calls fill
/// each secret, for as many secrets at the same time as acl-controller processes.
pub async fn measure(world: &World) -> Duration {
    let plain = &Plain { client: Client::plain(), world };
    let began = Instant::now();
    tokio::join!(
        plain.tasks("RUNNING"),
        plain.tasks("STOPPED"),
        plain.secrets(),
        plain.consul("GET", "/v1/acl/tokens", &Value::Null),
        plain.consul("GET", "/v1/acl/policies", &Value::Null),
        plain.consul("GET", "/v1/config/terminating-gateway", &Value::Null),
    );
    let filled =
        stream::iter(world.size.secrets()).map(async |name| plain.fill(&name).await).buffer_unordered(CONCURRENCY);
    filled.collect::<()>().await;
    began.elapsed()
}

struct Plain<'a> {
    client: Client,
    world: &'a World,
}

impl Plain<'_> {
    /// Lists the tasks, and describes each page while it lists the next one.
    async fn tasks(&self, desired: &str) {
        let pages = stream::try_unfold(Some(Value::Null), async |token| {
            let Some(token) = token else { return Ok::<_, std::convert::Infallible>(None) };
            let list = json!({ "cluster": CLUSTER, "desiredStatus": desired, "nextToken": token });
            let mut page = self.ecs("ListTasks", &list).await;
            let next = Some(page["nextToken"].take()).filter(|next| !next.is_null());
            Ok(Some((page["taskArns"].take(), next)))
        });
        let described = pages.try_for_each_concurrent(CONCURRENCY, async |arns| {
            if arns.as_array().is_some_and(|arns| !arns.is_empty()) {
                self.ecs("DescribeTasks", &json!({ "cluster": CLUSTER, "tasks": arns, "include": ["TAGS"] })).await;
            }
            Ok(())
        });
        let Ok(()) = described.await;
    }

    async fn secrets(&self) {
        let filter = json!([{ "Key": "name", "Values": [format!("{PREFIX}-")] }]);
        let mut token = Value::Null;
        loop {
            let list = json!({ "Filters": filter, "MaxResults": 100, "NextToken": token });
            token = self.secrets_manager("ListSecrets", &list).await["NextToken"].take();
            if token.is_null() {
                return;
            }
        }
    }

    async fn fill(&self, name: &str) {
        self.secrets_manager("GetSecretValue", &json!({ "SecretId": name })).await;
        let token = json!({ "ServiceIdentities": [{ "ServiceName": name }] });
        let token = self.consul("PUT", "/v1/acl/token", &token).await;
        let text = json!({ "accessor_id": token["AccessorID"], "token": token["SecretID"] }).to_string();
        self.secrets_manager("PutSecretValue", &json!({ "SecretId": name, "SecretString": text })).await;
    }

    async fn ecs(&self, call: &str, body: &Value) -> Value {
        self.aws("ecs", &format!("AmazonEC2ContainerServiceV20141113.{call}"), body).await
    }

    async fn secrets_manager(&self, call: &str, body: &Value) -> Value {
        self.aws("secretsmanager", &format!("secretsmanager.{call}"), body).await
    }

    /// The signature is invented, because the simulated AWS checks only its scope.
    async fn aws(&self, service: &str, target: &str, body: &Value) -> Value {
        let scope = format!("AWS4-HMAC-SHA256 Credential=floor/20260101/eu-north-1/{service}/aws4_request");
        let url = format!("{}/", self.world.aws.url);
        self.send("POST", &url, &[("x-amz-target", target), ("authorization", &scope)], body).await
    }

    async fn consul(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.world.consul.address);
        self.send(method, &url, &[("x-consul-token", &self.world.agent.management)], body).await
    }

    async fn send(&self, method: &str, url: &str, head: &[(&str, &str)], body: &Value) -> Value {
        let mut request = hyper::Request::builder().method(method).uri(url);
        for (name, value) in head {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(body.into()).expect("the request is well-formed");
        let answer = self.client.send(request, LIMITS).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(answer.status, 200, "{url}: {}", answer.excerpt());
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{url}: {error}"))
    }
}
