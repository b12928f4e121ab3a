//! Each of Consul's variables changes a real request. The table has a row for each variable.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use consul_api::{Client, Config};
use http_fixture::{Answer, Record, Server};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sidecar_kit::env::Env;
use sidecar_kit::exit::one_line;
use sidecar_kit::secret::Secret;

/// Two servers that answer every request like an agent and record it: `plain` or `tls(<server name>)`, then the request's head.
struct Servers {
    plain: String,
    tls: String,
    authority: String,
    asked: Receiver<String>,
}

impl Servers {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "consul.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let (sender, asked) = channel();
        let plain = serve(sender.clone(), |stream| Some(("plain".to_owned(), stream)));
        let tls = serve(sender, move |stream| {
            let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            tls.conn.complete_io(&mut tls.sock).ok()?;
            Some((format!("tls({})", tls.conn.server_name().unwrap_or_default()), tls))
        });
        Self { plain, tls, authority: made.cert.pem(), asked }
    }

    /// The servers' record of a request made with these variables, or the reason why there was no request.
    fn outcome(&self, variables: &[(&str, &str)]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = match Config::from_env(&variables.iter().copied().collect::<Env>()).and_then(Client::new) {
            Ok(client) => client,
            Err(error) => return one_line(&error),
        };
        match runtime.block_on(client.leader()) {
            Ok(leader) if leader.as_deref() == Some("10.0.0.1:8300") => self.asked.recv().unwrap(),
            // Without an address, the client asks 127.0.0.1:8500. On this machine an agent may answer there.
            Ok(leader) => format!("another server with leader {leader:?}"),
            Err(error) => one_line(&error),
        }
    }
}

/// A server that answers every request like an agent. `accept` returns the kind of a connection, which is sent on before the
/// request's head.
fn serve<S: Read + Write>(
    asked: Sender<String>,
    accept: impl Fn(TcpStream) -> Option<(String, S)> + Send + Sync + 'static,
) -> String {
    let kind = Arc::new(Mutex::new(String::new()));
    let accepted = kind.clone();
    let accept = move |stream| {
        let (kind, stream) = accept(stream)?;
        *accepted.lock().unwrap() = kind;
        Some(stream)
    };
    let server = Server::start_with(&Record::default(), accept, move |request| {
        let _ = asked.send(format!("{} {}", kind.lock().unwrap(), request.head));
        Answer::ok("\"10.0.0.1:8300\"").with_header("connection", "close")
    });
    server.address
}

/// The variable, its value, the other variables, and a text that the record contains only if the variable is set.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);

