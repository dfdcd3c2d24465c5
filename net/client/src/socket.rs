//! The socket of a connection: the one place where connections are set up, and where their bytes go in and out.
//!
//! Plaintext TCP. What encrypts or authenticates a connection belongs here, so that no client has to know of it.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

/// A connected socket; blocking unless it is told otherwise.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Connects to a host by name or address. One of its addresses that does not answer leaves the others their part of
    /// the time. `timeout` also bounds every later read and write.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        Self::connect_any(&addresses, timeout)
    }

    /// Connects to the first of these addresses that answers.
    pub fn connect_any(addresses: &[SocketAddr], timeout: Duration) -> io::Result<Self> {
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let part = timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        for address in addresses {
            match TcpStream::connect_timeout(address, part.max(Duration::from_millis(1))) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(timeout))?;
                    stream.set_write_timeout(Some(timeout))?;
                    return Ok(Self { stream });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The TCP connection below: for its options, for polling it, and for tests that send what no client would.
    pub fn tcp(&self) -> &TcpStream {
        &self.stream
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn each_address_of_a_name_is_tried() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ["127.0.0.1", "127.0.0.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
        let socket = Socket::connect_any(&addresses, PATIENCE).unwrap();
        assert_eq!(socket.tcp().peer_addr().unwrap(), addresses[1]);
        let refused = Socket::connect_any(&addresses[..1], PATIENCE).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(Socket::connect_any(&[], PATIENCE).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
