//! The servers that the configuration names, one by one, and the one that is in use.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Uri;
use sidecar_kit::http;
use sidecar_kit::tls::TlsOptionsError;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::tls::Tls;

/// How long looking up a name may take. After that, the request itself looks it up, within its own limit.
const LOOKUP: Duration = Duration::from_secs(1);

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The URL that names it.
    pub(crate) base: String,
    /// One of the addresses of the name in the URL. None if the URL has no name, or a name with a single address.
    pub(crate) address: Option<SocketAddr>,
}

/// A server and its connections.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) place: Place,
    pub(crate) http: http::Client,
}

/// All servers. One of them is used until it fails.
#[derive(Debug)]
pub(crate) struct Servers {
    /// As they were given. The names are looked up when a server is chosen.
    given: Vec<Place>,
    tls: Arc<Tls>,
    in_use: Mutex<Option<Arc<Server>>>,
    #[cfg(test)]
    pub(crate) addresses_of_names: Vec<SocketAddr>,
}

impl Servers {
    /// The servers at these places.
    ///
    /// # Errors
    /// When TLS cannot be used.
    pub(crate) fn new(given: Vec<Place>, tls: Arc<Tls>) -> Result<Self, TlsOptionsError> {
        let servers = Self {
            given,
            tls,
            in_use: Mutex::default(),
            #[cfg(test)]
            addresses_of_names: Vec::new(),
        };
        for place in &servers.given {
            servers.connect_to(place.clone())?;
        }
        Ok(servers)
    }

    fn connect_to(&self, place: Place) -> Result<Arc<Server>, TlsOptionsError> {
        let http = match place.base.split_once("://") {
            Some(("unix", path)) => http::Client::unix(path),
            Some(("https", _)) => {
                let tls = self.tls.clone();
                http::Client::with_current_tls(Arc::new(move || tls.current()), place.address)?
            }
            _ => http::Client::plain_to(place.address),
        };
        Ok(Arc::new(Server { place, http }))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Server>>> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server in use. At first, that is the first one.
    pub(crate) async fn in_use(&self) -> Result<Arc<Server>, TlsOptionsError> {
        if let Some(server) = &*self.lock() {
            return Ok(server.clone());
        }
        let first = self.connect_to(self.places().await.swap_remove(0))?;
        Ok(self.lock().get_or_insert(first).clone())
    }

    /// Leaves a server that has failed. From now on, the next one is in use. Returns it, unless all servers were `tried`.
    pub(crate) async fn leave(&self, server: &Arc<Server>, tried: &[Place]) -> Option<Arc<Server>> {
        let mut places = self.places().await;
        let after = places.iter().position(|place| *place == server.place).map_or(0, |at| at + 1);
        let after = after % places.len();
        places.rotate_left(after);
        let untried = places.iter().find(|place| !tried.contains(place));
        let mut in_use = self.lock();
        let current = in_use.as_ref().filter(|current| !Arc::ptr_eq(current, server));
        if let Some(current) = current.filter(|current| untried.is_none() || !tried.contains(&current.place)) {
            // Another call has moved on already.
            return untried.map(|_| current.clone());
        }
        let next = untried.unwrap_or(&places[0]);
        if *next != server.place {
            *in_use = Some(self.connect_to(next.clone()).ok()?);
        }
        untried.and(in_use.clone())
    }

    /// All places, in the order in which they are given. A name with several addresses has a place for each of them.
    pub(crate) async fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for place in &self.given {
            let addresses = match place.address {
                None => self.addresses(&place.base).await,
                Some(_) => Vec::new(),
            };
            if addresses.len() < 2 {
                places.push(place.clone());
                continue;
            }
            places.extend(addresses.into_iter().map(|address| Place { address: Some(address), ..place.clone() }));
        }
        places
    }

    /// The addresses of the name in a URL. None if there is no name, or if it is not found. Then the request reports the cause.
    async fn addresses(&self, base: &str) -> Vec<SocketAddr> {
        let Ok(uri) = base.parse::<Uri>() else { return Vec::new() };
        let Some(host) = uri.host().filter(|_| uri.scheme_str() != Some("unix")) else { return Vec::new() };
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Vec::new();
        }
        #[cfg(test)]
        if !self.addresses_of_names.is_empty() {
            return self.addresses_of_names.clone();
        }
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        match timeout(LOOKUP, lookup_host((host, port))).await {
            Ok(Ok(found)) => {
                let mut addresses = Vec::new();
                found.for_each(|address| {
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                });
                addresses
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use http_fixture::{Answer, Server as Fixture};
    use sidecar_kit::env::Env;

    use crate::{Client, Config};

    use super::*;

    /// A client of servers behind one name: the first is frozen, the second answers.
    fn behind_one_name() -> (TcpListener, Fixture, Client) {
        let answering = Fixture::start(|_| Answer::ok(r#""10.0.0.1:8300""#));
        let at: SocketAddr = answering.url().parse::<Uri>().unwrap().authority().unwrap().as_str().parse().unwrap();
        // The system accepts connections for it, and it never answers.
        let frozen = TcpListener::bind(("127.0.0.2", at.port())).unwrap();
        let address = format!("http://servers.test:{}", at.port());
        let env = Env::from_iter([("CONSUL_HTTP_ADDR", address)]);
        let mut client =
            Client::new(Config::from_env(&env).unwrap()).unwrap().no_longer_than(Duration::from_millis(200));
        client.servers.addresses_of_names = vec![frozen.local_addr().unwrap(), at];
        (frozen, answering, client)
    }

    #[tokio::test]
    async fn a_read_goes_on_with_the_next_address_of_the_same_name() {
        let (_frozen, answering, client) = behind_one_name();
        assert_eq!(client.leader().await.unwrap().as_deref(), Some("10.0.0.1:8300"));
        assert!(answering.requests()[0].header("host").starts_with("servers.test:"));
        client.leader().await.unwrap();
        assert_eq!(answering.requests().len(), 2);
    }

    #[tokio::test]
    async fn after_a_write_without_an_answer_the_next_address_is_in_use() {
        let (_frozen, answering, client) = behind_one_name();
        let token = sidecar_kit::secret::Secret::new("t");
        let within = Duration::from_secs(1);
        assert!(client.logout(&token, within).await.unwrap_err().may_have_arrived());
        client.logout(&token, within).await.unwrap();
        assert_eq!(answering.requests().len(), 1);
    }

    #[tokio::test]
    async fn each_address_of_a_name_has_a_client() {
        let (_frozen, _answering, client) = behind_one_name();
        let each = client.each().await.unwrap();
        assert_eq!(each.len(), 2);
        assert!(each[0].leader().await.is_err());
        assert!(each[1].leader().await.is_ok());
    }
}
