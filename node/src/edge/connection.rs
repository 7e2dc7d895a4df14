//! One client's connection: its socket, what it has said so far, and what it has not taken yet.

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tickmesh_protocol::client::{ClientMessage, CloseCode, ControlMessage, Credential, ErrorCode};
use tokio::{net::TcpStream, time::Instant};

use super::{
    admission::Place,
    frame,
    inbox::Inbox,
    outbox::{Bounds, Outbox, Pushed, Written},
    queue::ConnectionId,
    resume::Replaying,
};
use crate::{auth::Identity, ops::metrics::now_us};

/// When an identity ends, in milliseconds since 1970 UTC.
pub fn expires_ms(identity: &Identity) -> Option<u64> {
    u64::try_from(identity.expires_at?.as_millis()).ok()
}

/// How long a client that is being closed may take to read the Close and to answer it.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// One place among the connections of a shard; given back when dropped.
#[derive(Debug)]
pub struct Slot(Rc<Cell<usize>>);

impl Slot {
    /// Takes a place, if fewer than `max` are taken.
    pub fn take(taken: &Rc<Cell<usize>>, max: usize) -> Option<Self> {
        if taken.get() >= max {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Self(Rc::clone(taken)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// A Close frame is on its way, and the client's is awaited.
    Closing {
        deadline: Instant,
        reason: &'static str,
    },
    /// Nothing more can be said; the connection's task removes it.
    Over {
        reason: &'static str,
    },
}

/// Requests of a client that are not answered yet; they bound what it can make the edge remember.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// Subscribe requests that the hub has.
    pub requests: usize,
    /// Streams in them.
    pub streams: usize,
    /// Requests that must wait for those, so that answers come in the order of the requests.
    pub deferred: VecDeque<(ClientMessage, usize)>,
    /// Bytes of all of these requests.
    pub bytes: usize,
}

#[derive(Debug)]
pub struct Connection {
    pub id: ConnectionId,
    pub stream: TcpStream,
    pub inbox: Inbox,
    pub outbox: Outbox,
    pub outstanding: Outstanding,
    /// What it is still being given of what it missed; most connections have missed nothing.
    pub replaying: Option<Box<Replaying>>,
    pub phase: Phase,
    /// Protocol errors since the last good request.
    pub errors_in_row: u32,
    /// When the client last sent anything.
    pub last_heard: Instant,
    /// A ping was sent since then.
    pub pinged: bool,
    /// When a text frame was last queued.
    pub last_said: Instant,
    /// Since when the socket has taken nothing of what is to be written.
    pub blocked_since: Option<Instant>,
    /// Noted in the shard's list of connections that have something to write.
    pub dirty: bool,
    /// Noted by the shard as one that has not taken what it was sent.
    pub crowded: bool,
    /// Nothing that still comes is looked at: the client has said Close, or something that is no frame.
    pub deaf: bool,
    /// The client has said Close, or answered one.
    heard_close: bool,
    /// The sending side of the socket is shut.
    half_closed: bool,
    waker: Option<Waker>,
    /// Who the client is, if it has shown credentials.
    pub identity: Option<Arc<Identity>>,
    /// Which ones; ingest checks them again for private streams.
    pub credential: Option<Arc<Credential>>,
    pub expiry: Option<Expiry>,
    /// Among the connections of its address and user.
    pub place: Place,
    /// How many requests it may make.
    pub requests: DefaultDirectRateLimiter,
    _slot: Slot,
}

/// A client that may come in.
#[derive(Debug)]
pub struct Admitted {
    /// `None` for one without credentials.
    pub identity: Option<Arc<Identity>>,
    pub credential: Option<Arc<Credential>>,
    pub place: Place,
}

/// When the client's credentials end.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    pub at: Instant,
    warned: bool,
}

impl Expiry {
    fn of(identity: &Identity, now: Instant) -> Option<Self> {
        let left = identity.expires_at?.saturating_sub(Duration::from_micros(now_us()));
        Some(Self { at: now.checked_add(left)?, warned: false })
    }
}

impl Connection {
    pub fn new(
        id: ConnectionId,
        stream: TcpStream,
        slot: Slot,
        admitted: Admitted,
        requests: Quota,
        now: Instant,
    ) -> Self {
        let Admitted { identity, credential, place } = admitted;
        Self {
            place,
            requests: RateLimiter::direct(requests),
            expiry: identity.as_ref().and_then(|identity| Expiry::of(identity, now)),
            identity,
            credential,
            id,
            stream,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            outstanding: Outstanding::default(),
            replaying: None,
            phase: Phase::Open,
            errors_in_row: 0,
            last_heard: now,
            pinged: false,
            last_said: now,
            blocked_since: None,
            dirty: false,
            crowded: false,
            deaf: false,
            heard_close: false,
            half_closed: false,
            waker: None,
            _slot: slot,
        }
    }

    /// The client has shown other credentials.
    pub fn set_identity(&mut self, identity: Arc<Identity>, credential: Arc<Credential>, now: Instant) {
        self.credential = Some(credential);
        self.expiry = Expiry::of(&identity, now);
        self.identity = Some(identity);
    }

