//! Gives tonic a connection that is already open. So an error keeps the cause of a failed connection. tonic never reconnects, because this
//! crate chooses the next server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tonic::transport::Uri;
use tower_service::Service;

use crate::connection::Stream;

type Io = TokioIo<Box<dyn Stream>>;

/// A connector that gives its connection once. A second call fails.
pub(crate) struct Once(Option<Io>);

impl Once {
    pub(crate) fn new(io: Io) -> Self {
        Self(Some(io))
    }
}

impl Service<Uri> for Once {
    type Response = Io;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Io>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let io = self.0.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended"));
        Box::pin(std::future::ready(io))
    }
}
