//! `tickmesh keys`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use tickmesh::{
    auth::{self, ApiKey, hash_of},
    key_file,
    mesh::{Identity, NetworkKey},
    signing,
};
use tickmesh_protocol::UserId;

/// Make the keys of a peer, of the network and for signing, or show a peer's id.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  tickmesh keys --node eu-1.key            make a peer's key, print its id for mesh.publishers\n  \
                        tickmesh keys --network network.psk      make the key that every peer of the network has\n  \
                        tickmesh keys --show eu-1.key            print the id of a peer's key\n  \
                        tickmesh keys --signing signing.jwk      make the key that signs events for clients, print its public half\n  \
                        tickmesh keys --api-key bot-7 --user alice   print an API key and its entry for auth.api_keys.file\n\n\
                        Files that exist are never overwritten."
)]
#[group(required = true, multiple = true)]
pub struct Keys {
    /// Make a peer's key in this file
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
    /// Make a network's key in this file
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Make a key that signs events for clients in this file
    #[arg(long, value_name = "FILE")]
    signing: Option<PathBuf>,
    /// Print the peer id of the key in this file
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
    /// Make an API key with this name
    #[arg(long, value_name = "ID", requires = "user")]
    api_key: Option<String>,
    /// Whose API key it is
    #[arg(long, value_name = "USER", requires = "api_key")]
    user: Option<String>,
}

impl Keys {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        for file in [&self.node, &self.network, &self.signing].into_iter().flatten() {
            ensure!(
                !file.exists(),
                "{} exists; move it away first, if you mean to replace it",
                file.display()
            );
        }
        if let Some(file) = self.node {
            let identity = Identity::create(&file)?;
            println!("{}", identity.peer_id());
            eprintln!(
                "made {}: keep it secret, one per peer; the id above goes into mesh.publishers of every peer if this one ingests",
                file.display()
            );
        }
        if let Some(file) = self.network {
            NetworkKey::create(&file)?;
            eprintln!(
                "made {}: keep it secret, the same on every peer (mesh.network_key_file)",
                file.display()
            );
        }
        if let Some(file) = self.signing {
            let (key, name) = (signing::new_key(), file.display());
            key_file::create(&file, &format!("{}\n", key.to_jwk()))
                .with_context(|| format!("cannot create {name}"))?;
            println!("{}", key.public().to_json());
            eprintln!(
                "made {name}, key id {}: keep it secret, the same on every ingest peer ([signing] key_file);\n\
                 the set above holds its public half: it goes into [signing] jwks_file of every edge, and to your clients by a\n\
                 way of your own. To replace a key, add the new public one to that file first, wait {} s, then change key_file;\n\
                 leave the old public one there for as long as clients hold what it signed",
                key.id(),
                signing::MAX_AGE.as_secs()
            );
        }
        if let (Some(id), Some(user)) = (self.api_key, self.user) {
            UserId::new(&user)?;
            let key = auth::new_api_key();
            println!("{key}");
            eprintln!("the key above is for the client alone; this goes into auth.api_keys.file:\n");
            let entry = ApiKey { id, hash: hash_of(&key), user, roles: Vec::new(), pairs: None };
            eprintln!("[[key]]\n{}", toml::to_string(&entry)?);
        }
        if let Some(file) = self.show {
            println!("{}", Identity::load(&file)?.peer_id());
        }
        Ok(ExitCode::SUCCESS)
    }
}
