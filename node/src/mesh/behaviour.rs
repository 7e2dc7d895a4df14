//! The protocols of a peer and their settings, each chosen on purpose.

use std::time::Duration;

use libp2p::{
    StreamProtocol, connection_limits,
    gossipsub::{
        self, CallbackSubscriptionFilter, ConfigBuilder, IdentTopic, MaxCountSubscriptionFilter, Message,
        MessageAuthenticity, MessageId, TopicHash, ValidationMode,
    },
    identify,
    kad::{self, store::MemoryStore},
    ping, request_response,
    swarm::NetworkBehaviour,
};
use tickmesh_protocol::{Topic, codec::MAX_ENVELOPE_BYTES};

use super::{
    connections::OneConnection,
    feeds::FeedStreams,
    heads::{ASK_TIMEOUT, HeadCodec, MAX_HELD_PER_PEER, PROTOCOL},
    identity::Identity,
};

/// Private name of the routing protocol, so that a peer of another libp2p network is never taken into the table.
pub(super) const ROUTING_PROTOCOL: StreamProtocol = StreamProtocol::new("/tickmesh/kad/1");

/// What peers call this protocol suite to one another; only information.
const SUITE: &str = "/tickmesh/1";

/// Largest RPC of gossipsub. It is compared with everything in the read buffer at once, not with one message, so four
/// of the largest envelopes fit; a larger one would break the stream for good.
const MAX_TRANSMIT_BYTES: usize = 4 * MAX_ENVELOPE_BYTES;

/// Largest control part of an RPC. The default of 16 KiB is broken by a hello with 1,000 topics and by an IHAVE of one
/// busy second; 2 MiB were measured to carry 10,000 topics.
const MAX_CONTROL_BYTES: usize = 2 * 1024 * 1024;

/// Topics that one peer may join. The default of 100 makes gossipsub ignore *all* topics of a peer that has 101,
/// without a word. 64 buckets for 128 channels.
pub(super) const MAX_TOPICS: usize = 8192;

/// Peers that forward a topic to one another. Publishers send every batch to every subscriber directly, so forwarding
/// only serves who has no connection to a publisher, and each copy costs its receiver as much CPU as the first.
const MESH_PEERS: usize = 1;
const MESH_PEERS_LEAST: usize = 1;
const MESH_PEERS_MOST: usize = 2;

/// How often gossipsub mends its meshes and tells of what it has.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The first heartbeat. The default of 5 s would leave a peer that starts without forwarding for that long.
const FIRST_HEARTBEAT: Duration = Duration::from_millis(100);

/// Heartbeats that messages are kept: only until they are validated, which happens at once.
const HISTORY: usize = 2;

/// Heartbeats that peers are told of (IHAVE): none. What is asked for after it comes in random order, and under load it
/// overtakes what is still on its direct way: 300 batches published at once were seen to arrive shuffled. An event that
/// comes after a later one is of no use; gaps are repaired by position.
const HISTORY_TOLD: usize = 0;

/// How long a message is known as seen. Must exceed what queues may add (5 s at each hop); replays later than
/// this are caught by [`super::validation`].
const SEEN: Duration = Duration::from_secs(30);

/// A topic that was left may be joined again after this; with the default of 10 s a peer that comes back sooner stays
/// outside the mesh. On the wire it is whole seconds, so this is the least.
const UNSUBSCRIBE_BACKOFF: Duration = Duration::from_secs(1);

/// The same after a prune by a full mesh; a minute by default, far too long for a mesh of two.
const PRUNE_BACKOFF: Duration = Duration::from_secs(5);

/// Messages that wait for one peer: some seconds of a busy publisher. What does not fit is dropped and counted. The queue
/// has no bound in bytes; at the usual kilobyte a message it holds 4 MiB for a peer that stands still.
const QUEUE_MESSAGES: usize = 4096;

