//! The ECS task metadata endpoint, version 4, and ECS's ARNs.
