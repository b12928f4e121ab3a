//! How soon endpoints flow again after the server in use was killed.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use mesh_tests::{eventually, http};
use serde_json::Value;
use tokio::time::sleep;

use super::{Admin, Envoy, INSTANCES, World, check};
use crate::BOUND;
use crate::peer::Who;

/// How often each side loses its server while this is a follower, and while it is the leader.
pub const FOLLOWERS: usize = 10;
pub const LEADERS: usize = 3;

/// For each side, the times from the kill of its server until its Envoy has a change. The test writes the change at another server, as soon
/// as possible after the kill. If the server was the leader, nothing can be written before the election of another.
#[derive(Default)]
pub struct Times {
    pub follower: BTreeMap<Who, Vec<Duration>>,
    pub leader: BTreeMap<Who, Vec<Duration>>,
}

/// Kills the servers of all sides in turns, one of three servers at a time. Each dataplane has just started: no side waits longer because
/// it has lost another server before.
pub async fn measure(sides: &[Who], folder: &Path) -> Times {
    let mut world = World::start(3, folder).await;
    let mut times = Times::default();
    for number in 0..FOLLOWERS + LEADERS {
        let leader = number >= FOLLOWERS;
        for who in sides {
            let took = kill(&mut world, *who, leader).await;
            let times = if leader { &mut times.leader } else { &mut times.follower };
            times.entry(*who).or_default().push(took);
        }
    }
    times
}

/// Kills the server of a new Envoy, changes an endpoint, and starts the server again. Returns the time until the change was in Envoy.
async fn kill(world: &mut World, who: Who, leader: bool) -> Duration {
    all_healthy(world).await;
    let envoy = world.run(who).await;
    let killed = server_of(world, &envoy).await;
    world.servers.kept = (killed + 1) % world.servers.all.len();
    lead(world, killed, leader).await;
    let mut admin = Admin::connect(&envoy).await.expect("Envoy runs");
    let change = check(0, "critical").to_string();
    let (url, token) = (world.servers.any().url("/v1/catalog/register"), world.servers.any().management.clone());
    world.servers.all[killed].kill();
    let began = Instant::now();
    while !matches!(http::request("PUT", &url, &[("X-Consul-Token", &token)], &change).await, Ok((200, _))) {
        assert!(began.elapsed() < BOUND, "no server takes the change");
        sleep(Duration::from_millis(10)).await;
    }
    while admin.endpoints().await.expect("Envoy runs") != INSTANCES - 1 {
        assert!(began.elapsed() < BOUND, "the change is not in Envoy: {}", envoy.process.output());
        sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    world.set_status(0, "passing").await;
    world.servers.all[killed].start_again().await;
    took
}

/// Waits until all servers take part again: autopilot counts them, and each of them has a value that was written now.
async fn all_healthy(world: &World) {
    let any = world.servers.any();
    let token = [("X-Consul-Token", any.management.as_str())];
    eventually("all servers are healthy", BOUND, async || {
        let (status, body) = http::request("GET", &any.url("/v1/operator/autopilot/health"), &token, "").await?;
        let health: Value = serde_json::from_str(&body).map_err(|error| format!("{status}: {error}"))?;
        let voters = health["Servers"].as_array().into_iter().flatten().filter(|server| server["Voter"] == true);
        if health["Healthy"] == true && voters.count() == world.servers.all.len() { Ok(()) } else { Err(body) }
    })
    .await;
    let value = format!("{:?}", Instant::now());
    eventually("the leader takes a write", BOUND, async || {
        match http::request("PUT", &any.url("/v1/kv/round"), &token, &value).await? {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    for server in &world.servers.all {
        eventually("the server has the value", BOUND, async || {
            match http::request("GET", &server.url("/v1/kv/round?raw&stale"), &token, "").await? {
                (200, text) if text == value => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

/// Makes this server the leader, or another one.
async fn lead(world: &World, server: usize, leader: bool) {
    let any = world.servers.any();
    let name = |index: usize| format!("server-{}", index + 1);
    let peers = async || any.call("GET", "/v1/operator/raft/configuration", &Value::Null).await["Servers"].take();
    eventually("the right server leads", BOUND, async || {
        let peers = peers().await;
        let peers = peers.as_array().map(Vec::as_slice).unwrap_or_default();
        let leads = peers.iter().any(|peer| peer["Node"] == name(server).as_str() && peer["Leader"] == true);
        if leads == leader && peers.iter().any(|peer| peer["Leader"] == true) {
            return Ok(());
        }
        let next = name(if leader { server } else { world.servers.kept });
        let next = peers.iter().find(|peer| peer["Node"] == next.as_str()).and_then(|peer| peer["ID"].as_str());
        let path = format!("/v1/operator/raft/transfer-leader?id={}", next.unwrap_or_default());
        let token = [("X-Consul-Token", any.management.as_str())];
        let answer = http::request("POST", &any.url(&path), &token, "").await?;
        Err(format!("{answer:?}"))
    })
    .await;
    all_healthy(world).await;
}

/// The index of the server to which the program of this Envoy has a connection.
async fn server_of(world: &World, envoy: &Envoy) -> usize {
    eventually("there is a connection to one server", BOUND, async || {
        let servers = connected(envoy.process.id());
        let servers = servers.iter().filter(|to| to.port() == world.servers.grpc).map(|to| to.ip().octets()[3]);
        let servers = servers.collect::<std::collections::BTreeSet<_>>();
        match servers.iter().copied().collect::<Vec<_>>()[..] {
            [number] => Ok(usize::from(number) - 1),
            ref other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// The addresses to which a process has TCP connections.
fn connected(process: u32) -> Vec<SocketAddrV4> {
    let sockets = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let sockets = sockets.filter_map(|file| {
        let target = std::fs::read_link(file.path()).ok()?.to_string_lossy().into_owned();
        Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    });
    let sockets = sockets.collect::<Vec<_>>();
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its connections");
    let connections = table.lines().filter_map(|line| {
        let words = line.split_whitespace().collect::<Vec<_>>();
        let (to, state, inode) = (words.get(2)?, words.get(3)?, words.get(9)?);
        let (ip, port) = to.split_once(':')?;
        // 1 is an established connection. The address is a number of this machine's byte order.
        if *state != "01" || !sockets.iter().any(|socket| socket == inode) {
            return None;
        }
        let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
        Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?))
    });
    connections.collect()
}
