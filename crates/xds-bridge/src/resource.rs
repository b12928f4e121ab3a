//! The four kinds of resource Consul serves, and one converted resource.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};

/// A kind of xDS resource, in the order Envoy has to get them: nothing may name what Envoy doesn't have yet.
/// (<https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#eventual-consistency-considerations>)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Upstream clusters, and the local app's.
    Cluster,
    /// `ClusterLoadAssignment`s: the instances of a cluster.
    Endpoint,
    /// Listeners.
    Listener,
    /// `RouteConfiguration`s: what a listener of an HTTP service with traffic rules asks for by name.
    Route,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Kind; 4] = [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route];

    /// The type URL Envoy asks for.
    #[must_use]
    pub fn v3_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type URL Consul answers to.
    #[must_use]
    pub fn v2_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.api.v2.Cluster",
            Kind::Endpoint => "type.googleapis.com/envoy.api.v2.ClusterLoadAssignment",
            Kind::Listener => "type.googleapis.com/envoy.api.v2.Listener",
            Kind::Route => "type.googleapis.com/envoy.api.v2.RouteConfiguration",
        }
    }

    /// The kind of a v3 or v2 type URL; none for what Consul doesn't serve.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.v3_url() == url || kind.v2_url() == url)
    }

    /// Whether Envoy takes every resource of the kind there is (CDS, LDS), or those it names (EDS, RDS).
    #[must_use]
    pub fn is_wildcard(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener)
    }

    /// The kind that resources of this kind ask for by name.
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

/// A resource as Envoy gets it. Its body may hold private keys and tokens, so it doesn't print.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// The name Envoy knows it by.
    pub name: String,
    /// A hash of the body: the same for the same configuration, whichever Consul process it came from.
    pub version: String,
    /// The v3 message.
    pub body: Vec<u8>,
    /// Names of the resources of [`Kind::needs`] that it asks for.
    pub needs: Vec<String>,
}

impl Resource {
    /// A resource, its version made from its body.
    #[must_use]
    pub fn new(name: String, body: Vec<u8>, needs: Vec<String>) -> Self {
        // The same in every process of a build. After an upgrade everything is sent once more, which does no harm.
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
