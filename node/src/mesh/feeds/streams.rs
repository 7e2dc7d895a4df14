//! The swarm's part of feeds: a behaviour that opens streams of [`PROTOCOL`] on the connection there is, and takes those
//! that others open. It does nothing with them.
//!
//! `libp2p-stream` does the same, but has one place for all inbound streams that were not taken yet and drops what comes
//! beside, so of a burst of requests most would be lost without a word; it opens one stream of a connection at a time;
//! and it dials by itself.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, InboundUpgrade, OutboundUpgrade, UpgradeInfo, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{mpsc, oneshot};

use super::PROTOCOL;

/// Streams that peers have opened and the server has not taken yet; it takes them at once. A burst of all feeds that may
/// be open.
const INCOMING: usize = 1024;

/// Streams to be opened that the swarm has not seen yet.
const TO_OPEN: usize = 256;

/// Why a stream did not come about.
#[derive(Debug, thiserror::Error)]
pub(in crate::mesh) enum OpenError {
    #[error("not connected")]
    NotConnected,
    #[error("it does not serve feeds")]
    Unsupported,
    #[error("{0}")]
    Failed(String),
}

/// Where an opened stream goes.
pub(in crate::mesh) type Opened = oneshot::Sender<Result<Stream, OpenError>>;

/// A stream to be opened.
pub(in crate::mesh) type Open = (PeerId, Opened);

/// Streams that others opened.
pub(in crate::mesh) type Incoming = mpsc::Receiver<(PeerId, Stream)>;

pub(in crate::mesh) struct FeedStreams {
    to_open: mpsc::Receiver<Open>,
    /// Where streams of others go; none if this node serves no feeds.
    incoming: Option<mpsc::Sender<(PeerId, Stream)>>,
    connections: HashMap<PeerId, ConnectionId>,
}

impl FeedStreams {
    /// `serves`: whether others may open feeds here.
    pub(in crate::mesh) fn new(serves: bool) -> (Self, mpsc::Sender<Open>, Option<Incoming>) {
        let (open, to_open) = mpsc::channel(TO_OPEN);
        let (incoming, taken) = if serves {
            let (incoming, taken) = mpsc::channel(INCOMING);
            (Some(incoming), Some(taken))
        } else {
            (None, None)
        };
        (Self { to_open, incoming, connections: HashMap::new() }, open, taken)
    }

    fn handler(&self, peer: PeerId) -> Handler {
        Handler { peer, incoming: self.incoming.clone(), to_open: VecDeque::new() }
    }
}

impl NetworkBehaviour for FeedStreams {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.connections.insert(established.peer_id, established.connection_id);
            }
            FromSwarm::ConnectionClosed(closed)
                if self.connections.get(&closed.peer_id) == Some(&closed.connection_id) =>
            {
                self.connections.remove(&closed.peer_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while let Poll::Ready(Some((peer_id, opened))) = self.to_open.poll_recv(context) {
            match self.connections.get(&peer_id) {
                Some(connection) => {
                    let handler = NotifyHandler::One(*connection);
                    return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event: opened });
                }
                // Whoever asked may have gone.
                None => drop(opened.send(Err(OpenError::NotConnected))),
            }
        }
        Poll::Pending
    }
}

/// The part on one connection.
pub(in crate::mesh) struct Handler {
    peer: PeerId,
    incoming: Option<mpsc::Sender<(PeerId, Stream)>>,
    to_open: VecDeque<Opened>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Opened;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opened;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer> {
        SubstreamProtocol::new(Offer(self.incoming.is_some()), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Offer, Self::OutboundOpenInfo, Infallible>> {
        // What comes in by `on_behaviour_event` is polled for afterwards.
        match self.to_open.pop_front() {
            Some(opened) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Offer(true), opened),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, opened: Opened) {
        // Nobody may wait any more.
        if !opened.is_closed() {
            self.to_open.push_back(opened);
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Offer, Offer, (), Self::OutboundOpenInfo>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                // Dropping a stream resets it: the asker hears that at once.
                if let Some(incoming) = &self.incoming
                    && incoming.try_send((self.peer, stream)).is_err()
                {
                    tracing::debug!(peer = %self.peer, "feed not taken: too many at once");
                }
            }
            // Nobody may wait any more for either.
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                drop(info.send(Ok(protocol)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    other => OpenError::Failed(other.to_string()),
                };
                drop(info.send(Err(error)));
            }
            _ => {}
        }
    }
}

/// The one protocol, or none; the stream as it is.
pub(in crate::mesh) struct Offer(bool);

impl UpgradeInfo for Offer {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.then_some(PROTOCOL).into_iter()
    }
}

impl InboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for Offer {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
