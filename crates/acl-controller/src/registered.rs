//! Which services have been registered for more than an hour. Consul's catalog stores no times, but each new service gets a higher index.
//! So the controller notes the highest index from time to time, which makes a mark. A service is old if its index is at most that of a
//! mark from more than an hour ago.

use std::time::{Duration, SystemTime};

use consul_api::KeyWrite;
use serde::{Deserialize, Serialize};

use crate::consul::Consul;
use crate::error::Error;
use crate::owner::Names;
use crate::record::rfc3339;
use crate::term::Term;

/// ECS describes a stopped task for about an hour. So a task that is this old and unknown has stopped.
pub(crate) const OLD: Duration = Duration::from_secs(60 * 60);

/// The least time between two marks.
const STEP: Duration = Duration::from_secs(10 * 60);

/// The highest index of the services at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    #[serde(with = "rfc3339")]
    at: Option<SystemTime>,
    index: u64,
}

/// The marks, the oldest first. The controllers of a cluster keep them in Consul, so that a new leader knows them.
#[derive(Debug, Default)]
pub(crate) struct Registered {
    marks: Vec<Mark>,
    written: Vec<Mark>,
}

/// Whether this time is more than an hour ago.
pub(crate) fn is_old(at: Option<SystemTime>, now: SystemTime) -> bool {
    at.and_then(|at| now.duration_since(at).ok()).is_some_and(|age| age >= OLD)
}

impl Registered {
    /// Reads the marks. A malformed record counts as none.
    pub(crate) async fn read(consul: &Consul, names: &Names) -> Result<Self, Error> {
        let key = names.key("registered");
        let found = consul.keys_below(&key).await?.into_iter().find(|found| found.key == key);
        let marks: Vec<_> = found.and_then(|found| serde_json::from_str(&found.value).ok()).unwrap_or_default();
        Ok(Self { written: marks.clone(), marks })
    }

    /// Notes the highest index of the services that are registered now. None: there are no services.
    pub(crate) fn note(&mut self, highest: Option<u64>, now: SystemTime) {
        let Some(highest) = highest else { return };
        let since = |mark: &Mark| mark.at.and_then(|at| now.duration_since(at).ok());
        if self.marks.last().is_none_or(|last| highest > last.index && since(last).is_none_or(|since| since >= STEP)) {
            self.marks.push(Mark { at: Some(now), index: highest });
        }
        // Of the marks that are old enough, only the latest is needed: it has the highest index.
        while self.marks.get(1).is_some_and(|next| is_old(next.at, now)) {
            self.marks.remove(0);
        }
    }

    /// Whether a service with this index has been registered for more than an hour, as far as the marks tell.
    pub(crate) fn is_old(&self, index: u64, now: SystemTime) -> bool {
        self.marks.iter().any(|mark| index <= mark.index && is_old(mark.at, now))
    }

    /// Writes the marks if they have changed: at most once in ten minutes.
    pub(crate) async fn write(&mut self, consul: &Consul, term: &Term, names: &Names) -> Result<(), Error> {
        if self.marks != self.written {
            let value = serde_json::to_string(&self.marks).expect("marks are JSON");
            consul.write_keys(term, &[KeyWrite { key: names.key("registered"), value: Some(value) }]).await?;
            self.written.clone_from(&self.marks);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minutes)
    }

    #[test]
    fn a_service_is_old_an_hour_after_a_mark_that_covers_it() {
        let mut registered = Registered::default();
        registered.note(None, at(0));
        registered.note(Some(5), at(1));
        registered.note(Some(7), at(10));
        assert!(!registered.is_old(5, at(60)));
        assert!(registered.is_old(5, at(61)));
        assert!(!registered.is_old(7, at(70)), "it was registered within ten minutes of the first mark");
        registered.note(Some(8), at(11));
        assert!(registered.is_old(7, at(71)) && registered.is_old(8, at(71)) && !registered.is_old(9, at(71)));
    }

    #[test]
    fn few_marks_are_kept() {
        let mut registered = Registered::default();
        for minute in 0..1000 {
            registered.note(Some(minute), at(minute));
            assert!(registered.marks.len() <= 8, "{}", registered.marks.len());
            assert!(minute < 71 || registered.is_old(minute - 70, at(minute)));
            assert!(!registered.is_old((minute + 1).saturating_sub(60), at(minute)), "{minute}");
        }
        // Without new services there are no new marks.
        registered.note(Some(999), at(2000));
        registered.note(Some(999), at(3000));
        assert_eq!(registered.marks, [Mark { at: Some(at(2000)), index: 999 }]);
    }

    #[test]
    fn a_clock_that_went_back_makes_nothing_old() {
        let mut registered = Registered::default();
        registered.note(Some(5), at(100));
        assert!(!registered.is_old(5, at(1)));
        registered.note(Some(6), at(1));
        assert!(registered.is_old(6, at(61)));
    }
}
