//! The task metadata: no answer makes reading it panic, and what was read is read again the same.
#![no_main]

use ecs_meta::{Container, Task};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(task) = serde_json::from_slice::<Task>(body) {
        let _ = (task.task_id(), task.cluster_name(), task.cluster_arn(), task.private_ip());
        let written = serde_json::to_vec(&task).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<Task>(&written).expect("it was a task"), task);
    }
    if let Ok(container) = serde_json::from_slice::<Container>(body) {
        let _ = container.private_ip();
        let written = serde_json::to_vec(&container).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<Container>(&written).expect("it was a container"), container);
    }
});
