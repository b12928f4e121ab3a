//! Tests of ecs-local with the real Docker engine.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh_tests::http::{get_json, request};
use mesh_tests::moto::aws;
use mesh_tests::process::{Finished, Process, run};
use mesh_tests::{binary, eventually, free_port};
use rustix::process::Signal;
use serde_json::Value;

mod api;
mod lifecycle;
mod metadata;
mod secrets;
mod stop_task;

pub const SOON: Duration = Duration::from_secs(20);

/// Runs a Docker command, and returns its output without white space at the ends.
pub fn docker(arguments: &[&str]) -> Result<String, String> {
    // Only the classic builder can build FROM scratch without further software.
    let output = Command::new("docker").env("DOCKER_BUILDKIT", "0").args(arguments).output();
    let output = output.map_err(|error| format!("cannot run docker ({error}): install Docker and start it"))?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let hint = if error.contains("Cannot connect to the Docker daemon") { " (start Docker)" } else { "" };
    Err(format!("docker {}: {error}{hint}", arguments.join(" ")))
}

/// An ecs-local with its own cluster, and the containers of one task. Dropping it removes all of them.
pub struct Cluster {
    pub name: String,
    url: String,
    port: u16,
    api_port: u16,
    pub process: Option<Process>,
    /// The image of the next container, and the images that it is built from.
    images: Vec<String>,
    networks: Vec<String>,
}

pub const TASK_ID: &str = "0123456789abcdef0123456789abcdef";

impl Cluster {
    pub async fn new(test: &str) -> Self {
        let name = format!("ecs-mesh-test-{test}-{}", std::process::id());
        let port = free_port();
        let mut cluster = Self {
            url: format!("http://127.0.0.1:{port}"),
            port,
            api_port: free_port(),
            process: None,
            images: Vec::new(),
            networks: Vec::new(),
            name,
        };
        cluster.build("FROM scratch\nCOPY ecs-local demo-app /\n");
        cluster.start().await;
        cluster
    }

    /// Builds the image of the next containers.
    fn build(&mut self, dockerfile: &str) {
        let context = tempfile::tempdir().unwrap();
        for program in ["ecs-local", "demo-app"] {
            std::fs::copy(binary(program), context.path().join(program)).unwrap();
        }
        std::fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        self.images.push(format!("{}:{}", self.name, self.images.len()));
        // Without the cache, because another test may remove the cached layers.
        docker(&["build", "--quiet", "--no-cache", "--tag", self.image(), context.path().to_str().unwrap()]).unwrap();
    }

    fn image(&self) -> &str {
        self.images.last().expect("an image has been built")
    }

    async fn start(&mut self) {
        let mut command = Command::new(binary("ecs-local"));
        command.args(["serve", "--listen", &format!("127.0.0.1:{}", self.port), "--cluster", &self.name]);
        command.args(["--api-listen", &format!("127.0.0.1:{}", self.api_port)]);
        let process = Process::spawn(&mut command);
        process.says("answering on", SOON).await;
        self.process = Some(process);
    }

    pub fn network(&mut self, subnet: &str) -> String {
        let network = format!("{}-{}", self.name, self.networks.len());
        let subnet = if subnet.is_empty() { vec![] } else { vec!["--subnet", subnet] };
        docker(&[&["network", "create"], &subnet[..], &[&network]].concat()).unwrap();
        self.networks.push(network.clone());
        network
    }

    pub fn docker_name(&self, container: &str) -> String {
        format!("{}-{container}", self.name)
    }

    /// The ARN of a task in this cluster.
    pub fn arn(&self, task_id: &str) -> String {
        format!("arn:aws:ecs:eu-north-1:210987654321:task/{}/{task_id}", self.name)
    }

