//! The tokens that a program's logins have made.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sidecar_kit::secret::Secret;
use tokio::sync::Semaphore;

use crate::login::LoginError;

/// The tokens of logins that were not deleted yet. A login that has begun runs to its end, even if its caller no longer waits for it:
/// otherwise its token would stay in Consul, and nobody would know it.
#[derive(Debug, Clone)]
pub struct Issued {
    tokens: Arc<Mutex<Vec<Secret>>>,
    /// One login at a time. Closed once no more logins may begin.
    logins: Arc<Semaphore>,
}

impl Default for Issued {
    fn default() -> Self {
        Self { tokens: Arc::default(), logins: Arc::new(Semaphore::new(1)) }
    }
}

impl Issued {
    fn tokens(&self) -> MutexGuard<'_, Vec<Secret>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs in, and notes the token. Never returns after [`Self::end`].
    ///
    /// # Errors
    /// The login's own.
    pub async fn log_in(
        &self,
        login: impl Future<Output = Result<Secret, LoginError>> + Send + 'static,
    ) -> Result<Secret, LoginError> {
        let Ok(permit) = self.logins.clone().acquire_owned().await else { return pending().await };
        let issued = self.clone();
        let login = tokio::spawn(async move {
            let token = login.await?;
            issued.tokens().push(token.clone());
            drop(permit);
            Ok(token)
        });
        match login.await {
            Ok(ended) => ended,
            // The runtime ends.
            Err(_) => pending().await,
        }
    }

    /// Notes that this token was deleted.
    pub fn deleted(&self, token: &Secret) {
        self.tokens().retain(|other| other != token);
    }

    /// Waits for a login that has begun, and lets no other begin. Returns the tokens that were not deleted yet.
    pub async fn end(&self) -> Vec<Secret> {
        let _permit = self.logins.acquire().await;
        self.logins.close();
        self.tokens().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn login_that_nobody_waits_for_ends_and_its_token_is_known() {
        let issued = Issued::default();
        let login = |name: &'static str| {
            issued.log_in(async move {
                sleep(Duration::from_secs(2)).await;
                Ok(Secret::new(name))
            })
        };
        let first = login("first").await.unwrap();
        let second = login("second").await.unwrap();
        issued.deleted(&first);
        assert!(timeout(Duration::from_secs(1), login("third")).await.is_err());
        assert_eq!(issued.end().await, [second, Secret::new("third")]);
        assert!(timeout(Duration::from_secs(9), login("fourth")).await.is_err());
        assert_eq!(issued.end().await.len(), 2);
    }
}
