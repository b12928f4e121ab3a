//! The CPU and memory that the sidecars need.
//!
//! Memory is the resident set (`VmRSS` in `/proc/PID/status`) plus a reserve. An idle `consul agent` 1.21.4 that has joined took 100 MB
//! (and about 0.3 s of CPU a minute). An idle `envoy --disable-hot-restart --concurrency 2` 1.40 took 67 MB. `cargo xtask bench` measures
//! the programs of this workspace: health-sync takes up to 4 MB. CPU is a share, not a limit.

use serde_json::{Map, Value, json};

/// CPU units (1024 are a core) and MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) cpu: u64,
    pub(crate) memory: u64,
}

pub(crate) fn share(sidecar: &str) -> Share {
    let (cpu, memory) = match sidecar {
        "consul-client" => (32, 128),
        "sidecar-proxy" | "dataplane" => (64, 96),
        _ => (8, 16),
    };
    Share { cpu, memory }
}

/// The sizes of Fargate: CPU, the least memory, the most memory, and the step between two sizes.
const FARGATE: [(u64, u64, u64, u64); 8] = [
    (256, 512, 1024, 512),
    (256, 2048, 2048, 1024),
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16384, 1024),
    (4096, 8192, 30720, 1024),
    (8192, 16384, 61440, 4096),
    (16384, 32768, 122_880, 8192),
];

/// Raises the size of the task if its containers do not fit, and adds a note for each change.
pub(crate) fn fit(definition: &mut Map<String, Value>, containers: &[Value], fargate: bool) -> Vec<String> {
    let sum = |of: &dyn Fn(&Value) -> Option<u64>| containers.iter().filter_map(of).sum::<u64>();
    let needs = Share {
        cpu: sum(&|container| container["cpu"].as_u64()),
        memory: sum(&|container| container["memoryReservation"].as_u64().or_else(|| container["memory"].as_u64())),
    };
    let had = (size(definition.get("cpu"), 1024), size(definition.get("memory"), 1024));
    let least = Share { cpu: had.0.unwrap_or(0).max(needs.cpu), memory: had.1.unwrap_or(0).max(needs.memory) };
    let exceeds = |had: Option<u64>, needs: u64| had.is_some_and(|had| needs > had);
    if !exceeds(had.0, needs.cpu) && !exceeds(had.1, needs.memory) {
        return Vec::new();
    }
    let raised = if fargate { fargate_size(least).unwrap_or(least) } else { least };
    let mut notes = Vec::new();
    for (name, had, raised, needs) in
        [("cpu", had.0, raised.cpu, needs.cpu), ("memory", had.1, raised.memory, needs.memory)]
    {
        if let Some(had) = had.filter(|had| *had != raised) {
            definition.insert(name.to_owned(), json!(raised.to_string()));
            notes.push(format!("{name}: raised from {had} to {raised}, since the containers take {needs}"));
        }
    }
    notes
}

/// The smallest size of Fargate with at least this CPU and memory.
fn fargate_size(least: Share) -> Option<Share> {
    FARGATE.into_iter().find_map(|(cpu, from, to, step)| {
        let memory = least.memory.max(from);
        let memory = from + (memory - from).div_ceil(step) * step;
        (cpu >= least.cpu && memory <= to).then_some(Share { cpu, memory })
    })
}

/// `256`, `"256"`, `".25 vCPU"`, `"0.5GB"`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size is small and not negative")]
fn size(value: Option<&Value>, unit: u64) -> Option<u64> {
    let value = value?;
    if let Some(number) = value.as_u64() {
        return Some(number);
    }
    let text = value.as_str()?.trim().to_ascii_lowercase();
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number: f64 = text.trim_end_matches(|c: char| c.is_alphabetic() || c.is_whitespace()).parse().ok()?;
    Some((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(size: Value, containers: &Value, fargate: bool) -> (Value, usize) {
        let Value::Object(mut definition) = size else { panic!("an object") };
        let notes = fit(&mut definition, containers.as_array().unwrap(), fargate);
        (definition.into(), notes.len())
    }

    #[test]
    fn a_task_grows_only_if_its_containers_do_not_fit() {
        let small = json!([{ "cpu": 120, "memoryReservation": 272 }, { "memory": 200 }]);
        let size = json!({ "cpu": "256", "memory": "512" });
        assert_eq!(fitted(size.clone(), &small, true), (size.clone(), 0));
        let large = json!([{ "cpu": 120, "memoryReservation": 272 }, { "cpu": 256, "memory": 512 }]);
        assert_eq!(fitted(size, &large, true), (json!({ "cpu": "512", "memory": "1024" }), 2));
        let words = json!({ "cpu": ".25 vCPU", "memory": "0.5 GB" });
        assert_eq!(fitted(words, &large, true), (json!({ "cpu": "512", "memory": "1024" }), 2));
        let ec2 = json!({ "memory": "600" });
        assert_eq!(fitted(ec2, &large, false), (json!({ "memory": "784" }), 1));
        assert_eq!(fitted(json!({}), &large, false), (json!({}), 0));
        let memory = json!([{ "memory": 2100 }]);
        let size = json!({ "cpu": "256", "memory": "2048" });
        assert_eq!(fitted(size, &memory, true), (json!({ "cpu": "512", "memory": "3072" }), 2));
        // Fargate has no 1536 MiB with a quarter of a CPU.
        let memory = json!([{ "memory": 1100 }]);
        let size = json!({ "cpu": "256", "memory": "1024" });
        assert_eq!(fitted(size, &memory, true), (json!({ "cpu": "256", "memory": "2048" }), 1));
    }
}
