//! The one retry policy: exponential, with jitter, up to a ceiling.

use std::time::Duration;

/// Delays that grow from `first` up to `ceiling`. By default each is twice as long as the one before. Each is shortened at random, by up to
/// a half, so that tasks which failed at the same time do not all try again at the same time.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    ceiling: Duration,
    factor: f64,
    next: Duration,
}

impl Backoff {
    /// A policy that starts at `first` and never waits longer than `ceiling`.
    #[must_use]
    pub fn new(first: Duration, ceiling: Duration) -> Self {
        Self::growing(first, 2.0, ceiling)
    }

    /// A policy whose delays grow by `factor`.
    #[must_use]
    pub fn growing(first: Duration, factor: f64, ceiling: Duration) -> Self {
        Self { first, ceiling, factor, next: first.min(ceiling) }
    }

    /// The delay before the next attempt: between half of the current step and all of it.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = step.mul_f64(self.factor).min(self.ceiling);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.ceiling);
    }
}

impl Default for Backoff {
    /// From 100 ms to 2 s, for a container that starts at the same time as its neighbours.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_within_the_jitter() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        for step in [100, 200, 400, 500, 500] {
            let delay = backoff.delay().as_millis();
            assert!((step / 2..=step).contains(&delay), "{delay} ms at step {step} ms");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(100));
    }
}
