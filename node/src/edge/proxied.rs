//! The PROXY protocol, versions 1 and 2 (HAProxy, `doc/proxy-protocol.txt`): how a proxy that passes bytes on as they are says whose
//! they are.
//!
//! Of proxies that are trusted it is believed and required, of nobody else: a client's own bytes could say anything.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::{io::AsyncReadExt, net::TcpStream, time::sleep};

/// Longest header. One of version 1 has at most 107 bytes; one of version 2 has 52 and what the proxy says of TLS besides, some
/// hundred.
const MAX_HEADER_BYTES: usize = 1024;

/// Pause before a header that has not come as a whole is looked at again: proxies send it at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Reads the header that a connection begins with, and says where the connection comes from: the proxy itself, where it speaks
/// for nobody.
///
/// # Errors
/// If the connection fails or ends, or begins with something else.
pub async fn source(stream: &mut TcpStream, proxy: IpAddr) -> io::Result<IpAddr> {
    let mut buffer = [0; MAX_HEADER_BYTES];
    loop {
        // What follows the header is left where it is.
        let bytes = stream.peek(&mut buffer).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match read(&buffer[..bytes]) {
            Ok(Some((source, length))) => {
                stream.read_exact(&mut buffer[..length]).await?;
                return Ok(source.map_or(proxy, |source| source.ip()));
            }
            Ok(None) if bytes < MAX_HEADER_BYTES => sleep(PAUSE).await,
            Ok(None) | Err(NoHeader) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no header of the PROXY protocol"));
            }
        }
    }
}

/// The bytes are no header, whatever follows.
#[derive(Debug, PartialEq, Eq)]
struct NoHeader;

/// Whose connection it is, if the header names somebody, and how long the header is; `None` if it is not whole.
fn read(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, NoHeader> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(bytes, config) {
        Ok((header, length)) if length <= bytes.len() => {
            Ok(Some((header.proxied_address().map(|address| address.source), length)))
        }
        Err(Error::BufferTooShort) => Ok(None),
        _ => Err(NoHeader),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x07\x0a\0\0\x01\x30\x39\x01\xbb";

    #[test]
    fn both_versions_are_read_and_what_follows_is_not() {
        let first = b"PROXY TCP4 198.51.100.7 10.0.0.1 12345 443\r\n";
        for header in [&first[..], SECOND] {
            let source = Some("198.51.100.7:12345".parse().unwrap());
            let whole = [header, b"GET /ws HTTP/1.1\r\n"].concat();
            assert_eq!(read(&whole), Ok(Some((source, header.len()))));
            for cut in 1..header.len() {
                assert_eq!(read(&header[..cut]), Ok(None), "{cut} bytes of {header:?}");
            }
        }
        assert_eq!(
            read(b"PROXY TCP6 2001:db8::7 fd00::1 1 443\r\n").unwrap().unwrap().0.unwrap().ip().to_string(),
            "2001:db8::7"
        );
        // The proxy looks whether somebody is there.
        assert_eq!(read(b"PROXY UNKNOWN\r\n"), Ok(Some((None, 15))));
        assert_eq!(read(b"GET /ws HTTP/1.1\r\n"), Err(NoHeader));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_not(cut in 0..28_usize, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for beginning in [&b""[..], b"PROXY ", &SECOND[..cut]] {
                let bytes = [beginning, &bytes].concat();
                if let Ok(Some((_, length))) = read(&bytes) {
                    prop_assert!(length <= bytes.len());
                }
            }
        }
    }
}
