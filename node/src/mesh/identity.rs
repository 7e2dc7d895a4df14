//! Who this node is, and which network it belongs to: two small text files.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use libp2p::{
    PeerId,
    identity::{self, Keypair, ed25519},
    pnet::PreSharedKey,
};
use tickmesh_protocol::{PublisherKey, SigningKey};

use crate::key_file;

/// First lines of a network key file, as go-libp2p and Kubo write it.
const NETWORK_KEY_HEAD: &str = "/key/swarm/psk/1.0.0/\n/base16/\n";

/// Largest key file that is read: several times the 95 bytes of a network key.
const MAX_KEY_FILE_BYTES: usize = 4096;

/// Multihash code of an inlined key (identity), the form of every Ed25519 peer id.
const INLINED: u64 = 0;

/// A node's Ed25519 key: it makes the peer id, and signs batches where the node is a publisher.
#[derive(Clone)]
pub struct Identity {
    secret: [u8; 32],
    keypair: Keypair,
    publisher: PublisherKey,
}

/// The key that all peers of one network share; without it no connection comes about.
#[derive(Clone)]
pub struct NetworkKey([u8; 32]);

/// A publisher as configurations name it: the peer id of an Ed25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublisherId(pub PublisherKey);

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot read key file {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot create key file {}: {error}", path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("key file {} holds no key: {error}", path.display())]
    Content { path: PathBuf, error: InvalidKey },
}

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("a key is 64 hexadecimal digits")]
    Hex,
    #[error(
        "a network key file begins with /key/swarm/psk/1.0.0/, then /base16/, then 64 hexadecimal digits"
    )]
    NetworkKeyFormat,
    #[error("not an Ed25519 key")]
    Curve,
    #[error("a publisher is the peer id of an Ed25519 key: 12D3KooW...")]
    PublisherId,
}

impl Identity {
    /// A new random key, kept nowhere.
    pub fn generate() -> Result<Self, InvalidKey> {
        Self::from_secret(random_secret()?)
    }

    /// From the 32 secret bytes of RFC 8032.
    pub fn from_secret(secret: [u8; 32]) -> Result<Self, InvalidKey> {
        let keypair = Keypair::ed25519_from_bytes(secret).map_err(|_| InvalidKey::Curve)?;
        let publisher = SigningKey::from_bytes(&secret).publisher();
        Ok(Self { secret, keypair, publisher })
    }

    /// Reads a key file: 64 hexadecimal digits.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        read_key_file(path)?.parse().map_err(|error| content(path, error))
    }

    /// Makes a new key and its file, readable by its owner only. An existing file is never overwritten.
    pub fn create(path: &Path) -> Result<Self, KeyFileError> {
        let identity = Self::generate().map_err(|error| content(path, error))?;
        create_key_file(path, &identity.to_file())?;
        Ok(identity)
    }

    /// The text of a key file. It holds the secret.
    pub fn to_file(&self) -> String {
        format!("{}\n", to_hex(&self.secret))
    }

    pub fn peer_id(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    pub fn publisher(&self) -> PublisherKey {
        self.publisher
    }

    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(&self.secret)
    }

    pub(super) fn keypair(&self) -> &Keypair {
        &self.keypair
    }
}

impl FromStr for Identity {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_hex(text.trim()).and_then(Self::from_secret)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

impl NetworkKey {
    /// A new random key, kept nowhere.
    pub fn generate() -> Result<Self, InvalidKey> {
        random_secret().map(Self)
    }

    /// Reads a key file in the format of go-libp2p.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        read_key_file(path)?.parse().map_err(|error| content(path, error))
    }

    /// Makes a new key and its file, readable by its owner only. An existing file is never overwritten.
    pub fn create(path: &Path) -> Result<Self, KeyFileError> {
        let key = Self::generate().map_err(|error| content(path, error))?;
        create_key_file(path, &key.to_file())?;
        Ok(key)
    }

    /// The text of a key file. It holds the secret.
    pub fn to_file(&self) -> String {
        format!("{NETWORK_KEY_HEAD}{}\n", to_hex(&self.0))
    }

    pub(super) fn pre_shared(&self) -> PreSharedKey {
        PreSharedKey::new(self.0)
    }
}

/// Shows the fingerprint, not the key.
impl fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkKey({})", self.pre_shared().fingerprint())
    }
}

/// libp2p's own parser panics on 64 bytes that are not ASCII, so the text is taken apart here.
impl FromStr for NetworkKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.replace("\r\n", "\n");
        let key = text.strip_prefix(NETWORK_KEY_HEAD).ok_or(InvalidKey::NetworkKeyFormat)?;
        parse_hex(key.trim()).map(Self)
    }
}

