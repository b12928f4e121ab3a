//! A relay to a real Consul that delays each answer by some milliseconds and records the requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_fixture::{Pass, Relay};

/// A relay to Consul. It runs until the process ends.
pub struct FarConsul {
    /// The relay's address, `127.0.0.1:port`.
    pub address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FarConsul {
    /// Starts a relay to this address that delays each answer by this time.
    pub fn new(to: &str, away: Duration) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let record = requests.clone();
        // A client sends its next request only after the last answer. So the first bytes from Consul after a request begin an answer. Only
        // these are delayed, however long the answer is.
        let asked = Arc::new(AtomicBool::new(false));
        let asks = asked.clone();
        let request = move |_, bytes: &[u8]| {
            asks.store(true, Ordering::SeqCst);
            let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            // A piece that does not begin a request is the rest of its body.
            if let Some(request) = line.strip_suffix(" HTTP/1.1") {
                let path = request.split('?').next().unwrap_or_default();
                record.lock().expect("no other thread panics").push(path.to_owned());
            }
            Pass::On
        };
        let answer = move |_, _: &[u8]| {
            if asked.swap(false, Ordering::SeqCst) {
                std::thread::sleep(away);
            }
        };
        Self { address: Relay::start(to, request, answer).address, requests }
    }

    /// The requests since the last call: method and path.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().expect("no other thread panics"))
    }
}
