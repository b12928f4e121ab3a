//! DNS for the task's apps.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::*;

/// A query for A records, which allows an answer of this size.
fn query(name: &str, size: Option<u16>) -> Vec<u8> {
    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    if let Some(size) = size {
        query[11] = 1;
        query.extend([0, 0, 41]);
        query.extend(size.to_be_bytes());
        query.extend([0; 6]);
    }
    query
}

/// Rcode, truncated, number of answers, length.
fn read(answer: &[u8]) -> (u8, bool, u16, usize) {
    assert_eq!(answer[..2], *b"\x12\x34");
    (answer[3] & 0x0f, answer[2] & 2 != 0, u16::from_be_bytes([answer[6], answer[7]]), answer.len())
}

async fn udp(port: u16, query: &[u8]) -> (u8, bool, u16, usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(query, ("127.0.0.1", port)).await.unwrap();
    let mut answer = vec![0; 65_535];
    let length = tokio::time::timeout(BOUND, socket.recv(&mut answer)).await.expect("in time").unwrap();
    read(&answer[..length])
}

async fn tcp(port: u16, query: &[u8]) -> (u8, bool, u16, usize) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let length = u16::try_from(query.len()).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await.unwrap();
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    read(&answer)
}

#[tokio::test]
async fn queries_are_answered_by_udp_and_tcp_and_refused_when_the_servers_fail() {
    let mut servers = Servers::start(1).await;
    // So many instances that an answer needs more than 512 bytes.
    for number in 1..=60 {
        let service = json!({ "ID": format!("many-{number}"), "Service": "many", "Port": 80 });
        let registration =
            json!({ "Node": format!("n{number}"), "Address": format!("10.1.0.{number}"), "Service": service });
        servers.any().call("PUT", "/v1/catalog/register", &registration).await;
    }
    let (web, _) = web(&servers);
    let web = web.with("CONSUL_HTTP_TOKEN", servers.any().service_token("web").await);
    web.register().await;
    let web = web.starts().await;
    let dns = web.task.dns;
    let many = "many.service.consul";
    let (code, _, answers, length) = udp(dns, &query(many, None)).await;
    assert!(code == 0 && answers > 0 && length <= 512, "{code} {answers} {length}");
    let (code, _, answers, length) = udp(dns, &query(many, Some(4096))).await;
    assert!(code == 0 && answers > 0 && length <= 4096, "{code} {answers} {length}");
    let (code, truncated, answers, length) = tcp(dns, &query(many, None)).await;
    assert!(code == 0 && !truncated && answers == 60 && length > 512, "{code} {answers} {length}");
    // Consul refuses what is not below its own domain.
    assert_eq!(udp(dns, &query("example.com", None)).await.0, 5);
    assert_eq!(web.metric("mesh_dataplane_dns_queries_total{result=\"answered\"}").await, 4);
    servers.all[0].kill();
    let (code, _, answers, _) = udp(dns, &query(many, Some(1232))).await;
    assert_eq!((code, answers), (2, 0));
    assert_eq!(tcp(dns, &query(many, None)).await.0, 2);
}

#[tokio::test]
async fn query_with_a_token_that_was_deleted_fails_instead_of_finding_nothing() {
    let servers = Servers::start(1).await;
    let (web, _) = web(&servers);
    let web = web.with("CONSUL_HTTP_TOKEN", servers.any().service_token("web").await);
    web.register().await;
    let web = web.starts().await;
    let tokens = servers.any().call("GET", "/v1/acl/tokens", &Value::Null).await;
    let own = tokens.as_array().unwrap().iter().find(|token| token["ServiceIdentities"].is_array()).unwrap();
    let own = own["AccessorID"].as_str().unwrap();
    servers.any().call("DELETE", &format!("/v1/acl/token/{own}"), &Value::Null).await;
    web.dataplane.says("no server of Consul can be used", BOUND).await;
    assert_eq!(udp(web.task.dns, &query("web.service.consul", None)).await.0, 2);
}

#[tokio::test]
async fn query_is_answered_although_a_server_is_silent() {
    let servers = Servers::start(3).await;
    let (web, _) = web(&servers);
    let web = web.with("CONSUL_HTTP_TOKEN", servers.any().service_token("web").await);
    web.register().await;
    let web = web.starts().await;
    let query = query("consul.service.consul", None);
    let (code, _, answers, _) = udp(web.task.dns, &query).await;
    assert!(code == 0 && answers > 0, "{code} {answers}");
    servers.all[web.server()].freeze();
    let (code, _, answers, _) = udp(web.task.dns, &query).await;
    assert!(code == 0 && answers > 0, "{code} {answers}");
}

/// A task whose dataplane answers queries.
async fn resolver() -> (Servers, Member) {
    let servers = Servers::start(1).await;
    let (web, _) = web(&servers);
    let web = web.with("CONSUL_HTTP_TOKEN", servers.any().service_token("web").await);
    web.register().await;
    let web = web.starts().await;
    assert_eq!(udp(web.task.dns, &query("consul.service.consul", None)).await.0, 0);
    (servers, web)
}

#[tokio::test]
async fn answer_that_comes_as_a_query_gets_no_answer() {
    let (_servers, web) = resolver().await;
    let query = query("consul.service.consul", None);
    let mut answer = query.clone();
    answer[2] |= 0x80;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&answer, ("127.0.0.1", web.task.dns)).await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", web.task.dns)).await.unwrap();
    stream.write_all(&[&u16::try_from(answer.len()).unwrap().to_be_bytes()[..], &answer].concat()).await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    // One after the other, so Consul would have answered the first message too.
    for _ in 0..10 {
        assert_eq!(udp(web.task.dns, &query).await.0, 0);
    }
    assert_eq!(web.metric("mesh_dataplane_dns_queries_total{result=\"answered\"}").await, 11);
}

#[tokio::test]
async fn every_query_of_a_burst_is_answered() {
    let (_servers, web) = resolver().await;
    let query = query("consul.service.consul", None);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // So many fit into the kernel's buffer.
    for _ in 0..200 {
        socket.send_to(&query, ("127.0.0.1", web.task.dns)).await.unwrap();
    }
    let mut answer = [0; 512];
    for _ in 0..200 {
        let length = tokio::time::timeout(BOUND, socket.recv(&mut answer)).await.expect("each is answered").unwrap();
        assert_eq!(read(&answer[..length]).0, 0);
    }
}

#[tokio::test]
async fn oldest_idle_connection_makes_room_for_a_new_one() {
    let (_servers, web) = resolver().await;
    let mut idle = Vec::new();
    for _ in 0..128 {
        idle.push(TcpStream::connect(("127.0.0.1", web.task.dns)).await.unwrap());
    }
    assert_eq!(tcp(web.task.dns, &query("consul.service.consul", None)).await.0, 0);
    assert_eq!(idle[0].read(&mut [0]).await.unwrap(), 0, "the oldest is closed");
    let open = idle[1..].iter().filter(|stream| stream.try_read(&mut [0]).is_err());
    assert_eq!(open.count(), 127);
}
