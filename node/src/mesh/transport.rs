//! TCP, the network's pre-shared key, Noise, Yamux: how bytes get from peer to peer.

use std::time::Duration;

use libp2p::{
    PeerId, Transport,
    core::{muxing::StreamMuxerBox, transport::Boxed, upgrade::Version},
    dns, noise,
    pnet::PnetConfig,
    tcp, yamux,
};

use super::identity::{Identity, NetworkKey};

/// From the first packet to an established connection: five round trips of the longest line there is, and an
/// overloaded machine at the other end. Without a limit, a peer with another network key would hold a socket.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds the transport.
pub(super) fn build(
    identity: &Identity,
    network_key: &NetworkKey,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    // A batch is one small frame that must leave at once: no delay for the sake of fuller packets.
    let tcp = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    // A machine without a resolver configuration (a bare container) can still use addresses.
    let dns = dns::tokio::Transport::system(tcp()).unwrap_or_else(|error| {
        tracing::warn!(%error, "no resolver configuration of the system; names are asked of the defaults");
        dns::tokio::Transport::custom(tcp(), dns::ResolverConfig::default(), dns::ResolverOpts::default())
    });
    let network_key = PnetConfig::new(network_key.pre_shared());
    Ok(dns
        .and_then(move |socket, _| network_key.handshake(socket))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(identity.keypair())?)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE_TIMEOUT)
        .boxed())
}
