//! What every ecs-mesh container needs and none should write twice.
