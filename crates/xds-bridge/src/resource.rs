//! The four kinds of resources that Consul serves, and one converted resource.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};

/// A kind of xDS resource. The order of the kinds is the order in which Envoy's documentation asks servers to send them.
/// (<https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations>)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Upstream clusters, and the cluster of the local app.
    Cluster,
    /// `ClusterLoadAssignment`s: the instances of a cluster.
    Endpoint,
    /// Listeners.
    Listener,
    /// `RouteConfiguration`s. The listener of an HTTP service with traffic rules asks for them by name.
    Route,
}

impl Kind {
    /// All kinds, in order.
    pub const ALL: [Kind; 4] = [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route];

    /// The type URL of Envoy's requests.
    #[must_use]
    pub fn v3_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type URL of requests to Consul.
    #[must_use]
    pub fn v2_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.api.v2.Cluster",
            Kind::Endpoint => "type.googleapis.com/envoy.api.v2.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.api.v2.Listener",
            Kind::Route => "type.googleapis.com/envoy.api.v2.RouteConfiguration",
        }
    }

    /// The kind of a v3 or v2 type URL; `None` if Consul does not serve it.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.v3_url() == url || kind.v2_url() == url)
    }

    /// Whether Envoy gets all resources of the kind (CDS, LDS), or only those that it names (EDS, RDS).
    #[must_use]
    pub fn is_wildcard(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener)
    }

    /// The kind that resources of this kind need: clusters need endpoints, and listeners need routes.
    #[must_use]
    pub fn needs(self) -> Option<Kind> {
        match self {
            Kind::Cluster => Some(Kind::Endpoint),
            Kind::Listener => Some(Kind::Route),
            Kind::Endpoint | Kind::Route => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Cluster => "cluster",
            Kind::Endpoint => "endpoint",
            Kind::Listener => "listener",
            Kind::Route => "route",
        })
    }
}

/// A resource for Envoy. Its body may have private keys and tokens, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// The resource's name, by which Envoy asks for it.
    pub name: String,
    /// A hash of the body. Two Consul processes with the same configuration make the same version.
    pub version: String,
    /// The v3 message.
    pub body: Vec<u8>,
    /// The names of the resources that this one needs. Their kind is [`Kind::needs`].
    pub needs: Vec<String>,
}

impl Resource {
    /// A resource whose version is made from its body.
    #[must_use]
    pub fn new(name: String, body: Vec<u8>, needs: Vec<String>) -> Self {
        // All processes of one build make the same hash. After an upgrade of the bridge, Envoy gets everything once more.
        let mut hasher = DefaultHasher::new();
        hasher.write(&body);
        Self { name, version: format!("{:016x}", hasher.finish()), body, needs }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resource({} {}, {} bytes)", self.name, self.version, self.body.len())
    }
}
