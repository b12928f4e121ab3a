//! The program `mesh-probe` at work in a task's network namespace, and what its samples show.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use mesh_probe::{Sample, Seen, now};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::command::CommandError;

/// How long Docker may take to start the container, until its first sample.
const START_BOUND: Duration = Duration::from_secs(30);

/// A running probe. Dropping it ends the program.
#[derive(Debug)]
pub(crate) struct Probe {
    /// The program ends when its standard input ends.
    child: Child,
    samples: Arc<Mutex<Vec<Sample>>>,
    reading: JoinHandle<()>,
}

impl Probe {
    /// Starts a probe in the network namespace of the container `holder`, and waits for its first sample.
    pub(crate) async fn start(holder: &str) -> Result<Self, CommandError> {
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--interactive", "--read-only", "--cap-drop", "ALL", "--pull", "never"]);
        command.args(["--network", &format!("container:{holder}"), "ecs-mesh/mesh-probe:dev", "watch"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = |source| CommandError::Start { program: "docker".to_owned(), source };
        let mut child = command.spawn().map_err(start)?;
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        let (first, begun) = tokio::sync::oneshot::channel();
        let (read, mut first) = (samples.clone(), Some(first));
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(sample) = serde_json::from_str(&line) {
                    read.lock().expect("no writer panics").push(sample);
                    first.take().map(|first| first.send(()));
                }
            }
        });
        if !matches!(timeout(START_BOUND, begun).await, Ok(Ok(()))) {
            let source = std::io::Error::other("the probe in the task's network namespace prints nothing");
            return Err(start(source));
        }
        Ok(Self { child, samples, reading })
    }

    /// All samples so far, oldest first. Each differs from the one before.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.samples.lock().expect("no writer panics").clone()
    }

    /// The last sample; `None` if Envoy did not answer then.
    pub(crate) fn last(&self) -> Option<Seen> {
        self.samples.lock().expect("no writer panics").last().and_then(|sample| sample.seen.clone())
    }

    /// Ends the program.
    pub(crate) async fn end(mut self) {
        drop(self.child.stdin.take());
        // The samples are complete, whether or not the program ends in time.
        let _ = timeout(Duration::from_secs(10), self.child.wait()).await;
        self.reading.abort();
    }
}

/// The time of the last removal of an endpoint after `since`; `None` if the samples show none.
pub(crate) fn removed(samples: &[Sample], endpoint: &str, since: i64) -> Option<i64> {
    let answers =
        samples.iter().filter_map(|sample| Some((sample.at, sample.seen.as_ref()?.endpoints.contains(endpoint))));
    let answers = answers.collect::<Vec<_>>();
    let pairs = answers.iter().zip(answers.iter().skip(1));
    pairs.filter(|((_, before), (at, after))| *at > since && *before && !after).map(|(_, (at, _))| *at).next_back()
}

/// The last time after `since` at which a count rose.
pub(crate) fn last_rise(samples: &[Sample], since: i64, count: impl Fn(&Seen) -> u64) -> Option<i64> {
    let counts = samples.iter().filter_map(|sample| Some((sample.at, count(sample.seen.as_ref()?))));
    let counts = counts.collect::<Vec<_>>();
    let pairs = counts.iter().zip(counts.iter().skip(1));
    pairs.filter(|((_, before), (at, after))| *at > since && after > before).map(|(_, (at, _))| *at).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: i64, endpoint: bool, inbound: u64) -> Sample {
        let endpoints = endpoint.then(|| "10.0.0.1:20000".to_owned()).into_iter().collect();
        Sample { at, seen: Some(Seen { endpoints, inbound, ..Seen::default() }) }
    }

    #[test]
    fn samples_show_when_an_endpoint_was_removed() {
        let gone = Sample { at: 9, seen: None };
        let samples = [at(1, true, 5), at(2, true, 6), at(3, false, 7), at(4, false, 7), gone];
        assert_eq!(removed(&samples, "10.0.0.1:20000", 0), Some(3));
        assert_eq!(removed(&samples, "10.0.0.1:20000", 3), None);
        assert_eq!(removed(&samples[..2], "10.0.0.1:20000", 0), None);
        let no_answer = [at(1, true, 5), Sample { at: 2, seen: None }];
        assert_eq!(removed(&no_answer, "10.0.0.1:20000", 0), None, "an Envoy that has ended removes no endpoint");
        let across = [at(1, true, 5), Sample { at: 2, seen: None }, at(3, false, 5)];
        assert_eq!(removed(&across, "10.0.0.1:20000", 0), Some(3), "Envoy did not answer meanwhile");
    }

    #[test]
    fn samples_show_when_a_count_last_rose() {
        let samples = [at(1, true, 5), at(2, true, 6), at(3, true, 7), at(4, true, 7)];
        assert_eq!(last_rise(&samples, 0, |seen| seen.inbound), Some(3));
        assert_eq!(last_rise(&samples, 3, |seen| seen.inbound), None);
    }
}
