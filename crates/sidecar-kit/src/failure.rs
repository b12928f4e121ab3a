//! A failure that lasts is reported once, and again when it changes.

/// The failure that was reported last.
#[derive(Debug, Default)]
pub struct LastFailure(Option<String>);

impl LastFailure {
    /// Whether the caller should report this failure: it differs from the last one, or the last one is over.
    #[must_use]
    pub fn is_new(&mut self, failure: &str) -> bool {
        let new = self.0.as_deref() != Some(failure);
        if new {
            self.0 = Some(failure.to_owned());
        }
        new
    }

    /// Whether the failure lasts.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.0.is_some()
    }

    /// Ends the failure. True if there was one, so that the caller can report its end.
    pub fn end(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_new_until_it_changes_or_ends() {
        let mut last = LastFailure::default();
        assert!(!last.end());
        assert!(last.is_new("refused") && !last.is_new("refused") && last.is_new("timed out"));
        assert!(last.lasts() && last.end() && !last.lasts() && !last.end());
        assert!(last.is_new("timed out"));
    }
}
