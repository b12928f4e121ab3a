//! When the tasks were listed, and whether completely.

use std::time::Duration;

use tokio::time::Instant;

use crate::aws::FRESH;

/// The listings of tasks in one term.
#[derive(Debug)]
pub(crate) struct Listings {
    /// If two complete listings are this far apart or farther, there was a gap. In a gap, a task may start and lose its tags before the
    /// controller sees it. With a poll interval of more than [`FRESH`], this may happen even without a gap.
    gap: Duration,
    /// The first complete listing of the term, or the first one after the last gap.
    since: Option<Instant>,
    /// The last complete listing.
    last: Option<Instant>,
    /// Since when the listings are incomplete: the time of the last complete listing, or of the first incomplete one if there was no
    /// complete listing before. None while the listings are complete.
    incomplete_since: Option<Instant>,
    /// How long the listings were incomplete since the last [`Listings::take_incomplete`].
    incomplete_for: Duration,
}

impl Listings {
    /// Creates the state for a controller that lists at this interval.
    pub(crate) fn each(poll_interval: Duration) -> Self {
        Self {
            gap: FRESH.max(2 * poll_interval),
            since: None,
            last: None,
            incomplete_since: None,
            incomplete_for: Duration::ZERO,
        }
    }

    /// Notes a listing that has just ended.
    pub(crate) fn listed(&mut self, complete: bool) {
        let now = Instant::now();
        if !complete {
            self.incomplete_since.get_or_insert(self.last.unwrap_or(now));
            return;
        }
        if let Some(since) = self.incomplete_since.take() {
            self.incomplete_for += now - since;
        }
        if self.last.is_none_or(|last| now - last >= self.gap) {
            self.since = Some(now);
        }
        self.last = Some(now);
    }

    /// Whether the listings have been complete for this time, without a gap.
    pub(crate) fn complete_for(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= time)
    }

    /// How long the listings were incomplete since the last [`Listings::take_incomplete`].
    pub(crate) fn take_incomplete(&mut self) -> Duration {
        std::mem::take(&mut self.incomplete_for)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_gap_in_complete_listings_restarts_the_time() {
        let mut listings = Listings::each(10 * SECOND);
        advance(100 * SECOND).await;
        listings.listed(false);
        assert!(!listings.complete_for(Duration::ZERO), "a term without a complete listing");
        listings.listed(true);
        assert!(!listings.complete_for(SECOND));
        for complete in [true, false, true] {
            advance(29 * SECOND).await;
            listings.listed(complete);
        }
        assert!(listings.complete_for(87 * SECOND), "58 s are no gap");
        advance(30 * SECOND).await;
        listings.listed(false);
        advance(30 * SECOND).await;
        listings.listed(true);
        assert!(!listings.complete_for(SECOND), "60 s are one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_poll_interval_is_no_gap() {
        let mut listings = Listings::each(300 * SECOND);
        for _ in 0..2 {
            listings.listed(true);
            advance(310 * SECOND).await;
        }
        assert!(listings.complete_for(620 * SECOND));
    }
}
