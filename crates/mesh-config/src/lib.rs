//! The CONSUL_ECS_CONFIG_JSON document and the names derived from it.