impl FromStr for PublisherId {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let peer: PeerId = text.parse().map_err(|_| InvalidKey::PublisherId)?;
        publisher_of(&peer).map(Self).ok_or(InvalidKey::PublisherId)
    }
}

/// The key in a peer id, if it is an Ed25519 one.
pub fn publisher_of(peer: &PeerId) -> Option<PublisherKey> {
    let hash = peer.as_ref();
    if hash.code() != INLINED {
        return None;
    }
    let key = identity::PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    Some(PublisherKey(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The peer id of a publisher; nothing if the bytes are no point on the curve.
pub fn peer_of(publisher: &PublisherKey) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&publisher.0).ok()?;
    Some(identity::PublicKey::from(key).to_peer_id())
}

/// 32 bytes from the operating system's generator, by way of the crate that makes keys anyway.
fn random_secret() -> Result<[u8; 32], InvalidKey> {
    ed25519::SecretKey::generate().as_ref().try_into().map_err(|_| InvalidKey::Curve)
}

fn parse_hex(text: &str) -> Result<[u8; 32], InvalidKey> {
    let mut key = [0; 32];
    if text.len() != 64 {
        return Err(InvalidKey::Hex);
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).ok_or(InvalidKey::Hex);
        // Two hexadecimal digits fit into a byte.
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(key)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content(path: &Path, error: InvalidKey) -> KeyFileError {
    KeyFileError::Content { path: path.to_owned(), error }
}

fn read_key_file(path: &Path) -> Result<String, KeyFileError> {
    key_file::read(path, MAX_KEY_FILE_BYTES)
        .map_err(|error| KeyFileError::Read { path: path.to_owned(), error })
}

fn create_key_file(path: &Path, text: &str) -> Result<(), KeyFileError> {
    key_file::create(path, text).map_err(|error| KeyFileError::Create { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_are_private_survive_a_restart_and_are_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let (node, network) = (folder.path().join("node.key"), folder.path().join("network.psk"));
        let identity = Identity::create(&node).unwrap();
        let key = NetworkKey::create(&network).unwrap();
        assert_eq!(Identity::load(&node).unwrap().peer_id(), identity.peer_id());
        assert_eq!(NetworkKey::load(&network).unwrap().0, key.0);
        assert!(matches!(Identity::create(&node), Err(KeyFileError::Create { .. })));
        #[cfg(unix)]
        for path in [&node, &network] {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // libp2p reads the same file as the same key.
        let theirs: PreSharedKey = std::fs::read_to_string(&network).unwrap().parse().unwrap();
        assert_eq!(theirs, key.pre_shared());
    }

    #[test]
    fn publishers_are_written_as_peer_ids() {
        let identity = Identity::generate().unwrap();
        let text = identity.peer_id().to_string();
        assert!(text.starts_with("12D3KooW"));
        let publisher: PublisherId = text.parse().unwrap();
        assert_eq!(publisher.0, identity.publisher());
        assert_eq!(peer_of(&publisher.0), Some(identity.peer_id()));
        assert_eq!(identity.signing_key().publisher(), identity.publisher());
        // The id of an RSA key, a random id that holds no key, and no id.
        for other in
            ["QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC", &PeerId::random().to_string(), "12D3", ""]
        {
            assert!(other.parse::<PublisherId>().is_err(), "{other}");
        }
    }

    #[test]
    fn texts_that_are_no_keys_are_refused_without_a_panic() {
        let hex = "6189c5cf0b87fb800c1a9feeda73c6ab5e998db48fb9e6a978575c770ceef683";
        assert!(format!("{NETWORK_KEY_HEAD}{hex}\n").parse::<NetworkKey>().is_ok());
        let umlauts = "ä".repeat(32);
        for key in ["", &hex[1..], &format!("{hex}0"), &umlauts, &hex.replace('6', "g")] {
            assert_eq!(
                format!("{NETWORK_KEY_HEAD}{key}").parse::<NetworkKey>().unwrap_err(),
                InvalidKey::Hex
            );
        }
        assert_eq!(hex.parse::<NetworkKey>().unwrap_err(), InvalidKey::NetworkKeyFormat);
    }

    #[test]
    fn secrets_do_not_show_in_logs() {
        let (identity, key) = (Identity::generate().unwrap(), NetworkKey::generate().unwrap());
        assert!(!format!("{identity:?}").contains(&to_hex(&identity.secret)));
        assert!(!format!("{key:?}").contains(&to_hex(&key.0)));
    }
}
