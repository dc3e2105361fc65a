//! hyper's view of a stream of this runtime.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use hyper::rt::{Read, ReadBufCursor, Write};

use super::watch::Watch;
use crate::{protocol::Protocol, shard::Shard};

/// Read from a socket at most at once.
const READ_BYTES: usize = 16 << 10;

/// A stream whose traffic is noted by its watch.
pub(super) struct Io<P> {
    pub(super) shard: Rc<Shard<P>>,
    pub(super) stream: Rc<RefCell<TcpStream>>,
    pub(super) watch: Rc<Watch>,
}

impl<P: Protocol> Read for Io<P> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper lends memory that is not initialised, which only unsafe code could read into. The stream keeps no reference
        // to what it reads into.
        let mut scratch = self.shard.web.scratch.borrow_mut();
        scratch.resize(READ_BYTES, 0);
        let spare = &mut scratch[..buffer.remaining().min(READ_BYTES)];
        let read = Pin::new(&mut *self.stream.borrow_mut()).poll_read(context, spare);
        if read.is_pending()
            && let Some(poller) = &self.shard.poller
        {
            // The kernel does not know yet that the next request is waited for.
            poller.want_reactor();
        }
        let bytes = ready!(read)?;
        buffer.put_slice(&spare[..bytes]);
        if bytes > 0 {
            self.watch.received(|| self.shard.node.now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<P: Protocol> Write for Io<P> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut *self.stream.borrow_mut()).poll_write(context, bytes);
        let everything = matches!(&sent, Poll::Ready(Ok(taken)) if *taken == bytes.len());
        self.watch.sent(everything, || self.shard.node.now());
        sent
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_close(context)
    }
}
