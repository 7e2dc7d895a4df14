//! What clients send: from the socket, through the inbox, to what answers it.

use std::{
    mem,
    task::{Context, Poll},
};

use tokio::time::Instant;

use super::{connection::CLOSE_TIMEOUT, frame, inbox::Incoming, queue::ConnectionId, shard::Shard};

/// Reads of one connection before the others have their turn.
const READS_IN_A_ROW: usize = 4;

impl Shard {
    /// What the task of a connection does whenever its socket, or the shard, wakes it.
    pub fn poll_connection(&mut self, id: ConnectionId, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        for _ in 0..READS_IN_A_ROW {
            let Some(connection) = self.connections.get_mut(id.key).filter(|connection| connection.id == id)
            else {
                return Poll::Ready(());
            };
            connection.watch(context);
            connection.poll_flush(context, &mut self.output, now);
            if connection.is_finished() {
                self.remove(id.key);
                return Poll::Ready(());
            }
            let mut input = mem::take(&mut self.input);
            let read = connection.poll_read(context, &mut input);
            match read {
                Poll::Pending => {}
                Poll::Ready(0) => connection.over("gone"),
                Poll::Ready(bytes) => self.read_frames(id.key, &mut input[..bytes], now),
            }
            self.input = input;
            self.flush(id.key, now);
            if read.is_pending() {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes bytes from a client.
    pub fn read_frames(&mut self, key: usize, mut bytes: &mut [u8], now: Instant) {
        loop {
            let Some(connection) = self.connections.get_mut(key).filter(|connection| !connection.deaf) else {
                return;
            };
            connection.last_heard = now;
            connection.pinged = false;
            match connection.inbox.next(&mut bytes) {
                Ok(None) => return,
                Ok(Some(incoming)) => self.incoming(key, incoming, now),
                Err(error) => {
                    connection.deaf = true;
                    // What was asked before is answered first.
                    connection.close(error.close_code(), &error.to_string(), true, now + CLOSE_TIMEOUT);
                    return self.unsubscribe_all(key);
                }
            }
        }
    }

    fn incoming(&mut self, key: usize, incoming: Incoming, now: Instant) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        match incoming {
            Incoming::Close(code) => {
                connection.closed_by_client(code, now);
                self.unsubscribe_all(key);
            }
            _ if !connection.is_open() => {}
            Incoming::Ping(payload) => connection.outbox.pong(frame::pong(&payload)),
            Incoming::Pong => {}
            Incoming::Text(text) if self.config.echo => self.push(key, frame::text(&text), now),
            Incoming::Binary(bytes) if self.config.echo => self.push(key, frame::binary(&bytes), now),
            Incoming::Text(text) => self.read_request(key, &text),
            Incoming::Binary(_) => self.refuse_binary(key),
        }
    }
}
