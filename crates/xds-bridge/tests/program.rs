//! The program from outside: the command that it runs, its exit codes, and its messages.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

fn bridge(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xds-bridge")).args(arguments).output().unwrap()
}

fn line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text
}

/// A Consul that prints its arguments.
fn consul(directory: &tempfile::TempDir) -> PathBuf {
    script(directory, "for argument; do echo \"$argument\"; done\nexit 3")
}

/// A Consul that runs these commands. Another process writes the file. If this process did, a child that another test starts meanwhile
/// would hold it open for writing, and Linux would not run it ("Text file busy").
fn script(directory: &tempfile::TempDir, commands: &str) -> PathBuf {
    let (text, path) = (directory.path().join("text"), directory.path().join("consul"));
    std::fs::write(&text, format!("#!/bin/sh\n{commands}\n")).unwrap();
    assert!(Command::new("install").args(["-m", "755"]).arg(&text).arg(&path).status().unwrap().success());
    path
}

#[test]
fn the_agent_gets_the_option_for_the_socket_last() {
    let directory = tempfile::tempdir().unwrap();
    let consul = consul(&directory);
    let consul = consul.to_str().unwrap();
    let output = bridge(&["--listen", "127.0.0.1:0", "--socket", "/run/x.sock", consul, "agent", "-config-dir=/c"]);
    assert_eq!(output.status.code(), Some(3), "Consul's own");
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines, ["agent", "-config-dir=/c", "-hcl", "addresses { grpc = \"unix:///run/x.sock\" }"]);
}

#[test]
fn another_command_is_run_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let consul = consul(&directory);
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = held.local_addr().unwrap().to_string();
    let output = bridge(&["--listen", &listen, consul.to_str().unwrap(), "members", "--help"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "members\n--help\n");
}

#[test]
fn the_exit_code_is_consuls() {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let directory = tempfile::tempdir().unwrap();
        let path = self::script(&directory, script);
        let output = bridge(&["--listen", "127.0.0.1:0", path.to_str().unwrap(), "agent"]);
        assert_eq!(output.status.code(), Some(code), "{script}");
    }
}

#[test]
fn a_taken_address_gives_one_line_and_starts_no_consul() {
    let directory = tempfile::tempdir().unwrap();
    let consul = consul(&directory);
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = held.local_addr().unwrap().to_string();
    let output = bridge(&["--listen", &listen, consul.to_str().unwrap(), "agent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(line(&output).starts_with(&format!("xds-bridge: cannot listen on {listen}: ")), "{}", line(&output));
}

#[test]
fn a_missing_consul_exits_127_and_a_wrong_command_line_2() {
    let output = bridge(&["--listen", "127.0.0.1:0", "/no/such/consul", "version"]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(line(&output), "xds-bridge: cannot run /no/such/consul: no such program\n");
    for (arguments, part) in [
        (&["--listen", "8502", "consul"][..], "--listen"),
        (&["--socket", "grpc.sock", "consul"], "absolute"),
        (&["--socket", "/a\"b", "consul"], "quotes"),
        (&["--socket", &format!("/{}", "a".repeat(107)), "consul"], "107"),
        (&["--tls-listen", "127.0.0.1:0", "consul"], "--tls-cert"),
        (&[], "arguments"),
    ] {
        let output = bridge(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(line(&output).contains(part), "{}", line(&output));
    }
}

#[test]
fn a_missing_certificate_or_a_wrong_http_address_gives_one_line_and_starts_no_consul() {
    let directory = tempfile::tempdir().unwrap();
    let consul = consul(&directory);
    let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", "/no/cert.pem", "--tls-key", "/no/key.pem"];
    for (arguments, part) in [(&tls[..], "/no/cert.pem"), (&["--http", "ftp://x"], "--http")] {
        let arguments = [&["--listen", "127.0.0.1:0"], arguments, &[consul.to_str().unwrap(), "agent"]].concat();
        let output = bridge(&arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(line(&output).contains(part), "{}", line(&output));
    }
}

#[test]
fn help_names_every_variable() {
    let output = bridge(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "XDS_BRIDGE_LISTEN",
        "XDS_BRIDGE_SOCKET",
        "XDS_BRIDGE_SOCKET_TLS",
        "XDS_BRIDGE_TLS_LISTEN",
        "XDS_BRIDGE_TLS_CERT",
        "XDS_BRIDGE_TLS_KEY",
        "XDS_BRIDGE_HTTP",
        "XDS_BRIDGE_DNS",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "Exit codes",
        "127.0.0.1:8502",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
