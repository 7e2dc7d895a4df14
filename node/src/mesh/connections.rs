//! One connection per pair of peers, and what was said on it.
//!
//! gossipsub gives all connections to a peer one queue, so with two of them messages overtake one another; and it says
//! hello (its subscriptions) only on the first, so closing that one in favour of another may lose the hello for good.
//! Hence a second connection is refused before gossipsub hears of it. Where two peers dial each other at the same
//! moment both connections may fall; the dialer's random waits then settle it. A first connection that is dead
//! without saying so is found by ping.

use std::{
    collections::HashMap,
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// Must come before gossipsub among the behaviours of a swarm.
#[derive(Debug, Default)]
pub(super) struct OneConnection {
    /// For each connected peer, `unsubscribed` as it was when the connection came about.
    peers: HashMap<PeerId, u64>,
    /// How often this node has unsubscribed from a topic. Counted here, because this learns of a connection in the
    /// same step as gossipsub does.
    unsubscribed: u64,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("there is a connection to this peer already")]
pub(super) struct AlreadyConnected;

impl OneConnection {
    /// gossipsub has just told all peers of an "unsubscribe".
    pub(super) fn unsubscribed(&mut self) {
        self.unsubscribed += 1;
    }

    /// How many "unsubscribe" a peer has been sent on its connection.
    pub(super) fn unsubscribed_at(&self, peer: &PeerId) -> u64 {
        self.peers.get(peer).map_or(0, |before| self.unsubscribed - before)
    }

    fn admit(&self, peer: &PeerId) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        if self.peers.contains_key(peer) {
            return Err(ConnectionDenied::new(AlreadyConnected));
        }
        Ok(dummy::ConnectionHandler)
    }
}

impl NetworkBehaviour for OneConnection {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(&peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.peers.insert(established.peer_id, self.unsubscribed);
            }
            FromSwarm::ConnectionClosed(closed) if closed.remaining_established == 0 => {
                self.peers.remove(&closed.peer_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
