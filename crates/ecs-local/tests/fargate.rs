//! ecs-local's types preserve the answers of Fargate.

use ecs_local::documented::Task;
use serde_json::Value;

#[test]
fn a_fargate_task_survives_a_round_trip() {
    // The keys and types of AWS's page "Amazon ECS task metadata v4 examples for tasks on Fargate"; the values are invented.
    let documented: Value = serde_json::from_str(include_str!("fargate_task.json")).unwrap();
    let task: Task = serde_json::from_value(documented.clone()).unwrap();
    assert_eq!(serde_json::to_value(&task).unwrap(), documented);
}
