//! The `[signing]` section of the configuration.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use tickmesh_protocol::{
    signature::{KeySet, MAX_KEY_SET_BYTES, MessageKey},
    stream::is_part,
};

use super::{PublicKeys, Signer};
use crate::{config::reader::Section, key_file};

/// What is signed here, and which public keys are served.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// With the ingest role.
    pub signer: Arc<Signer>,
    /// With the edge role.
    pub public: Option<PublicKeys>,
}

impl Config {
    /// Reads the section of a peer with these roles; files are relative to `folder`, and `private` channels are signed unless
    /// others are named. The caller ends it with [`Section::finish`].
    pub fn read(
        section: &mut Section,
        folder: &Path,
        roles: &BTreeSet<String>,
        private: &HashSet<String>,
    ) -> Self {
        let (ingest, edge) = (roles.contains("ingest"), roles.contains("edge"));
        let key = read_key(section, folder, ingest);
        let channels: Option<HashSet<String>> = section.optional("channels");
        if channels.is_some() && !ingest {
            section.fault("channels", "is read only with the role \"ingest\": edges hand on what is signed");
        }
        let channels = channels.unwrap_or_else(|| private.clone());
        for channel in channels.iter().filter(|channel| !is_part(channel)) {
            section.fault("channels", format!("{channel:?} is no channel name"));
        }
        let own = key.as_ref().map(MessageKey::public);
        let public = read_public(section, folder, edge, own.as_ref());
        let signer = key.map_or_else(Signer::default, |key| Signer::new(key, channels));
        Self { signer: Arc::new(signer), public }
    }
}

fn read_key(section: &mut Section, folder: &Path, ingest: bool) -> Option<MessageKey> {
    let file: Option<PathBuf> = section.optional("key_file");
    match file {
        Some(_) if !ingest => {
            let reason = "is read only with the role \"ingest\"; an edge needs no secret, only jwks_file";
            section.fault("key_file", reason);
            None
        }
        Some(file) => {
            let file = folder.join(file);
            let read = key_file::read(&file, MAX_KEY_SET_BYTES)
                .map_err(|error| format!("cannot read {}: {error}", file.display()));
            let key = read.and_then(|text| {
                MessageKey::from_jwk(text.as_bytes()).map_err(|error| format!("{}: {error}", file.display()))
            });
            key.map_err(|reason| section.fault("key_file", reason)).ok()
        }
        None if ingest => {
            section.fault("key_file", "is missing; make one with: tickmesh keys --signing signing.jwk");
            None
        }
        None => None,
    }
}

fn read_public(section: &mut Section, folder: &Path, edge: bool, own: Option<&KeySet>) -> Option<PublicKeys> {
    let file: Option<PathBuf> = section.optional("jwks_file");
    if !edge {
        if file.is_some() {
            section.fault("jwks_file", "is read only with the role \"edge\": it is what edges serve");
        }
        return None;
    }
    let file = file.map(|file| folder.join(file));
    if file.is_none() && own.is_none() {
        section.fault("jwks_file", "is missing: the public keys, as tickmesh keys --signing prints them");
        return None;
    }
    let public = PublicKeys { own: own.cloned(), file };
    match public.read() {
        Ok(_) => Some(public),
        Err(error) => {
            section.fault("jwks_file", format!("{error:#}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{auth::default_private, config::reader::read_text, signing::new_key};

    fn read(text: &str, folder: &Path, roles: &[&str]) -> (Config, Vec<String>) {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        read_text(text, |section| Config::read(section, folder, &roles, &default_private()))
    }

    #[test]
    fn an_ingest_peer_signs_and_an_edge_serves() {
        let folder = tempfile::tempdir().unwrap();
        let (key, old) = (new_key(), new_key());
        fs::write(folder.path().join("signing.jwk"), key.to_jwk()).unwrap();
        fs::write(folder.path().join("keys.json"), old.public().to_json()).unwrap();
        let stream = |name: &str| name.parse::<tickmesh_protocol::StreamName>().unwrap();
        let at = tickmesh_protocol::Position {
            epoch: tickmesh_protocol::Epoch::from_u64(1),
            sequence: tickmesh_protocol::Sequence::ZERO,
        };
        let signs = |config: &Config, name| config.signer.sign(&stream(name), at, b"1").is_some();

        let (config, faults) = read("key_file = 'signing.jwk'", folder.path(), &["ingest"]);
        assert_eq!(faults, Vec::<String>::new());
        assert!(signs(&config, "orders.alice") && !signs(&config, "trades.a") && config.public.is_none());

        let text = "key_file = 'signing.jwk'\nchannels = ['trades']\njwks_file = 'keys.json'";
        let (config, faults) = read(text, folder.path(), &["ingest", "edge"]);
        assert_eq!(faults, Vec::<String>::new());
        assert!(!signs(&config, "orders.alice") && signs(&config, "trades.a"));
        let served = config.public.unwrap().read().unwrap();
        assert_eq!(served, key.public().with(&old.public()).unwrap());

        let (config, faults) = read("jwks_file = 'keys.json'", folder.path(), &["edge"]);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(config.public.unwrap().read().unwrap(), old.public());
        assert!(config.signer.sign(&stream("orders.alice"), at, b"1").is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let secret = new_key().to_jwk();
        fs::write(folder.path().join("secret"), &secret).unwrap();
        fs::write(folder.path().join("secrets"), format!("{{\"keys\":[{secret}]}}")).unwrap();
        fs::write(folder.path().join("rubbish"), "{}").unwrap();
        for (text, roles, key) in [
            ("", &["ingest"][..], "key_file: is missing"),
            ("key_file = 'absent'", &["ingest"], "key_file: cannot read"),
            ("key_file = 'rubbish'", &["ingest"], "key_file: "),
            ("key_file = 'secret'\nchannels = ['Orders']", &["ingest"], "channels: \"Orders\""),
            ("key_file = 'secret'\njwks_file = 'x'", &["ingest"], "jwks_file: is read only with the role"),
            ("", &["edge"], "jwks_file: is missing"),
            ("key_file = 'secret'", &["edge"], "key_file: is read only with the role"),
            ("channels = ['orders']", &["edge"], "channels: is read only with the role"),
            ("jwks_file = 'absent'", &["edge"], "jwks_file: cannot read"),
            ("jwks_file = 'rubbish'", &["edge"], "jwks_file: "),
            // What must never be served.
            ("jwks_file = 'secrets'", &["edge"], "jwks_file: "),
            ("colour = 1", &["edge"], "colour: no such key"),
        ] {
            let (_, faults) = read(text, folder.path(), roles);
            assert!(faults.iter().any(|fault| fault.starts_with(key)), "{text}: {faults:?}");
            assert!(!faults.concat().contains("\"d\":"), "{faults:?}");
        }
    }
}
