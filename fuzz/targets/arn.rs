//! ARNs: an ARN that is read is written as it was.
#![no_main]

use ecs_meta::{ClusterArn, TaskArn};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(arn) = text.parse::<TaskArn>() {
        assert_eq!(arn.to_string(), text);
        assert!(!arn.task_id().as_str().is_empty() && arn.cluster() != Some(""));
        assert_eq!(arn.sibling(arn.task_id().as_str()), arn);
        if let Some(cluster) = arn.cluster() {
            let cluster = arn.cluster_arn(cluster);
            assert_eq!(cluster.to_string().parse::<ClusterArn>().as_ref(), Ok(&cluster));
        }
    }
    if let Ok(arn) = text.parse::<ClusterArn>() {
        assert_eq!(arn.to_string(), text);
        assert!(!arn.name().is_empty());
    }
});
