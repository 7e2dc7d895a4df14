//! The `[mesh]` section of the configuration.

use std::{collections::HashSet, path::PathBuf};

use libp2p::{Multiaddr, multiaddr::Protocol};
use tickmesh_protocol::PublisherKey;

use super::{feeds, identity::PublisherId};
use crate::config::reader::Section;

/// Where a node listens if its configuration says nothing.
const DEFAULT_LISTEN: &str = "/ip4/0.0.0.0/tcp/7000";

/// How a node takes part in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Addresses to listen on; port 0 takes any free one.
    pub listen: Vec<Multiaddr>,
    /// Addresses of peers to dial until they answer, and again whenever they are lost.
    pub bootstrap: Vec<Multiaddr>,
    pub key_file: PathBuf,
    pub network_key_file: PathBuf,
    /// Who may make market data. `None`: this node believes only itself.
    pub publishers: Option<Vec<PublisherKey>>,
    /// Edges that may ask this node for private events; its own may always.
    pub edges: Vec<PublisherKey>,
    /// Not read from a file.
    pub feeds: feeds::Settings,
}

impl Config {
    /// Reads the section; the caller ends it with [`Section::finish`].
    pub fn read(section: &mut Section) -> Self {
        let listen =
            section.parsed_list("listen").unwrap_or_else(|| DEFAULT_LISTEN.parse().into_iter().collect());
        let bootstrap = section.parsed_list("bootstrap").unwrap_or_default();
        if listen.is_empty() {
            section.fault("listen", "is empty; a peer needs one address at least");
        }
        for address in listen.iter().filter(|address| !is_tcp(address, Side::Listen)) {
            section
                .fault("listen", format!("{address}: write /ip4/ADDRESS/tcp/PORT or /ip6/ADDRESS/tcp/PORT"));
        }
        for address in bootstrap.iter().filter(|address| !is_tcp(address, Side::Dial)) {
            let reason =
                "write /ip4/ADDRESS/tcp/PORT, /dns4/NAME/tcp/PORT or /dnsaddr/NAME, with /p2p/PEER if known";
            section.fault("bootstrap", format!("{address}: {reason}"));
        }
        let publishers = peers(section, "publishers");
        let edges = peers(section, "edges").unwrap_or_default();
        Self {
            listen,
            bootstrap,
            key_file: section.or("key_file", "node.key".into()),
            network_key_file: section.or("network_key_file", "network.psk".into()),
            publishers,
            edges,
            feeds: feeds::Settings::default(),
        }
    }
}

fn peers(section: &mut Section, key: &'static str) -> Option<Vec<PublisherKey>> {
    let ids = section.parsed_list::<PublisherId>(key)?;
    let mut seen = HashSet::new();
    if ids.iter().any(|id| !seen.insert(id.0)) {
        section.fault(key, "names a peer twice");
    }
    Some(ids.into_iter().map(|id| id.0).collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Listen,
    Dial,
}

/// Whether the mesh's one transport, TCP, can use an address: faults that only a start would show otherwise.
fn is_tcp(address: &Multiaddr, side: Side) -> bool {
    use Protocol::{Dns, Dns4, Dns6, Dnsaddr, Ip4, Ip6, P2p, Tcp};
    let parts: Vec<_> = address.iter().collect();
    let dial = side == Side::Dial;
    match parts.as_slice() {
        [Ip4(_) | Ip6(_), Tcp(_)] => true,
        [Dns(_) | Dns4(_) | Dns6(_), Tcp(_)] | [Dnsaddr(_)] => dial,
        [Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_), Tcp(_), P2p(_)] | [Dnsaddr(_), P2p(_)] => dial,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::reader::read_text, mesh::Identity};

    /// The keys of the faults.
    fn read(text: &str) -> (Config, Vec<String>) {
        let (config, faults) = read_text(text, Config::read);
        (config, faults.iter().filter_map(|fault| Some(fault.split_once(": ")?.0.to_owned())).collect())
    }

    #[test]
    fn an_empty_section_has_defaults() {
        let (config, faults) = read("");
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(config.listen, vec![DEFAULT_LISTEN.parse().unwrap()]);
        assert_eq!((config.publishers, config.key_file.to_str()), (None, Some("node.key")));
    }

    #[test]
    fn publishers_and_addresses_are_read() {
        let publisher = Identity::generate().unwrap();
        let id = publisher.peer_id();
        let (config, faults) = read(&format!(
            "listen = ['/ip6/::/tcp/7000']\npublishers = ['{id}']\nedges = ['{id}']\n\
             bootstrap = ['/dnsaddr/mesh.example.com', '/dns4/a/tcp/1/p2p/{id}', '/ip4/127.0.0.1/tcp/1']"
        ));
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(config.publishers, Some(vec![publisher.publisher()]));
        assert_eq!(config.edges, [publisher.publisher()]);
        assert_eq!(config.bootstrap.len(), 3);
    }

    #[test]
    fn every_bad_value_is_a_fault_of_its_own() {
        let id = Identity::generate().unwrap().peer_id();
        let (_, faults) = read(&format!(
            "listen = ['/ip4/1.2.3.4/udp/1', 'x', '/dns4/a/tcp/1']\nbootstrap = ['/ip4/1.2.3.4', '/tcp/1']\n\
             publishers = ['{id}', '{id}', 'QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC']\nedges = ['x']\nkey_file = 7\nwrong = 1"
        ));
        let count = |key: &str| faults.iter().filter(|fault| *fault == key).count();
        assert_eq!((count("listen"), count("bootstrap"), count("publishers")), (3, 2, 2), "{faults:?}");
        assert_eq!((count("edges"), count("key_file"), count("wrong")), (1, 1, 1), "{faults:?}");
    }
}
