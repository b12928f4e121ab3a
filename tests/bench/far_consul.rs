//! A way to a real Consul that is some milliseconds long, with a record of what was asked over it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The near end of the way; open until the process ends.
pub struct FarConsul {
    /// Its HTTP address, `127.0.0.1:port`.
    pub address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FarConsul {
    /// A way to this address, over which each answer takes this much longer.
    pub fn new(to: &str, away: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (to, record) = (to.to_owned(), requests.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // A small answer must not wait for the acknowledgement of the one before.
                near.set_nodelay(true).expect("an open connection takes options");
                let far = TcpStream::connect(&to).expect("Consul listens");
                far.set_nodelay(true).expect("an open connection takes options");
                carry(near, far, away, record.clone());
            }
        });
        Self { address, requests }
    }

    /// What was asked since the last time this was asked: method and path.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().expect("no other thread panics"))
    }
}

/// Both directions of one connection. Our clients send a request when the last one has been answered, so the first bytes that
/// come back after bytes went out begin an answer: only they are held up, however long the answer is.
fn carry(near: TcpStream, far: TcpStream, away: Duration, requests: Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(AtomicBool::new(false));
    let clone = |stream: &TcpStream| stream.try_clone().expect("a connection can be held twice");
    let (from, to, asks) = (clone(&near), clone(&far), asked.clone());
    std::thread::spawn(move || {
        copy(from, to, |bytes| {
            asks.store(true, Ordering::SeqCst);
            let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            // What does not begin a request is the rest of its body.
            if let Some(request) = line.strip_suffix(" HTTP/1.1") {
                let path = request.split('?').next().unwrap_or_default();
                requests.lock().expect("no other thread panics").push(path.to_owned());
            }
        });
    });
    std::thread::spawn(move || {
        copy(far, near, |_| {
            if asked.swap(false, Ordering::SeqCst) {
                std::thread::sleep(away);
            }
        });
    });
}

/// Carries bytes one way until either end is closed, and looks at each piece before it goes on.
pub fn copy(mut from: TcpStream, mut to: TcpStream, look: impl Fn(&[u8])) {
    let mut buffer = [0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        look(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // The other end may be closed already.
    let _ = to.shutdown(std::net::Shutdown::Both);
}
