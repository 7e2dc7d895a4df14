//! A peer with the network key that keeps to no rule: it sends any bytes on any topic.

use std::{io, time::Duration};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport,
    core::upgrade::Version,
    futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt},
    gossipsub::{self, ConfigBuilder, IdentTopic, MessageAuthenticity, MessageId, ValidationMode},
    identity::Keypair,
    noise,
    pnet::{PnetConfig, PreSharedKey},
    request_response::{self, Message, ProtocolSupport},
    swarm::{self, NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use tickmesh::mesh::NetworkKey;
use tickmesh_protocol::{Topic, codec, head::HeadRequest};
use tokio::task::{JoinError, JoinHandle};

use super::cluster::within;

pub struct Rogue {
    swarm: Swarm<Behaviour>,
    node: Option<PeerId>,
    /// Everything it heard: topic and bytes.
    pub heard: Vec<(String, Vec<u8>)>,
    /// Questions about heads it was asked; it never answers.
    pub asked: Vec<Vec<u8>>,
    /// Answers it got, and whether there was one.
    pub answers: Vec<bool>,
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    gossip: gossipsub::Behaviour,
    heads: request_response::Behaviour<AnyBytes>,
}

/// Bytes as they are.
#[derive(Clone, Default)]
struct AnyBytes;

impl request_response::Codec for AnyBytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        if bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await?;
        io.close().await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await?;
        io.close().await
    }
}

impl Rogue {
    /// Connects to a node.
    pub async fn connect(key: &NetworkKey, to: Multiaddr) -> Self {
        Self::connect_as(Keypair::generate_ed25519(), key, to).await
    }

    /// Connects under a key that somebody may know.
    pub async fn connect_as(keypair: Keypair, key: &NetworkKey, to: Multiaddr) -> Self {
        let mut rogue = Self::new(keypair, key);
        rogue.swarm.dial(to).unwrap();
        let connected = async {
            loop {
                if let SwarmEvent::ConnectionEstablished { peer_id, .. } =
                    rogue.swarm.select_next_some().await
                {
                    break peer_id;
                }
            }
        };
        rogue.node = Some(within("the rogue's connection", connected).await);
        rogue
    }

    /// Tries to connect, and says whether it could.
    pub async fn can_connect(key: &NetworkKey, to: Multiaddr) -> bool {
        let mut rogue = Self::new(Keypair::generate_ed25519(), key);
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

    fn new(keypair: Keypair, key: &NetworkKey) -> Self {
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
        let heads = [(StreamProtocol::new("/tickmesh/head/1"), ProtocolSupport::Full)];
        let behaviour = Behaviour {
            gossip: gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, config).unwrap(),
            heads: request_response::Behaviour::new(heads, request_response::Config::default()),
        };
        let settings =
            swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(600));
        let swarm = Swarm::new(transport, behaviour, keypair.public().to_peer_id(), settings);
        Self { swarm, node: None, heard: Vec::new(), asked: Vec::new(), answers: Vec::new() }
    }

    pub fn join(&mut self, topic: &Topic) {
        self.swarm.behaviour_mut().gossip.subscribe(&IdentTopic::new(topic.to_string())).unwrap();
    }

    pub fn leave(&mut self, topic: &Topic) {
        assert!(self.swarm.behaviour_mut().gossip.unsubscribe(&IdentTopic::new(topic.to_string())));
    }

    /// Asks about heads, and claims to have said "unsubscribe" so many times.
    pub fn ask(&mut self, unsubscribed: u64, request: &HeadRequest) {
        let body = codec::encode_head_request(request).unwrap();
        let bytes = [&unsubscribed.to_le_bytes()[..], &body].concat();
        self.swarm.behaviour_mut().heads.send_request(&self.node.unwrap(), bytes);
    }

    /// Sends bytes on a topic as soon as somebody has joined it.
    pub async fn send(&mut self, topic: &Topic, bytes: &[u8]) {
        let send = async {
            while self
                .swarm
                .behaviour_mut()
                .gossip
                .publish(IdentTopic::new(topic.to_string()), bytes)
                .is_err()
            {
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

    /// Lets the network work until a task has ended.
    pub async fn run_for<T>(&mut self, task: JoinHandle<T>) -> Result<T, JoinError> {
        self.run_until("the end of a task", |_| task.is_finished()).await;
        task.await
    }

    async fn step(&mut self) {
        let event = tokio::time::timeout(Duration::from_millis(5), self.swarm.select_next_some()).await;
        match event {
            Ok(SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                message, ..
            }))) => {
                self.heard.push((message.topic.to_string(), message.data));
            }
            Ok(SwarmEvent::Behaviour(BehaviourEvent::Heads(event))) => match event {
                request_response::Event::Message { message: Message::Request { request, .. }, .. } => {
                    self.asked.push(request);
                }
                request_response::Event::Message { message: Message::Response { .. }, .. } => {
                    self.answers.push(true);
                }
                request_response::Event::OutboundFailure { .. } => self.answers.push(false),
                _ => {}
            },
            _ => {}
        }
    }
}
