//! Frames on a stream: four bytes of length, little endian, then so many bytes of [`tickmesh_protocol::codec`].

use std::{io, time::Duration};

use bytes::Bytes;
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

const LENGTH_BYTES: usize = 4;

/// How much memory is taken at a time for a frame whose length is only claimed. As much as Yamux sends at once.
const CHUNK: usize = 16 * 1024;

/// A stream in both directions.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Takes frames from a stream. To give up waiting for one loses nothing: the next call goes on where it was.
#[derive(Debug)]
pub(super) struct FrameReader {
    limit: usize,
    buffer: Vec<u8>,
    filled: usize,
}

impl FrameReader {
    /// `limit`: the largest frame, in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, buffer: Vec::new(), filled: 0 }
    }

    /// The next frame.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream ends, `TimedOut` if no byte comes for `idle`, `InvalidData` for a frame that is too
    /// large, or what the stream says.
    pub(super) async fn next(
        &mut self,
        io: &mut (impl AsyncRead + Unpin + ?Sized),
        idle: Duration,
    ) -> io::Result<Bytes> {
        loop {
            let end = match self.buffer.first_chunk::<LENGTH_BYTES>() {
                Some(length) if self.filled >= LENGTH_BYTES => LENGTH_BYTES + self.length(*length)?,
                _ => LENGTH_BYTES,
            };
            if self.filled == end && end > LENGTH_BYTES {
                self.filled = 0;
                return Ok(Bytes::from(std::mem::take(&mut self.buffer)).slice(LENGTH_BYTES..));
            }
            self.buffer.resize(end.min(self.filled + CHUNK), 0);
            match timeout(idle, io.read(&mut self.buffer[self.filled..])).await.map_err(io::Error::from)?? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.filled += read,
            }
        }
    }

    fn length(&self, bytes: [u8; LENGTH_BYTES]) -> io::Result<usize> {
        let length = usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
        if (1..=self.limit).contains(&length) {
            return Ok(length);
        }
        let text = format!("a frame of {length} bytes; 1 to {} are allowed", self.limit);
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

/// Puts frames on a stream. What it holds it keeps until it is written, so a write can be given up and gone on with.
#[derive(Debug)]
pub(super) struct FrameWriter<W> {
    io: W,
    /// How long the reader may take nothing.
    patience: Duration,
    unsent: Vec<u8>,
    at: usize,
    /// Something was put here that has not been written and flushed.
    pending: bool,
    /// When the reader last took something, or the first byte of what it does not take was put here.
    progress: Instant,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(io: W, patience: Duration) -> Self {
        Self { io, patience, unsent: Vec::new(), at: 0, pending: false, progress: Instant::now() }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// Puts a frame behind what is unsent.
    pub(super) fn put(&mut self, frame: &[u8]) {
        if !self.pending {
            self.pending = true;
            self.progress = Instant::now();
        }
        // The codec's frames are far below 4 GiB; were one larger, its reader would refuse it.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.unsent.extend_from_slice(&length.to_le_bytes());
        self.unsent.extend_from_slice(frame);
    }

    /// Writes all that is unsent.
    ///
    /// # Errors
    /// `TimedOut` if the reader took nothing for too long, or what the stream says.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while self.at < self.unsent.len() {
            let write = self.io.write(&self.unsent[self.at..]);
            match timeout_at(self.progress + self.patience, write).await.map_err(io::Error::from)?? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    self.at += written;
                    self.progress = Instant::now();
                }
            }
        }
        // The memory of a large frame is not kept while its reader waits for the next.
        self.unsent = Vec::new();
        self.at = 0;
        timeout_at(self.progress + self.patience, self.io.flush()).await.map_err(io::Error::from)??;
        self.pending = false;
        Ok(())
    }

    /// Puts a frame and writes everything.
    pub(super) async fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.put(frame);
        self.flush().await
    }

    /// Says that nothing more will come.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        timeout(self.patience, self.io.close()).await.map_err(io::Error::from)?
    }
}
