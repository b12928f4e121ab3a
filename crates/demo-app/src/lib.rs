//! A service, a client and a load generator to watch a mesh with.