#[test]
fn each_variable_changes_a_real_request() {
    let servers = Servers::start();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let token_file = file("token", "from-the-file\n");
    let ca_file = file("authorities/private/ca.pem", &servers.authority);
    let ca_dir = dir.path().join("authorities").to_str().unwrap().to_owned();
    let (plain, tls) = (servers.plain.as_str(), servers.tls.as_str());
    let https = format!("https://{tls}");
    let at_plain = [("CONSUL_HTTP_ADDR", plain)];
    let at_tls = [("CONSUL_HTTP_ADDR", https.as_str())];
    let trusted = [("CONSUL_HTTP_ADDR", https.as_str()), ("CONSUL_CACERT_PEM", servers.authority.as_str())];
    let without_scheme = [("CONSUL_HTTP_ADDR", tls), ("CONSUL_CACERT_PEM", servers.authority.as_str())];
    let http = format!("http://{tls}");
    let with_http_scheme = [("CONSUL_HTTP_ADDR", http.as_str()), ("CONSUL_CACERT_PEM", servers.authority.as_str())];
    let with_auth = [("CONSUL_HTTP_ADDR", plain), ("CONSUL_HTTP_AUTH", "user:password")];
    let with_token = [("CONSUL_HTTP_ADDR", plain), ("CONSUL_HTTP_TOKEN", "from-the-variable")];

    let rows: &[Row] = &[
        ("CONSUL_HTTP_ADDR", plain, &[], "plain GET /v1/status/leader HTTP/1.1"),
        ("CONSUL_HTTP_ADDR", &format!("http://{plain}/consul/"), &[], "plain GET /consul/v1/status/leader HTTP/1.1"),
        ("CONSUL_HTTP_ADDR", &https, &[("CONSUL_CACERT_PEM", &servers.authority)], "tls() GET /v1"),
        ("CONSUL_HTTP_TOKEN", "abc", &at_plain, "x-consul-token: abc\r\n"),
        ("CONSUL_HTTP_TOKEN_FILE", &token_file, &with_token, "x-consul-token: from-the-file\r\n"),
        ("CONSUL_HTTP_AUTH", "user:password", &at_plain, "authorization: Basic dXNlcjpwYXNzd29yZA==\r\n"),
        ("CONSUL_HTTP_AUTH", "user", &at_plain, "authorization: Basic dXNlcjo=\r\n"),
        ("CONSUL_HTTP_AUTH_FILE", &token_file, &with_auth, "authorization: Basic ZnJvbS10aGUtZmlsZTo=\r\n"),
        ("CONSUL_HTTP_SSL", "true", &without_scheme, "tls() GET /v1"),
        ("CONSUL_HTTP_SSL", "true", &with_http_scheme, "tls() GET /v1"),
        ("CONSUL_HTTP_SSL_VERIFY", "false", &at_tls, "tls() GET /v1"),
        ("CONSUL_CACERT", &ca_file, &at_tls, "tls() GET /v1"),
        ("CONSUL_CAPATH", &ca_dir, &at_tls, "tls() GET /v1"),
        ("CONSUL_CACERT_PEM", &servers.authority, &at_tls, "tls() GET /v1"),
        ("CONSUL_TLS_SERVER_NAME", "consul.test", &trusted, "tls(consul.test) GET /v1"),
        ("CONSUL_NAMESPACE", "team a", &at_plain, "GET /v1/status/leader?ns=team%20a HTTP/1.1"),
        ("CONSUL_PARTITION", "part", &at_plain, "GET /v1/status/leader?partition=part HTTP/1.1"),
    ];
    for (variable, value, others, expected) in rows {
        let without = servers.outcome(others);
        assert!(!without.contains(expected), "without {variable}: {without}");
        let with = servers.outcome(&[*others, &[(variable, value)]].concat());
        assert!(with.contains(expected), "{variable}={value}: {with}");
    }
}

#[test]
fn a_rotated_token_file_is_read_for_the_next_request() {
    let servers = Servers::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", servers.plain.as_str()), ("CONSUL_HTTP_TOKEN_FILE", path)]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for token in ["first", "second"] {
        std::fs::write(path, token).unwrap();
        runtime.block_on(client.leader()).unwrap();
        let asked = servers.asked.recv().unwrap();
        assert!(asked.contains(&format!("x-consul-token: {token}\r\n")), "{asked}");
    }
    drop(file);
    let error = runtime.block_on(client.leader()).unwrap_err();
    assert!(one_line(&error).starts_with("no ACL token: cannot read the secret in /"), "{}", one_line(&error));
}

#[test]
fn a_replaced_ca_file_is_read_for_the_next_connection() {
    let (earlier, now) = (Servers::start(), Servers::start());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    let write = |text: String| {
        std::fs::write(directory.path().join("new"), text).unwrap();
        std::fs::rename(directory.path().join("new"), &file).unwrap();
    };
    write(earlier.authority.clone());
    let https = format!("https://{}", now.tls);
    let path = file.to_str().unwrap();
    for variable in ["CONSUL_CACERT", "SSL_CERT_FILE"] {
        write(earlier.authority.clone());
        let env = Env::from_iter([("CONSUL_HTTP_ADDR", https.as_str()), (variable, path), ("SSL_CERT_DIR", "/")]);
        let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ask = || runtime.block_on(client.leader()).map_err(|error| one_line(&error));
        let refused = ask().unwrap_err();
        assert!(refused.contains("no TLS connection"), "{refused}");
        write(format!("{}{}", earlier.authority, now.authority));
        assert!(ask().is_ok(), "{variable}: {:?}", ask());
        // Until a file can be used, the earlier certificates stay.
        write("half a file".to_owned());
        assert!(ask().is_ok(), "{variable}: {:?}", ask());
    }
}