/// How long a message may wait for a peer before it is dropped. As long as nothing repairs what is dropped, late is better
/// than lost.
const PUBLISH_WAIT: Duration = Duration::from_secs(20);
const FORWARD_WAIT: Duration = Duration::from_secs(1);

/// From this size on, peers tell their mesh that they have a message. For the usual batch of some KiB that would cost
/// as much CPU as the copy it saves; for books it saves bytes on long lines.
const IDONTWANT_BYTES: usize = 32 * 1024;

/// A connection without traffic is kept. gossipsub counts as traffic only what goes on in its mesh, so with a short
/// time the connection to a publisher would be cut in the middle of its batches; dead ones are found by ping.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A peer that cannot answer a ping for this long does not take batches either.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of one node: some hundred edges connect to each publisher; the rest of the 20,000 usual file
/// descriptors belongs to clients.
const MAX_CONNECTIONS: u32 = 2048;

/// Connections that are being made. Strangers without the network key get no further than this.
const MAX_PENDING: u32 = 256;

/// How often peers look for others.
const ROUTING_REFRESH: Duration = Duration::from_secs(60);

/// A peer is told of our new addresses at once; this is for the rest that identify carries.
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(300);

type Filter = MaxCountSubscriptionFilter<CallbackSubscriptionFilter<fn(&TopicHash) -> bool>>;
pub(super) type Gossip = gossipsub::Behaviour<gossipsub::IdentityTransform, Filter>;

/// All protocols of a peer. The order matters: what may refuse a connection comes first.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) one: OneConnection,
    pub(super) gossip: Gossip,
    pub(super) heads: request_response::Behaviour<HeadCodec>,
    feeds: FeedStreams,
    pub(super) routing: kad::Behaviour<MemoryStore>,
    pub(super) identify: identify::Behaviour,
    ping: ping::Behaviour,
}

impl Behaviour {
    /// `answers`: whether this node can be asked about heads.
    pub(super) fn new(identity: &Identity, answers: bool, feeds: FeedStreams) -> Result<Self, String> {
        let limits = connection_limits::ConnectionLimits::default()
            .with_max_established(Some(MAX_CONNECTIONS))
            .with_max_pending_incoming(Some(MAX_PENDING));
        let identify = identify::Config::new(SUITE.into(), identity.keypair().public())
            .with_agent_version(concat!("tickmesh/", env!("CARGO_PKG_VERSION")).into())
            .with_push_listen_addr_updates(true)
            .with_interval(IDENTIFY_INTERVAL);
        let ping = ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT);
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits),
            one: OneConnection::default(),
            gossip: gossip()?,
            heads: heads(answers),
            feeds,
            routing: routing(identity),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
        })
    }
}

fn gossip() -> Result<Gossip, String> {
    let config = ConfigBuilder::default()
        // The envelope is signed, once per batch; gossipsub's own signature would be checked once per copy.
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(message_id)
        // What makes an answer about heads true: everything published goes to every subscriber at once.
        .flood_publish(true)
        .max_transmit_size(MAX_TRANSMIT_BYTES)
        .max_control_message_size(MAX_CONTROL_BYTES)
        .mesh_n(MESH_PEERS)
        .mesh_n_low(MESH_PEERS_LEAST)
        .mesh_n_high(MESH_PEERS_MOST)
        // At most half of the mesh may be asked for, and with one configured list of publishers nobody is eclipsed.
        .mesh_outbound_min(0)
        .heartbeat_interval(HEARTBEAT)
        .heartbeat_initial_delay(FIRST_HEARTBEAT)
        .history_length(HISTORY)
        .history_gossip(HISTORY_TOLD)
        .duplicate_cache_time(SEEN)
        .unsubscribe_backoff(UNSUBSCRIBE_BACKOFF)
        .prune_backoff(PRUNE_BACKOFF)
        .connection_handler_queue_len(QUEUE_MESSAGES)
        .publish_queue_duration(PUBLISH_WAIT)
        .forward_queue_duration(FORWARD_WAIT)
        .idontwant_message_size_threshold(IDONTWANT_BYTES)
        .build()
        .map_err(|error| error.to_string())?;
    let filter = MaxCountSubscriptionFilter {
        filter: CallbackSubscriptionFilter(is_topic as fn(&TopicHash) -> bool),
        max_subscribed_topics: MAX_TOPICS,
        max_subscriptions_per_request: MAX_TOPICS,
    };
    // No peer score: it keeps a record of every message for two minutes and judges what is innocent here (several
    // nodes behind one address, rejoining, being slow). Peers that send what no honest peer sends are muted instead,
    // see `penalties`.
    Ok(Gossip::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, filter)?)
}

