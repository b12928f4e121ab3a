//! What a process uses, as Linux counts it: memory, processor time, wake-ups.

use std::path::Path;
use std::time::Duration;

/// What a process has used since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// The processor time of all threads.
    pub cpu: Duration,
    /// How often a thread has waited and has been woken.
    pub wakeups: u64,
}

impl Usage {
    /// The usage of a process that still runs.
    pub fn of(process: u32) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it still runs");
        let threads = threads.map(|thread| thread.expect("a thread has an entry").path());
        threads.fold(Self::default(), |sum, thread| sum + Self::of_thread(&thread))
    }

    /// Nothing if the thread has ended in the meantime.
    fn of_thread(thread: &Path) -> Self {
        let (Ok(times), Ok(status)) =
            (std::fs::read_to_string(thread.join("schedstat")), std::fs::read_to_string(thread.join("status")))
        else {
            return Self::default();
        };
        let nanoseconds = times.split(' ').next().and_then(|time| time.parse().ok());
        let wakeups = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Self {
            cpu: Duration::from_nanos(nanoseconds.expect("it begins with nanoseconds")),
            wakeups: wakeups.and_then(|count| count.trim().parse().ok()).expect("Linux counts them for each thread"),
        }
    }

    pub fn milliseconds(self) -> f64 {
        self.cpu.as_secs_f64() * 1e3
    }
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, wakeups: self.wakeups + other.wakeups }
    }
}

impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(other.cpu), wakeups: self.wakeups.saturating_sub(other.wakeups) }
    }
}

/// A process's resident memory in MB. It includes the pages of its binary that are in memory.
pub fn resident(process: u32) -> f64 {
    megabytes(&format!("/proc/{process}/status"), "VmRSS:")
}

/// A process's share of the memory in MB: a page that several processes have counts in part for each.
pub fn share(process: u32) -> f64 {
    megabytes(&format!("/proc/{process}/smaps_rollup"), "Pss:")
}

fn megabytes(file: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(file).expect("it still runs");
    let kib = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<f64>().ok()).expect("Linux says it in kB") * 1024.0 / 1e6
}
