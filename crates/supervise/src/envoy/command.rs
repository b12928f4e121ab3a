//! Envoy's command line, and the admin address in its bootstrap.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The admin page's address if no flag and no bootstrap gives one: Consul's own default.
pub(super) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 19000);

/// The value of an argument of Envoy, as `NAME VALUE` or `NAME=VALUE`.
fn value_of<'a>(command: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    let position = command.iter().position(|word| word == name);
    let next = position.and_then(|position| command.get(position + 1)).map(OsString::as_os_str);
    next.or_else(|| {
        let mut words = command.iter().filter_map(|word| word.to_str());
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(OsStr::new))
    })
}

/// Warns if draining would close connections too slowly.
pub(super) fn warn_of_draining(command: &[OsString]) {
    if value_of(command, "--drain-strategy").is_none_or(|strategy| strategy != "immediate") {
        tracing::warn!(
            "--drain without Envoy's --drain-strategy immediate: connections close gradually, over --drain-time-s"
        );
    }
}

/// The command with this `--concurrency` instead of its own.
pub(super) fn with_concurrency(command: &[OsString], workers: u32) -> Vec<OsString> {
    let mut with = Vec::with_capacity(command.len() + 2);
    let mut words = command.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--concurrency" {
            words.next();
        } else if !text.starts_with("--concurrency=") {
            with.push(word.clone());
        }
    }
    with.extend(["--concurrency".into(), workers.to_string().into()]);
    with
}

/// The address of Envoy's admin page, if the command names a bootstrap that has one.
pub(super) fn admin(command: &[OsString]) -> Option<SocketAddr> {
    // `-c` counts only with a .json file: a shell has a `-c` too, and Envoy knows the format by the extension.
    let short =
        value_of(command, "-c").filter(|path| Path::new(path).extension().is_some_and(|format| format == "json"));
    let path = value_of(command, "--config-path").or(short).map(PathBuf::from)?;
    let admin = admin_in(&path).inspect_err(|reason| {
        tracing::warn!("{}: {reason}; assuming Envoy's admin page at {ADMIN} (see --admin)", path.display());
    });
    admin.ok()
}

fn admin_in(bootstrap: &Path) -> Result<SocketAddr, String> {
    let text = fs::read(bootstrap).map_err(|error| format!("cannot read the file: {error}"))?;
    // The parser's message may quote the document, which holds a token.
    let bootstrap: Value = serde_json::from_slice(&text).map_err(|_| "the file is not JSON".to_owned())?;
    let address = &bootstrap["admin"]["address"]["socket_address"];
    let host = address["address"].as_str().and_then(|host| host.parse::<IpAddr>().ok());
    let port = address["port_value"].as_u64().and_then(|port| u16::try_from(port).ok());
    host.zip(port)
        .map(SocketAddr::from)
        .ok_or_else(|| "the file has no admin address with an IP address and a port".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn concurrency_is_replaced_or_added_in_the_command() {
        for line in
            ["envoy -c x --concurrency 2", "envoy --concurrency=2 -c x", "envoy --concurrency 2 -c x", "envoy -c x"]
        {
            assert_eq!(with_concurrency(&words(line), 4), words("envoy -c x --concurrency 4"), "{line}");
        }
    }

    #[test]
    fn the_admin_address_comes_from_the_bootstrap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("envoy.json");
        let file = path.display();
        let lines = [
            format!("envoy --config-path {file}"),
            format!("envoy -c {file} -l info"),
            format!("e --config-path={file}"),
        ];
        let bootstrap = |host: &str| {
            let address = format!(r#"{{"socket_address": {{"address": "{host}", "port_value": 19001}}}}"#);
            fs::write(&path, format!(r#"{{"admin": {{"access_log_path": "/dev/null", "address": {address}}}}}"#))
                .unwrap();
        };
        for line in lines {
            bootstrap("::1");
            assert_eq!(admin(&words(&line)), "[::1]:19001".parse().ok(), "{line}");
            bootstrap("127.0.0.1");
            assert_eq!(admin(&words(&line)), "127.0.0.1:19001".parse().ok(), "{line}");
            bootstrap("localhost");
            assert_eq!(admin(&words(&line)), None, "{line}");
        }
        assert_eq!(admin(&words("envoy --config-path /no/such/file")), None);
        for line in ["envoy", "sh -c exit", "envoy --config-path"] {
            assert_eq!(admin(&words(line)), None, "{line}");
        }
    }
}