/// The first 16 bytes of the BLAKE3 of topic and envelope. The default id is the same for all anonymous messages. The
/// topic belongs to it: otherwise whoever is quicker could send a true batch on a wrong topic, where it is rejected,
/// and the right one would then be dropped as seen. No topic holds a zero byte, so it ends one. Two equal ticks stay
/// two messages, as the envelope carries a counter.
fn message_id(message: &Message) -> MessageId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.topic.as_str().as_bytes()).update(&[0]).update(&message.data);
    MessageId::new(&hasher.finalize().as_bytes()[..16])
}

/// Only what parses is a topic; anything else would be kept for every peer that says it.
fn is_topic(topic: &TopicHash) -> bool {
    topic.as_str().parse::<Topic>().is_ok()
}

/// The topic as gossipsub names it: its text.
pub(super) fn gossip_topic(topic: &Topic) -> IdentTopic {
    IdentTopic::new(topic.to_string())
}

fn heads(answers: bool) -> request_response::Behaviour<HeadCodec> {
    use request_response::{Behaviour, Config, ProtocolSupport};
    // Who cannot answer does not offer to: the asker learns it at once.
    let support = if answers { ProtocolSupport::Full } else { ProtocolSupport::Outbound };
    let config =
        Config::default().with_request_timeout(ASK_TIMEOUT).with_max_concurrent_streams(MAX_HELD_PER_PEER);
    Behaviour::new([(PROTOCOL, support)], config)
}

fn routing(identity: &Identity) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(ROUTING_PROTOCOL);
    config.set_periodic_bootstrap_interval(Some(ROUTING_REFRESH));
    // Only peers are looked up; records of others are not kept.
    config.set_record_filtering(kad::StoreInserts::FilterBoth);
    let peer = identity.peer_id();
    let mut routing = kad::Behaviour::with_config(peer, MemoryStore::new(peer), config);
    // Every peer answers. Left to itself it would wait for a confirmed public address, which private ones never have.
    routing.set_mode(Some(kad::Mode::Server));
    routing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_valid_and_a_message_has_one_id_on_each_topic() {
        Behaviour::new(&Identity::generate().unwrap(), true, FeedStreams::new(true).0).unwrap();
        let id = |topic: &str, data: &[u8]| {
            let topic = TopicHash::from_raw(topic);
            message_id(&Message { source: None, data: data.to_vec(), sequence_number: None, topic })
        };
        assert_eq!(id("t", b"a"), id("t", b"a"));
        assert_ne!(id("t", b"a"), id("t", b"b"));
        assert_ne!(id("t/1", b"a"), id("t/2", b"a"));
        assert_ne!(id("t/1", b"2a"), id("t/12", b"a"));
        assert_eq!(id("t", b"a").0.len(), 16);
    }

    #[test]
    fn only_topics_are_taken_as_subscriptions() {
        assert!(is_topic(&TopicHash::from_raw("/tickmesh/1/all/trades/7")));
        for other in ["", "/tickmesh/1/all/trades/64", "/tickmesh/2/all/trades/7", "trades"] {
            assert!(!is_topic(&TopicHash::from_raw(other)), "{other}");
        }
    }
}
