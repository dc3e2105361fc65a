//! One connection as the shard's synchronous half sees it.

use std::{
    cell::Cell,
    fmt, io,
    io::IoSlice,
    net::{Shutdown, SocketAddr, TcpStream},
    rc::Rc,
};

use rustix::net::{SendAncillaryBuffer, SendFlags};

use crate::{notify::Notify, protocol::Micros};

/// The sending half of a byte stream to somebody: a TCP socket, or one that the simulator carries. One call is one system
/// call.
pub(crate) trait Socket: fmt::Debug {
    /// Takes bytes of `parts`, one behind the other: how many. Fewer than there are means that it takes no more for now.
    ///
    /// # Errors
    /// If the connection is broken.
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Asks for buffers of these sizes; 0 leaves one as it is. What is granted may be less.
    ///
    /// # Errors
    /// If the connection is broken.
    fn set_buffers(&self, send_bytes: usize, receive_bytes: usize) -> io::Result<()>;

    /// Ends the connection both ways: its reader finds the end of the stream.
    fn shutdown(&self);
}

impl Socket for TcpStream {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
        loop {
            let sent = match parts {
                [only] => rustix::net::send(self, only, FLAGS),
                _ => rustix::net::sendmsg(self, parts, &mut SendAncillaryBuffer::default(), FLAGS),
            };
            match sent {
                Err(rustix::io::Errno::AGAIN) => return Ok(0),
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn set_buffers(&self, send_bytes: usize, receive_bytes: usize) -> io::Result<()> {
        let socket = socket2::SockRef::from(self);
        if send_bytes > 0 {
            socket.set_send_buffer_size(send_bytes)?;
        }
        if receive_bytes > 0 {
            socket.set_recv_buffer_size(receive_bytes)?;
        }
        Ok(())
    }

    fn shutdown(&self) {
        // It may be gone already; there is nothing else to do then.
        let _ = Self::shutdown(self, Shutdown::Both);
    }
}

impl<S: Socket> Socket for Rc<S> {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (**self).send(parts)
    }

    fn set_buffers(&self, send_bytes: usize, receive_bytes: usize) -> io::Result<()> {
        (**self).set_buffers(send_bytes, receive_bytes)
    }

    fn shutdown(&self) {
        (**self).shutdown();
    }
}

/// The socket of a stream that the runtime has opened, under a descriptor of our own.
///
/// # Errors
/// If there are no descriptors left.
pub(super) fn duplicate(stream: &glommio::net::TcpStream) -> io::Result<TcpStream> {
    Ok(socket2_04::SockRef::from(stream).try_clone()?.into())
}

/// The sending half of a connection, and the means to end it. The receiving half belongs to its reader.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Box<dyn Socket>,
    /// Who is at the other end.
    pub(super) peer: SocketAddr,
    /// Whether its hello was taken; until then it has a time limit.
    pub(super) established: Cell<bool>,
    /// Wakes a reader that was told to wait.
    pub(crate) resume: Notify,
    closed: Cell<bool>,
    /// Since when a frame has been coming that is not whole, while this side reads.
    pub(super) unfinished_since: Cell<Option<Micros>>,
    /// Bytes of memory that its reader holds.
    pub(super) receiving_bytes: Cell<usize>,
}

impl Connection {
    /// Over this socket.
    pub(crate) fn new(socket: Box<dyn Socket>, peer: SocketAddr) -> Self {
        let (established, closed) = (Cell::new(false), Cell::new(false));
        let (unfinished_since, receiving_bytes) = (Cell::new(None), Cell::new(0));
        Self { socket, peer, established, resume: Notify::default(), closed, unfinished_since, receiving_bytes }
    }

    /// The sending half of a socket that is shared with its reader.
    ///
    /// # Errors
    /// If the connection is gone already.
    pub(super) fn of(socket: Rc<TcpStream>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let peer = socket.peer_addr()?;
        Ok(Self::new(Box::new(socket), peer))
    }

    /// The socket.
    pub(super) fn socket(&self) -> &dyn Socket {
        &*self.socket
    }

    /// Ends the connection both ways: its reader finds the end of the stream.
    pub(super) fn close(&self) {
        if !self.closed.replace(true) {
            self.socket.shutdown();
            self.resume.notify();
        }
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Sends a frame at once or not at all: for the few that are sent while nothing is queued.
    pub(super) fn send_now(&self, frame: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(&[IoSlice::new(frame)])?;
        if sent < frame.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}