    /// The URL of its ECS API.
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}/", self.api_port)
    }

    pub fn endpoint(&self, container: &str) -> String {
        format!("{}/v4/{TASK_ID}-{container}", self.url)
    }

    /// Creates a container of the task. Options go before the image, the command after it.
    pub fn create(&self, container: &str, options: &[&str], command: &[&str]) {
        self.create_named(&self.docker_name(container), (TASK_ID, "web"), container, options, command);
    }

    /// Creates a container with this name in Docker, for a task with this ID and family.
    pub fn create_named(
        &self,
        name: &str,
        (task_id, family): (&str, &str),
        container: &str,
        options: &[&str],
        command: &[&str],
    ) {
        let labels = [
            format!("com.amazonaws.ecs.cluster={}", self.name),
            format!("com.amazonaws.ecs.task-arn={}", self.arn(task_id)),
            format!("com.amazonaws.ecs.task-definition-family={family}"),
            "com.amazonaws.ecs.task-definition-version=3".to_owned(),
            format!("com.amazonaws.ecs.container-name={container}"),
        ];
        let mut arguments = vec!["create", "--name", name];
        for label in &labels {
            arguments.extend(["--label", label]);
        }
        arguments.extend(options);
        arguments.push(self.image());
        arguments.extend(command);
        docker(&arguments).unwrap();
    }

    fn run(&self, container: &str, options: &[&str], command: &[&str]) {
        self.create(container, options, command);
        docker(&["start", &self.docker_name(container)]).unwrap();
        if command.contains(&"serve") {
            self.until_it_listens(container);
        }
    }

    /// Waits until a container's demo-app listens or has exited. Before that it has no handler for TERM, and the kernel drops signals that
    /// PID 1 does not handle.
    fn until_it_listens(&self, container: &str) {
        let mut command = Command::new("docker");
        let follow = ["logs", "--follow", &self.docker_name(container)];
        let mut logs = command.args(follow).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(logs.stderr.take().unwrap()).lines().map_while(Result::ok);
        lines.take_while(|line| !line.contains(" listens on ")).for_each(drop);
        let _ = logs.kill();
        let _ = logs.wait();
    }

    pub fn run_pause(&self, networks: &[&str]) {
        let mut options = vec!["--label", "ecs-mesh.type=CNI_PAUSE", "--label", "ecs-mesh.stop-timeout=2"];
        options.extend(["--network", networks.first().copied().unwrap_or("none")]);
        self.create("pause", &options, &["/ecs-local", "pause"]);
        for network in networks.iter().skip(1) {
            docker(&["network", "connect", network, &self.docker_name("pause")]).unwrap();
        }
        docker(&["start", &self.docker_name("pause")]).unwrap();
    }

    /// Runs an app in the pause container's network namespace.
    pub fn run_app(&self, container: &str, options: &[&str], command: &[&str]) {
        let joined = format!("container:{}", self.docker_name("pause"));
        self.run(container, &[&["--network", &joined], options].concat(), command);
    }

    /// Sends StopTask for this task, and returns the status and the answer.
    async fn stop_task(&self, cluster: &str, task: &str, order: &str) -> (u16, Value) {
        let headers =
            [("x-amz-target", "AmazonEC2ContainerServiceV20141113.StopTask"), ("x-ecs-local-stop-order", order)];
        let body = serde_json::json!({ "cluster": cluster, "task": task, "reason": "a test" }).to_string();
        let (status, body) = request("POST", &self.api(), &headers, &body).await.unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }

    /// Runs `ecs stop-task` of the real AWS CLI.
    async fn aws_stop_task(&self, cluster: &str, task: &str) -> Finished {
        let stop = ["ecs", "stop-task", "--cluster", cluster, "--task", task, "--reason", "a test"];
        aws(&self.api(), &stop).await
    }

    /// How many TERMs a container has got since `since`, from Docker's events.
    fn terms(&self, container: &str, since: u64) -> usize {
        let until = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 1;
        let name = format!("container={}", self.docker_name(container));
        let events = docker(&[
            "events",
            "--since",
            &since.to_string(),
            "--until",
            &until.to_string(),
            "--filter",
            &name,
            "--filter",
            "event=kill",
            "--format",
            "{{.Actor.Attributes.signal}}",
        ]);
        events.unwrap().lines().filter(|signal| *signal == "15").count()
    }

    pub async fn task(&self) -> Result<Value, String> {
        // The ID of any container is enough.
        get_json(&format!("{}/task", self.endpoint("pause"))).await
    }

    pub async fn until_task(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, SOON, async || {
            let task = self.task().await?;
            if holds(&task) { Ok(task) } else { Err(task.to_string()) }
        })
        .await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.process = None;
        let label = format!("label=com.amazonaws.ecs.cluster={}", self.name);
        if let Ok(ids) = docker(&["ps", "--all", "--quiet", "--filter", &label]) {
            let ids: Vec<&str> = ids.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = docker(&[&["rm", "--force", "--volumes"], &ids[..]].concat());
            }
        }
        for network in &self.networks {
            let _ = docker(&["network", "rm", network]);
        }
        for image in self.images.iter().rev() {
            let _ = docker(&["rmi", image]);
        }
    }
}

pub fn container<'a>(task: &'a Value, name: &str) -> &'a Value {
    let containers = task["Containers"].as_array().unwrap();
    containers.iter().find(|container| container["Name"] == name).unwrap_or_else(|| panic!("no {name} in {task}"))
}
