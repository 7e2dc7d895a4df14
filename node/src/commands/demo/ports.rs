//! The ports of the demo's peers: known before any peer starts, and theirs again after a kill.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

/// A port of this machine.
pub struct Port {
    address: SocketAddr,
    /// Bound and never listening: whoever listens gets every connection, nobody else gets the port while its peer is away,
    /// and connections to it are refused meanwhile. Elsewhere than on Linux nobody could listen beside it.
    _held: Option<Socket>,
}

impl Port {
    /// Takes a port; 0 is any free one.
    ///
    /// # Errors
    /// If somebody has it.
    pub fn take(number: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, number)).into())?;
        let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { address, _held: cfg!(target_os = "linux").then_some(socket) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn its_peer_can_listen_again_and_again_and_others_are_refused() {
        let port = Port::take(0).unwrap();
        for _ in 0..2 {
            assert!(TcpStream::connect(port.address()).is_err());
            let listener = TcpListener::bind(port.address()).unwrap();
            let client = TcpStream::connect(port.address()).unwrap();
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
            assert!(Port::take(port.address().port()).is_err(), "somebody listens there");
        }
    }
}
