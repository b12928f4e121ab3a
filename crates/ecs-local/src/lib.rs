//! ECS's task metadata endpoint for the containers of a local Docker engine.
