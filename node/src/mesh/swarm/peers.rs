//! Who is connected, who is dialed, who is muted or too slow.

use std::time::Instant;

use libp2p::{
    Multiaddr, PeerId, identify, kad, ping,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::mpsc::error::TrySendError;

use super::Node;
use crate::{
    mesh::{behaviour::ROUTING_PROTOCOL, connections::AlreadyConnected, dialing::Dial},
    ops::backoff::chance,
    ports::IngestInput,
};

/// Addresses of one peer that are taken from what it says. An honest one has a few.
const MAX_ADDRESSES: usize = 16;

impl Node {
    pub(super) fn dial_due(&mut self, now: Instant) {
        for (target, dial) in self.dialer.due(now) {
            let options: DialOpts = match dial {
                Dial::Peer { id, addresses } => DialOpts::peer_id(id)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .addresses(addresses)
                    .extend_addresses_through_behaviour()
                    // With the listening port as its source, a dial is refused by the system while an older connection
                    // between the same two ports lingers, and two dials at once become one broken connection.
                    .allocate_new_port()
                    .build(),
                Dial::Address(address) => {
                    DialOpts::unknown_peer_id().address(address).allocate_new_port().build()
                }
            };
            let (connection, peer) = (options.connection_id(), options.get_peer_id());
            self.dials.insert(connection, target);
            if let Err(error) = self.swarm.dial(options) {
                self.on_dial_failed(connection, peer, &error);
            }
        }
    }

    pub(super) fn on_dial_failed(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
    ) {
        // Without a target it was a dial of the routing protocol, which looks after itself.
        let Some(target) = self.dials.remove(&connection) else {
            return;
        };
        let now = Instant::now();
        match error {
            DialError::LocalPeerId { .. } => self.dialer.is_myself(target),
            DialError::Denied { cause } if cause.downcast_ref::<AlreadyConnected>().is_some() => match peer {
                Some(peer) => self.dialer.connected(peer, Some(target), now),
                None => self.dialer.failed(target, now, chance()),
            },
            DialError::WrongPeerId { obtained, .. } => {
                tracing::warn!(?peer, %obtained, "another peer than configured answers");
                self.dialer.failed(target, now, chance());
            }
            error => {
                tracing::debug!(?peer, %error, "peer not reached");
                self.dialer.failed(target, now, chance());
            }
        }
        if let Some(peer) = peer
            && self.dialer.is_lost(&peer)
            && !self.live_peers_empty()
        {
            // Somebody may know where it is.
            self.swarm.behaviour_mut().routing.get_closest_peers(peer);
        }
    }

    fn live_peers_empty(&self) -> bool {
        self.swarm.network_info().num_peers() == 0
    }

    pub(super) fn on_connected(&mut self, peer: PeerId, connection: ConnectionId) {
        let target = self.dials.remove(&connection);
        self.dialer.connected(peer, target, Instant::now());
        if let Some(publisher) = self.publishers.get(&peer).copied() {
            tracing::info!(%peer, "publisher connected");
            self.live.insert(peer, publisher);
            self.connections_made += 1;
            let connection = self.connections_made;
            self.live_publishers.send_modify(|live| _ = live.insert(publisher, connection));
            self.unsaid.insert(publisher, true);
            self.tell_ingest();
            self.ask_all();
        }
        self.count_peers();
    }

    pub(super) fn on_disconnected(&mut self, peer: PeerId) {
        self.dialer.disconnected(peer, Instant::now(), chance());
        self.subscriptions.forget(&peer);
        self.held.forget(&peer);
        self.slowness.disconnected(&peer, Instant::now());
        if let Some(publisher) = self.live.remove(&peer) {
            tracing::info!(%peer, "publisher disconnected");
            self.unsaid.insert(publisher, false);
            self.unsaid_statuses.remove(&publisher);
            self.live_publishers.send_modify(|live| _ = live.remove(&publisher));
            self.tell_ingest();
        }
        self.count_peers();
    }

    pub(super) fn count_peers(&self) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.peers.set(gauge(self.swarm.network_info().num_peers()));
        self.metrics.publishers.set(gauge(self.live.len()));
        if self.ports.ingest.is_some() || !self.live.is_empty() {
            self.health.ready();
        } else {
            self.health.waiting("connected to none of mesh.publishers");
        }
    }

    /// Tells ingest which publishers came and went, and what they say of themselves. What does not fit now is said later:
    /// the latest state of each, so a publisher that went and came back meanwhile was never gone for it.
    pub(super) fn tell_ingest(&mut self) {
        let Some(ingest) = &self.ports.ingest else {
            self.unsaid.clear();
            return;
        };
        for (publisher, (connection, status)) in self.statuses.take() {
            // What was said over a connection that is gone is of the past: its publisher may have started anew.
            if self.live_publishers.borrow().get(&publisher) == Some(&connection) {
                self.unsaid_statuses.insert(publisher, status);
            }
        }
        self.unsaid.retain(|publisher, up| {
            let input = if *up {
                IngestInput::PublisherUp(*publisher)
            } else {
                IngestInput::PublisherDown(*publisher)
            };
            matches!(ingest.try_send(input), Err(TrySendError::Full(_)))
        });
        self.unsaid_statuses.retain(|publisher, status| {
            if self.unsaid.contains_key(publisher) {
                return true;
            }
            match ingest.try_reserve() {
                Ok(place) => {
                    place.send(IngestInput::Status(*publisher, std::mem::take(status)));
                    false
                }
                Err(full) => full == TrySendError::Full(()),
            }
        });
    }

    pub(super) fn on_identified(&mut self, event: identify::Event) {
        let identify::Event::Received { peer_id, info, .. } = event else {
            return;
        };
        let addresses: Vec<Multiaddr> = info.listen_addrs.into_iter().take(MAX_ADDRESSES).collect();
        if info.protocols.contains(&ROUTING_PROTOCOL) {
            for address in &addresses {
                self.swarm.behaviour_mut().routing.add_address(&peer_id, address.clone());
            }
        }
        self.dialer.learn(peer_id, addresses, Instant::now());
    }

    pub(super) fn on_routing(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { result: kad::QueryResult::GetClosestPeers(result), .. } =
            event
        else {
            return;
        };
        let found = match result {
            Ok(found) => found.peers,
            Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
        };
        for peer in found {
            if self.dialer.misses(&peer.peer_id) {
                let addresses = peer.addrs.into_iter().take(MAX_ADDRESSES);
                self.dialer.learn(peer.peer_id, addresses, Instant::now());
            }
        }
    }

    pub(super) fn on_ping(&mut self, event: &ping::Event) {
        if let Err(error) = &event.result
            && !matches!(error, ping::Failure::Unsupported)
        {
            tracing::warn!(peer = %event.peer, %error, "connection is dead, closing it");
            self.metrics.connections_reset.with_label_values(&["ping"]).inc();
            self.swarm.close_connection(event.connection);
        }
    }

    pub(super) fn on_slow(&mut self, peer: PeerId, dropped: usize, now: Instant) {
        tracing::warn!(%peer, dropped, "peer too slow, messages to it dropped");
        if self.slowness.lost(peer, now, chance()) {
            tracing::warn!(%peer, "peer too slow for too long, closing its connection");
            self.metrics.connections_reset.with_label_values(&["slow"]).inc();
            // Already gone is as good.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Notes that a peer sent what no honest peer sends.
    pub(super) fn strike(&mut self, peer: PeerId, reason: &str) {
        if self.penalties.strike(peer, Instant::now()) {
            tracing::warn!(%peer, reason, "peer muted: it keeps sending invalid messages");
            self.swarm.behaviour_mut().gossip.blacklist_peer(&peer);
        }
        self.count_muted();
    }

    pub(super) fn forgive(&mut self, now: Instant) {
        for peer in self.penalties.forgiven(now) {
            tracing::info!(%peer, "peer no longer muted");
            self.swarm.behaviour_mut().gossip.remove_blacklisted_peer(&peer);
        }
        self.count_muted();
    }

    fn count_muted(&self) {
        self.metrics.muted.set(i64::try_from(self.penalties.muted()).unwrap_or(i64::MAX));
    }
}
