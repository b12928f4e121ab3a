//! The task metadata: no answer makes reading it panic, and what ecs-local serves is written and read again the same.
#![no_main]

/// The module alone: with the whole of ecs-local, Docker's client would be built with coverage counters too.
#[allow(dead_code)]
#[path = "../../crates/ecs-local/src/documented.rs"]
mod documented;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(task) = serde_json::from_slice::<ecs_meta::Task>(body) {
        let _ = (task.task_id(), task.cluster_arn(), task.private_ip());
    }
    if let Ok(container) = serde_json::from_slice::<ecs_meta::Container>(body) {
        let _ = container.private_ip();
    }
    if let Ok(task) = serde_json::from_slice::<documented::Task>(body) {
        let written = serde_json::to_vec(&task).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<documented::Task>(&written).expect("it was a task"), task);
    }
    if let Ok(container) = serde_json::from_slice::<documented::Container>(body) {
        let written = serde_json::to_vec(&container).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<documented::Container>(&written).expect("it was a container"), container);
    }
});
