//! Shows the progress of long commands: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use local_mesh::Progress;

/// Shows steps on standard error.
pub struct Reporter {
    /// `None` if standard error is not a terminal.
    bar: Option<ProgressBar>,
    begun: Instant,
}

impl Reporter {
    /// Shows this many steps.
    pub fn new(steps: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} [{bar:24}] {pos}/{len} {wide_msg} {elapsed}");
            let style = style.expect("the template is well-formed").progress_chars("=> ");
            let bar = ProgressBar::new(steps as u64).with_style(style);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, begun: Instant::now() }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Reporter {
    fn step(&self, number: usize, of: usize, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(number as u64 - 1);
                bar.set_message(what.to_owned());
            }
            None => eprintln!("[{number}/{of}] {what} ({:.1} s)", self.begun.elapsed().as_secs_f32()),
        }
    }

    fn detail(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("      {what}"),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}
