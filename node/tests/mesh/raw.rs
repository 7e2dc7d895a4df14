//! A peer with the network key that speaks nothing but plain streams of one protocol, and says on them what it likes.

use std::time::Duration;

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, Transport,
    core::upgrade::Version,
    futures::{AsyncReadExt, AsyncWriteExt, StreamExt},
    identity::Keypair,
    noise,
    pnet::{PnetConfig, PreSharedKey},
    swarm::{self, SwarmEvent},
    tcp, yamux,
};
use libp2p_stream::{Control, IncomingStreams};
use tickmesh::mesh::NetworkKey;
use tickmesh_protocol::{
    codec::{decode_feed_frame, encode_feed_request},
    feed::{FeedFrame, FeedRequest},
};
use tokio::task::JoinHandle;

use super::cluster::within;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/tickmesh/feed/1");

pub struct Raw {
    control: Control,
    node: PeerId,
    task: JoinHandle<()>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Raw {
    pub async fn connect(key: &NetworkKey, to: Multiaddr) -> Self {
        Self::connect_as(Keypair::generate_ed25519(), key, to).await.0
    }

    /// Connects under a key that somebody may know, and takes the streams that are opened to it.
    pub async fn connect_as(keypair: Keypair, key: &NetworkKey, to: Multiaddr) -> (Self, IncomingStreams) {
        let key: PreSharedKey = key.to_file().parse().unwrap();
        let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .and_then(move |socket, _| PnetConfig::new(key).handshake(socket))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&keypair).unwrap())
            .multiplex(yamux::Config::default())
            .timeout(Duration::from_secs(5))
            .boxed();
        let settings =
            swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(600));
        let peer = keypair.public().to_peer_id();
        let mut swarm = Swarm::new(transport, libp2p_stream::Behaviour::new(), peer, settings);
        let mut control = swarm.behaviour().new_control();
        let incoming = control.accept(PROTOCOL).unwrap();
        swarm.dial(to).unwrap();
        let connected = async {
            loop {
                if let SwarmEvent::ConnectionEstablished { peer_id, .. } = swarm.select_next_some().await {
                    break peer_id;
                }
            }
        };
        let node = within("the raw peer's connection", connected).await;
        let task = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        (Self { control, node, task }, incoming)
    }

    pub async fn open(&self) -> Stream {
        let mut control = self.control.clone();
        within("a stream", control.open_stream(self.node, PROTOCOL)).await.unwrap()
    }

    /// Opens a stream and says these bytes on it.
    pub async fn say(&self, bytes: &[u8]) -> Stream {
        let mut stream = self.open().await;
        // The node may have refused already.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        stream
    }

    pub async fn ask(&self, request: &FeedRequest) -> Stream {
        self.say(&framed(&encode_feed_request(request).unwrap())).await
    }
}

pub fn framed(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_le_bytes()[..], frame].concat()
}

/// The next frame on a stream; nothing when it has ended.
pub async fn next_frame(stream: &mut Stream) -> Option<FeedFrame> {
    loop {
        let mut length = [0; 4];
        within("a frame or the end of a stream", stream.read_exact(&mut length)).await.ok()?;
        let mut frame = vec![0; u32::from_le_bytes(length) as usize];
        within("the rest of a frame", stream.read_exact(&mut frame)).await.ok()?;
        match decode_feed_frame(&frame.into()).unwrap() {
            FeedFrame::Working => {}
            frame => break Some(frame),
        }
    }
}

/// Why a stream was refused, if its next frame says so.
pub async fn refusal(stream: &mut Stream) -> Option<String> {
    match next_frame(stream).await? {
        FeedFrame::Refused { reason } => Some(reason),
        other => panic!("{other:?}"),
    }
}
