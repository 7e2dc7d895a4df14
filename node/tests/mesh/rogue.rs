//! A peer with the network key that keeps to no rule: it sends any bytes on any topic.

use std::time::Duration;

use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    core::upgrade::Version,
    futures::StreamExt,
    gossipsub::{self, ConfigBuilder, IdentTopic, MessageAuthenticity, MessageId, ValidationMode},
    identity::Keypair,
    noise,
    pnet::{PnetConfig, PreSharedKey},
    swarm::{self, SwarmEvent},
    tcp, yamux,
};
use tickmesh::mesh::NetworkKey;
use tickmesh_protocol::Topic;

use super::cluster::within;

pub struct Rogue {
    swarm: Swarm<gossipsub::Behaviour>,
    /// Everything it heard: topic and bytes.
    pub heard: Vec<(String, Vec<u8>)>,
}

impl Rogue {
    /// Connects to a node.
    pub async fn connect(key: &NetworkKey, to: Multiaddr) -> Self {
        let mut rogue = Self::new(key);
        rogue.swarm.dial(to).unwrap();
        let connected = async {
            while !matches!(rogue.swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
        };
        within("the rogue's connection", connected).await;
        rogue
    }

    /// Tries to connect, and says whether it could.
    pub async fn can_connect(key: &NetworkKey, to: Multiaddr) -> bool {
        let mut rogue = Self::new(key);
        rogue.swarm.dial(to).unwrap();
        let tried = async {
            loop {
                match rogue.swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => break true,
                    SwarmEvent::OutgoingConnectionError { .. } => break false,
                    _ => {}
                }
            }
        };
        within("the outcome of the dial", tried).await
    }

    fn new(key: &NetworkKey) -> Self {
        let keypair = Keypair::generate_ed25519();
        let key: PreSharedKey = key.to_file().parse().unwrap();
        let transport = tcp::tokio::Transport::new(tcp::Config::default())
            .and_then(move |socket, _| PnetConfig::new(key).handshake(socket))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&keypair).unwrap())
            .multiplex(yamux::Config::default())
            .timeout(Duration::from_secs(5))
            .boxed();
        let config = ConfigBuilder::default()
            .validation_mode(ValidationMode::Anonymous)
            // Every message is new to it, so it sends the same bytes as often as it likes.
            .message_id_fn(|_| MessageId::new(&PeerId::random().to_bytes()))
            .max_transmit_size(4 * 1024 * 1024)
            .build()
            .unwrap();
        let behaviour = gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, config).unwrap();
        let settings =
            swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(600));
        let swarm = Swarm::new(transport, behaviour, keypair.public().to_peer_id(), settings);
        Self { swarm, heard: Vec::new() }
    }

    pub fn join(&mut self, topic: &Topic) {
        self.swarm.behaviour_mut().subscribe(&IdentTopic::new(topic.to_string())).unwrap();
    }

    /// Sends bytes on a topic as soon as somebody has joined it.
    pub async fn send(&mut self, topic: &Topic, bytes: &[u8]) {
        let send = async {
            while self.swarm.behaviour_mut().publish(IdentTopic::new(topic.to_string()), bytes).is_err() {
                self.step().await;
            }
        };
        within("a subscriber for the rogue", send).await;
    }

    /// Lets the network work until a condition holds.
    pub async fn run_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let run = async {
            while !condition(self) {
                self.step().await;
            }
        };
        within(what, run).await;
    }

    /// Lets the network work for a while.
    pub async fn run(&mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        while tokio::time::Instant::now() < end {
            self.step().await;
        }
    }

    async fn step(&mut self) {
        let event = tokio::time::timeout(Duration::from_millis(5), self.swarm.select_next_some()).await;
        if let Ok(SwarmEvent::Behaviour(gossipsub::Event::Message { message, .. })) = event {
            self.heard.push((message.topic.to_string(), message.data));
        }
    }
}
