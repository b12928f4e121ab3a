//! The renewal of a token, on a clock that the tests move.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use consul_login::{CredentialsError, Held, Keeper, LoginError, Source};
use sidecar_kit::secret::Secret;
use tokio::time::{Instant, sleep};

/// Numbers its tokens, and notes what happens when.
struct Numbered {
    begin: Instant,
    events: Mutex<Vec<(String, u64)>>,
    failures: Mutex<u32>,
    left: Option<Duration>,
}

impl Numbered {
    fn new(left: Option<Duration>, failures: u32) -> Arc<Self> {
        let (events, failures) = (Mutex::default(), Mutex::new(failures));
        Arc::new(Self { begin: Instant::now(), events, failures, left })
    }

    fn note(&self, event: String) -> usize {
        let mut events = self.events.lock().unwrap();
        events.push((event, self.begin.elapsed().as_secs()));
        events.len()
    }
}

impl Source for Numbered {
    async fn log_in(&self) -> Result<Held, LoginError> {
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(LoginError::Credentials(CredentialsError::None));
        }
        let number = self.note("in".to_owned());
        Ok(Held { secret: Secret::new(format!("token {number}")), left: self.left })
    }

    async fn log_out(&self, token: &Secret) {
        self.note(format!("out {}", token.expose()));
    }
}

fn first(left: Option<Duration>) -> Held {
    Held { secret: Secret::new("first"), left }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_replaced_before_it_expires_and_then_deleted() {
    let left = Some(Duration::from_secs(60));
    let source = Numbered::new(left, 0);
    let keeper = Keeper::start(source.clone(), first(left));
    let mut token = keeper.token();
    token.changed().await.unwrap();
    assert_eq!(token.borrow_and_update().expose(), "token 1");
    let renewed = source.begin.elapsed().as_secs();
    assert!((36..=40).contains(&renewed), "{renewed}");
    sleep(Duration::from_secs(15)).await;
    let events = source.events.lock().unwrap().clone();
    assert_eq!(events[1], ("out first".to_owned(), renewed + 10));
    token.changed().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_at_once_however_often_that_fails() {
    let source = Numbered::new(None, 5);
    let keeper = Keeper::start(source.clone(), first(None));
    let mut token = keeper.token();
    sleep(Duration::from_secs(1_000_000)).await;
    assert!(!token.has_changed().unwrap(), "a token without an end is kept");
    keeper.refused(Secret::new("first"));
    sleep(Duration::from_secs(1)).await;
    // Another call with the same token was refused, too.
    keeper.refused(Secret::new("first"));
    token.changed().await.unwrap();
    assert_eq!(token.borrow_and_update().expose(), "token 1");
    keeper.refused(Secret::new("first"));
    sleep(Duration::from_secs(1_000_000)).await;
    assert!(!token.has_changed().unwrap(), "one login replaces it");
}
