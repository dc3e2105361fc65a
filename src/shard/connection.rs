//! One TCP connection as the shard's synchronous half sees it.

use std::{
    cell::Cell,
    io,
    net::{Shutdown, SocketAddr, TcpStream},
};

use super::notify::Notify;

/// The sending half of a connection, and the means to end it. The receiving half belongs to its reader task.
#[derive(Debug)]
pub(super) struct Connection {
    /// A descriptor of its own for the same socket, so that a send can never reach a number that was closed and given
    /// out again.
    pub(super) socket: TcpStream,
    /// Who is at the other end.
    pub(super) peer: SocketAddr,
    /// Whether its hello was taken; until then it has a time limit.
    pub(super) established: Cell<bool>,
    /// Wakes a reader that was told to wait.
    pub(super) resume: Notify,
    closed: Cell<bool>,
}

impl Connection {
    /// The other half of a glommio stream.
    ///
    /// # Errors
    /// If there are no descriptors left, or the connection is gone already.
    pub(super) fn of(stream: &glommio::net::TcpStream) -> io::Result<Self> {
        let socket: TcpStream = socket2_04::SockRef::from(stream).try_clone()?.into();
        socket.set_nodelay(true)?;
        let peer = socket.peer_addr()?;
        let (established, closed) = (Cell::new(false), Cell::new(false));
        Ok(Self { socket, peer, established, resume: Notify::default(), closed })
    }

    /// Asks the kernel for buffers of these sizes; 0 leaves one as it is. What it grants may be less.
    pub(super) fn set_buffers(&self, send_bytes: usize, receive_bytes: usize) -> io::Result<()> {
        let socket = socket2::SockRef::from(&self.socket);
        if send_bytes > 0 {
            socket.set_send_buffer_size(send_bytes)?;
        }
        if receive_bytes > 0 {
            socket.set_recv_buffer_size(receive_bytes)?;
        }
        Ok(())
    }

    /// Ends the connection both ways: its reader finds the end of the stream.
    pub(super) fn close(&self) {
        if !self.closed.replace(true) {
            // It may be gone already; there is nothing else to do then.
            let _ = self.socket.shutdown(Shutdown::Both);
            self.resume.notify();
        }
    }

    /// Whether [`Self::close`] was called.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Sends a frame at once or not at all: for the few that are sent while nothing is queued.
    pub(super) fn send_now(&self, frame: &[u8]) -> io::Result<()> {
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let sent = rustix::net::send(&self.socket, frame, flags)?;
        if sent < frame.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}
