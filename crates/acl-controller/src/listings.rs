//! Since when the controller has seen every task.

use std::time::Duration;

use tokio::time::Instant;

use crate::aws::FRESH;

/// The listings of tasks in one term.
#[derive(Debug)]
pub(crate) struct Listings {
    /// Without a complete listing for so long, a task may have begun and be about to stop without being seen with its tags.
    gap: Duration,
    /// The first complete listing, or the first after a gap.
    since: Option<Instant>,
    /// The last complete listing.
    last: Option<Instant>,
    /// The last complete listing before those that are incomplete; the first of these where there was none.
    incomplete_since: Option<Instant>,
    /// For how long the listings were incomplete, since this was last asked.
    incomplete_for: Duration,
}

impl Listings {
    /// With a listing at each of these intervals, if all is well.
    pub(crate) fn each(poll_interval: Duration) -> Self {
        Self {
            gap: FRESH.max(2 * poll_interval),
            since: None,
            last: None,
            incomplete_since: None,
            incomplete_for: Duration::ZERO,
        }
    }

    /// The tasks have just been listed, all of them or not.
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

    /// Whether every task was seen for so long, without a gap.
    pub(crate) fn complete_for(&self, time: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= time)
    }

    /// For how long the listings were incomplete, since this was last asked.
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
    async fn the_time_counts_from_the_first_complete_listing_and_anew_after_a_gap() {
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
    async fn listings_that_are_rare_by_the_flag_are_no_gap() {
        let mut listings = Listings::each(300 * SECOND);
        for _ in 0..2 {
            listings.listed(true);
            advance(310 * SECOND).await;
        }
        assert!(listings.complete_for(620 * SECOND));
    }
}