    /// What the client is to be told before its credentials end; once.
    pub fn warning_due(&mut self, now: Instant, before: Duration) -> Option<ControlMessage> {
        let expiry = self.expiry.as_mut()?;
        if expiry.warned || now + before < expiry.at {
            return None;
        }
        expiry.warned = true;
        Some(ControlMessage::Warning {
            code: ErrorCode::TokenExpired,
            message: "the token expires soon; send a new one with the action authenticate".into(),
            expires_at: expires_ms(self.identity.as_ref()?)?,
        })
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Queues a text frame. When the queue is full, the socket is tried before the client is called slow: a burst may
    /// be larger than the queue although the client keeps up.
    pub fn push(&mut self, frame: Bytes, bounds: Bounds, scratch: &mut Vec<u8>, now: Instant) -> Pushed {
        self.last_said = now;
        let pushed = self.outbox.push(frame.clone(), bounds);
        if pushed != Pushed::Full || self.blocked_since.is_some() {
            return pushed;
        }
        self.flush(scratch, now);
        self.outbox.push(frame, bounds)
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self, scratch: &mut Vec<u8>, now: Instant) {
        if matches!(self.phase, Phase::Over { .. }) {
            return;
        }
        let stream = &self.stream;
        match self.outbox.write(scratch, |bytes| stream.try_write(bytes)) {
            Ok(Written::All) => self.blocked_since = None,
            Ok(Written::Blocked { progress }) => {
                if self.blocked_since.is_none() || progress {
                    self.blocked_since = Some(now);
                }
                // The task waits until the socket takes more.
                self.wake();
            }
            Err(error) => self.lost(&error),
        }
    }

    /// Begins to close; what is queued goes out first if `after_queue`. Returns how many queued frames were dropped.
    pub fn close(&mut self, code: CloseCode, reason: &str, after_queue: bool, deadline: Instant) -> usize {
        if !self.is_open() {
            return 0;
        }
        let frame = frame::close(code, reason);
        self.phase = Phase::Closing { deadline, reason: code.label() };
        let dropped = if after_queue {
            self.outbox.close_after_queue(frame);
            0
        } else {
            self.outbox.close_now(frame)
        };
        self.wake();
        dropped
    }

    /// Answers the client's Close, and ends as soon as the answer is out.
    pub fn closed_by_client(&mut self, code: Option<u16>, now: Instant) {
        (self.deaf, self.heard_close) = (true, true);
        if self.is_open() {
            self.outbox.close_now(frame::close_echo(code));
            // The deadline only matters if the answer cannot be written.
            self.phase = Phase::Closing { deadline: now + CLOSE_TIMEOUT, reason: CloseCode::Normal.label() };
        }
    }

    /// The peer is gone.
    pub fn lost(&mut self, error: &io::Error) {
        tracing::trace!(connection = self.id.serial, %error, "connection lost");
        self.over("gone");
    }

    /// Ends at once. The reason is the one why it began to close, if it did.
    pub fn over(&mut self, reason: &'static str) {
        let reason = match self.phase {
            Phase::Open => reason,
            Phase::Closing { reason, .. } | Phase::Over { reason } => reason,
        };
        self.phase = Phase::Over { reason };
        self.wake();
    }

    /// Remembers whom to wake.
    pub fn watch(&mut self, context: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
    }

    /// Makes the connection's task look at it.
    pub fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Writes while the socket takes something; registers for when it does again.
    pub fn poll_flush(&mut self, context: &mut Context<'_>, scratch: &mut Vec<u8>, now: Instant) {
        while !self.outbox.is_empty() && !matches!(self.phase, Phase::Over { .. }) {
            match self.stream.poll_write_ready(context) {
                Poll::Ready(Ok(())) => self.flush(scratch, now),
                Poll::Ready(Err(error)) => return self.lost(&error),
                Poll::Pending => return,
            }
        }
    }

    /// Reads once into `buffer`; registers for when there is something again. Zero bytes: the client is gone.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<usize> {
        loop {
            match self.stream.poll_read_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(0),
                Poll::Pending => return Poll::Pending,
            }
            match self.stream.try_read(buffer) {
                Ok(bytes) => return Poll::Ready(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Poll::Ready(0),
            }
        }
    }

    /// Whether both sides have said Close and it is out, or the connection is over in another way.
    ///
    /// A client that sent what is no frame will not answer Close. Its socket is kept half open until it closes or the
    /// deadline is over: cut with bytes unread, the system would tell it of a reset instead of the Close.
    pub fn is_finished(&mut self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Closing { .. } if !self.outbox.is_empty() => false,
            Phase::Closing { .. } => {
                if self.deaf && !self.heard_close && !self.half_closed {
                    self.half_closed = true;
                    // If it fails, the client is gone and the next read says so.
                    let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
                }
                self.heard_close
            }
            Phase::Over { .. } => true,
        }
    }
}
