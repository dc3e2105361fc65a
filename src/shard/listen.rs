//! The sockets that a node listens on. An address is claimed for one process before anything else of the node starts, and
//! no socket here shares its port with another process (`docs/decisions/0025-one-process-listens.md`).

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as LocalAddr, UnixDatagram},
    },
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::failure::Failure;

/// A process that has been told to stop, or was killed, has gone after so long.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
/// Connections that linger in TIME_WAIT have gone after so long.
pub(crate) const LINGER_PATIENCE: Duration = Duration::from_secs(62);
const PAUSE: Duration = Duration::from_millis(20);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// An address that this process alone listens on, or is going to.
///
/// Until [`Self::listen`], connections to it are refused by the kernel: a replica that still reads its log does not keep
/// clients waiting.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    address: SocketAddr,
    /// A name that only one process can have. A bound TCP port is not enough: two sockets with SO_REUSEADDR may both be
    /// bound to it as long as neither listens.
    _claim: UnixDatagram,
}

impl Listener {
    /// Claims and binds an address. SO_REUSEADDR lets it be bound beside connections that linger in TIME_WAIT; a second
    /// listener it does not allow.
    ///
    /// Waits for a process that is just about to go, and up to `linger` for lingering connections of programs that did not
    /// set SO_REUSEADDR.
    ///
    /// # Errors
    /// [`Failure::AddressInUse`] if another process has it.
    pub(crate) fn claim(address: SocketAddr, linger: Duration) -> Result<Self, Failure> {
        let started = Instant::now();
        let mut told = false;
        loop {
            let error = match Self::try_claim(address) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
                Err(error) => return Err(Failure::of_address(address, &error)),
            };
            let lingers = is_refused(address) && try_name(address).is_ok();
            let patience = if lingers { linger } else { ADDRESS_PATIENCE };
            if started.elapsed() >= patience {
                return Err(Failure::of_address(address, &error));
            }
            if lingers && !told && started.elapsed() >= ADDRESS_PATIENCE {
                told = true;
                let seconds = linger.as_secs();
                tracing::warn!(
                    %address,
                    "in use, and no process listens there: connections of an earlier one linger; waiting for up to {seconds} s"
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn try_claim(address: SocketAddr) -> io::Result<Self> {
        let claim = try_name(address)?;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        // Two listeners conflict here at the latest, and a socket that is only bound does not say whether there is one.
        Ok(Self { socket, address, _claim: claim })
    }

    /// From now on connections are taken.
    ///
    /// # Errors
    /// [`Failure::AddressInUse`] if another process was faster.
    pub(super) fn listen(self) -> Result<Listening, Failure> {
        self.socket.listen(BACKLOG).map_err(|error| Failure::of_address(self.address, &error))?;
        Ok(Listening { listener: self.socket.into(), _claim: self._claim })
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Listening {
    listener: TcpListener,
    _claim: UnixDatagram,
}

impl Listening {
    /// The socket, to be watched.
    pub(super) fn socket(&self) -> &TcpListener {
        &self.listener
    }

    /// The next connection, or `None` if none waits.
    ///
    /// # Errors
    /// If there are no descriptors left, or the connection was gone already.
    pub(super) fn accept(&self) -> io::Result<Option<TcpStream>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => return Ok(Some(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes the name of an address, in the namespace of this network: it goes with the process, however that ends.
fn try_name(address: SocketAddr) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&LocalAddr::from_abstract_name(format!("wpaxos listens on {address}"))?)
}

/// Whether nobody listens there.
fn is_refused(address: SocketAddr) -> bool {
    let connected = TcpStream::connect_timeout(&address, Duration::from_millis(500));
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::Ipv4Addr};

    use super::*;

    /// A program that listens without SO_REUSEPORT, as most do.
    fn other(address: SocketAddr) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        socket
    }

    fn address_of(socket: &Socket) -> SocketAddr {
        socket.local_addr().unwrap().as_socket().unwrap()
    }

    #[test]
    fn an_address_has_one_process() {
        let other = other((Ipv4Addr::LOCALHOST, 0).into());
        let address = address_of(&other);
        assert_eq!(Listener::claim(address, ADDRESS_PATIENCE).unwrap_err(), Failure::AddressInUse(address));
        drop(other);
        let first = Listener::claim(address, ADDRESS_PATIENCE).unwrap();
        assert!(is_refused(address), "it does not listen yet");
        assert_eq!(Listener::try_claim(address).unwrap_err().kind(), io::ErrorKind::AddrInUse, "claimed");
        let first = first.listen().unwrap();
        assert_eq!(Listener::try_claim(address).unwrap_err().kind(), io::ErrorKind::AddrInUse, "listens");
        drop(first);
        Listener::claim(address, ADDRESS_PATIENCE).unwrap().listen().unwrap();
    }

    #[test]
    fn connections_that_linger_are_no_process() {
        let listener = other((Ipv4Addr::LOCALHOST, 0).into());
        let address = address_of(&listener);
        for _ in 0..3 {
            let mut near = TcpStream::connect(address).unwrap();
            // The side that closes first keeps the connection in TIME_WAIT.
            drop(listener.accept().unwrap());
            assert_eq!(near.read(&mut [0]).unwrap(), 0);
        }
        drop(listener);
        let started = Instant::now();
        Listener::claim(address, ADDRESS_PATIENCE).unwrap().listen().unwrap();
        assert!(started.elapsed() < ADDRESS_PATIENCE, "{:?}", started.elapsed());
    }

    #[test]
    fn a_port_that_is_shared_by_others_is_not_joined() {
        let sharing = |address: SocketAddr| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            rustix::net::sockopt::set_socket_reuseport(&socket, true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(1).unwrap();
            socket
        };
        let first = sharing((Ipv4Addr::LOCALHOST, 0).into());
        let address = address_of(&first);
        let _second = sharing(address);
        assert_eq!(Listener::claim(address, ADDRESS_PATIENCE).unwrap_err(), Failure::AddressInUse(address));
    }
}