#[test]
fn an_invalid_value_is_reported_with_what_is_expected() {
    let rows = [
        ("CONSUL_HTTP_ADDR", "ftp://consul", r#"CONSUL_HTTP_ADDR is "ftp://consul": expected host:port, http://"#),
        ("CONSUL_HTTP_ADDR", "unix://consul.sock", "expected host:port, http://…, https://… or unix:///path"),
        ("CONSUL_HTTP_ADDR", "http://", "expected host:port"),
        ("CONSUL_HTTP_SSL", "yes", r#"CONSUL_HTTP_SSL is "yes": expected true or false"#),
        ("CONSUL_HTTP_SSL_VERIFY", "no", "expected true or false"),
        ("CONSUL_CACERT", "/does/not/exist", "CONSUL_CACERT: cannot read /does/not/exist: No such file"),
        ("CONSUL_CAPATH", "/does/not/exist", "CONSUL_CAPATH: cannot read /does/not/exist: No such file"),
        (
            "CONSUL_CLIENT_CERT",
            "/cert.pem",
            "CONSUL_CLIENT_CERT is set without CONSUL_CLIENT_KEY: expected both or neither",
        ),
        (
            "CONSUL_CLIENT_KEY",
            "/key.pem",
            "CONSUL_CLIENT_KEY is set without CONSUL_CLIENT_CERT: expected both or neither",
        ),
    ];
    for (variable, value, expected) in rows {
        let error = Config::from_env(&Env::from_iter([(variable, value)])).unwrap_err();
        assert!(one_line(&error).contains(expected), "{variable}={value}: {}", one_line(&error));
    }
    for address in ["ftp://user:passw0rd@consul", "http://user:passw0rd,more@consul", "http://user:passw0rd@consul:x"] {
        let error = Config::from_env(&Env::from_iter([("CONSUL_HTTP_ADDR", address)])).unwrap_err().to_string();
        assert!(error.starts_with("CONSUL_HTTP_ADDR is a value that is not shown: expected "), "{error}");
    }
    let with_password = Env::from_iter([("CONSUL_HTTP_ADDR", "http://user:passw0rd@consul")]);
    let error = one_line(&Config::from_env(&with_password).unwrap_err());
    assert!(error.contains("CONSUL_HTTP_AUTH") && !error.contains("passw0rd"), "{error}");
}

#[test]
fn a_text_that_is_not_pem_is_named_and_not_shown() {
    let made = rcgen::generate_simple_self_signed(["consul.test".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).unwrap();
        directory.path().join(name).to_str().unwrap().to_owned()
    };
    let (good, good_key) = (file("good", &certificate), file("good.key", &key));
    let one_line_pem = format!("{certificate}{key}").replace('\n', "\\n");
    let bad = file("bad", &one_line_pem);
    let empty = file("empty", "");
    let identity = |certificate: &str, key: &str| {
        vec![("CONSUL_CLIENT_CERT", certificate.to_owned()), ("CONSUL_CLIENT_KEY", key.to_owned())]
    };
    let cases = [
        (
            vec![("CONSUL_CACERT_PEM", one_line_pem.clone())],
            "CONSUL_CACERT_PEM: its text cannot be used: its line breaks",
        ),
        (vec![("CONSUL_CACERT", bad.clone())], "CONSUL_CACERT: /"),
        (vec![("CONSUL_CACERT", empty)], "it holds no certificate"),
        (vec![("CONSUL_CACERT", certificate.clone())], "CONSUL_CACERT: cannot read a file: the variable holds a text"),
        (vec![("CONSUL_CAPATH", directory.path().to_str().unwrap().to_owned())], "CONSUL_CAPATH: /"),
        (identity(&bad, &good_key), "CONSUL_CLIENT_CERT: /"),
        (identity(&good, &bad), "CONSUL_CLIENT_KEY: /"),
        (identity(&good, &good), "it is not a private key"),
        (identity(&good, &key), "CONSUL_CLIENT_KEY: cannot read a file: the variable holds a text"),
        (
            vec![("CONSUL_HTTP_SSL_VERIFY", key.clone())],
            "CONSUL_HTTP_SSL_VERIFY is a value that is not shown: expected true",
        ),
        (vec![("CONSUL_HTTP_AUTH_FILE", key.clone())], "CONSUL_HTTP_AUTH_FILE: cannot read the secret in a file"),
    ];
    for (variables, expected) in cases {
        let error = Config::from_env(&Env::from_iter(variables)).unwrap_err();
        let line = one_line(&error);
        assert!(line.contains(expected) && line.len() < 400, "{expected}: {line}");
        for pem in [&certificate, &key] {
            let middle = &pem.lines().nth(1).unwrap()[20..50];
            assert!(!format!("{line} {error:?}").contains(middle), "{line}");
        }
    }
}

#[test]
fn https_without_a_given_ca_trusts_the_public_cas() {
    let servers = Servers::start();
    let https = format!("https://{}", servers.tls);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &servers.authority).unwrap();
    let path = file.path().to_str().unwrap();
    let address = ("CONSUL_HTTP_ADDR", https.as_str());
    assert!(servers.outcome(&[address, ("SSL_CERT_FILE", path)]).contains("tls() GET /v1"));
    let unknown = servers.outcome(&[address]);
    assert!(
        unknown.contains("TLS with https://127.0.0.1") && unknown.contains("invalid peer certificate"),
        "{unknown}"
    );
    // A CA certificate that is given for Consul replaces the public ones.
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap().cert.pem();
    let given = servers.outcome(&[address, ("SSL_CERT_FILE", path), ("CONSUL_CACERT_PEM", &other)]);
    assert!(given.contains("invalid peer certificate"), "{given}");
    let gone = servers.outcome(&[address, ("SSL_CERT_FILE", "/gone")]);
    assert_eq!(
        gone,
        "no CA certificate is given for https, and the public CA certificates cannot be read: SSL_CERT_FILE: cannot read /gone: No \
         such file or directory (os error 2)"
    );
    assert!(servers.outcome(&[("CONSUL_HTTP_ADDR", &servers.plain), ("SSL_CERT_FILE", "/gone")]).contains("plain GET"));
}

#[test]
fn secrets_that_a_server_repeats_are_not_in_the_error() {
    let server = Server::start(|request| {
        let fields = request.head.split_once("\r\n").unwrap().1;
        Answer::new("404 Not Found", format!("{fields}\r\n{}", request.body))
    });
    let env = Env::from_iter([
        ("CONSUL_HTTP_ADDR", server.address.as_str()),
        ("CONSUL_HTTP_TOKEN", "5ec3e7-token"),
        ("CONSUL_HTTP_AUTH", "user:5ec3e7"),
    ]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let proof = Secret::new("{\"5ec3e7\":\"x\"}");
    let meta = std::collections::BTreeMap::new();
    let login = runtime.block_on(client.login(consul_api::Login { method: "m", bearer_token: &proof, meta: &meta }));
    for line in [one_line(&runtime.block_on(client.leader()).unwrap_err()), one_line(&login.unwrap_err())] {
        assert!(line.contains("x-consul-token: …") && !line.contains("5ec3e7") && !line.contains("dXNlcj"), "{line}");
    }
}

#[test]
fn debug_of_configuration_and_client_shows_no_token() {
    let env = Env::from_iter([("CONSUL_HTTP_TOKEN", "s3cr3t"), ("CONSUL_HTTP_AUTH", "user:s3cr3t")]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let shown = format!("{client:?} {:?}", client.config());
    assert!(!shown.contains("s3cr3t") && !shown.contains("dXNlcj"), "{shown}");
}

#[test]
fn two_calls_at_once_both_omit_the_default_partition() {
    // The server answers a request with a partition only once both calls have sent one.
    let both = std::sync::Barrier::new(2);
    let server = Server::start(move |request| {
        if request.target.contains("partition=") {
            both.wait();
            let body = "Invalid query parameter: \"partition\" - Partitions are a Consul Enterprise feature";
            return Answer::new("400 Bad Request", body);
        }
        Answer::ok("\"10.0.0.1:8300\"")
    });
    let env = Env::from_iter([("CONSUL_HTTP_ADDR", server.address.as_str()), ("CONSUL_PARTITION", "default")]);
    let client = Client::new(Config::from_env(&env).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (one, other) = runtime.block_on(async { tokio::join!(client.leader(), client.leader()) });
    let leader = Some("10.0.0.1:8300".to_owned());
    assert_eq!((one.unwrap(), other.unwrap()), (leader.clone(), leader));
}
