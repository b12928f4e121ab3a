//! What Fargate answers is kept by the types with which ecs-local answers.

use ecs_local::documented::Task;
use serde_json::Value;

#[test]
fn a_task_in_the_form_of_aws_s_example_for_fargate_survives_a_round_trip() {
    // The keys and types of AWS's page "Amazon ECS task metadata v4 examples for tasks on Fargate"; the values are made up.
    let documented: Value = serde_json::from_str(include_str!("fargate_task.json")).unwrap();
    let task: Task = serde_json::from_value(documented.clone()).unwrap();
    assert_eq!(serde_json::to_value(&task).unwrap(), documented);
}
