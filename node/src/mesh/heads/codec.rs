//! Questions and answers on their libp2p stream: each message ends where its half of the stream does.
//!
//! A question: eight bytes, little endian, how many "unsubscribe" the asker sent on this connection; then the bytes of
//! [`tickmesh_protocol::codec`]. An answer: those bytes alone. A refusal is a stream that closes without one.

use std::io;

use libp2p::{
    StreamProtocol,
    futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    request_response::Codec,
};
use tickmesh_protocol::{
    codec::{self, CodecError, MAX_HEAD_BYTES},
    head::{HeadReply, HeadRequest},
};

/// Name of the protocol.
pub(in crate::mesh) const PROTOCOL: StreamProtocol = StreamProtocol::new("/tickmesh/head/1");

const COUNT_BYTES: usize = 8;

/// A question as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mesh) struct Asked {
    pub(in crate::mesh) unsubscribed: u64,
    pub(in crate::mesh) request: HeadRequest,
}

#[derive(Clone, Copy, Debug, Default)]
pub(in crate::mesh) struct HeadCodec;

impl Codec for HeadCodec {
    type Protocol = StreamProtocol;
    type Request = Asked;
    type Response = HeadReply;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Asked>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = read(io, COUNT_BYTES + MAX_HEAD_BYTES).await?;
        let (count, body) = bytes.split_first_chunk::<COUNT_BYTES>().ok_or(io::ErrorKind::UnexpectedEof)?;
        let request = codec::decode_head_request(body).map_err(invalid)?;
        Ok(Asked { unsubscribed: u64::from_le_bytes(*count), request })
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<HeadReply>
    where
        T: AsyncRead + Unpin + Send,
    {
        codec::decode_head_reply(&read(io, MAX_HEAD_BYTES).await?).map_err(invalid)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, asked: Asked) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let body = codec::encode_head_request(&asked.request).map_err(invalid)?;
        io.write_all(&[&asked.unsubscribed.to_le_bytes()[..], &body].concat()).await?;
        io.close().await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, reply: HeadReply) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&codec::encode_head_reply(&reply).map_err(invalid)?).await?;
        io.close().await
    }
}

async fn read<T: AsyncRead + Unpin + Send>(io: &mut T, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more shows that there is too much; the limits of the protocol then refuse it.
    io.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn invalid(error: CodecError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
