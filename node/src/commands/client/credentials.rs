//! What the client signs in with.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tickmesh::key_file;
use tickmesh_protocol::client::Secret;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, header::AUTHORIZATION};

/// More than any token: an edge takes messages of 64 KiB.
const MAX_TOKEN_BYTES: usize = 60 * 1024;

pub(super) enum Credentials {
    Anonymous,
    Token(Secret),
    ApiKey(Secret),
    TokenFile {
        file: PathBuf,
        /// What was read last.
        token: Secret,
    },
}

impl Credentials {
    /// Tokens from a file that others replace before they expire.
    pub(super) fn from_file(file: PathBuf) -> anyhow::Result<Self> {
        let token = read(&file)?;
        Ok(Self::TokenFile { file, token })
    }

    /// For the handshake.
    pub(super) fn header(&self) -> anyhow::Result<Option<(HeaderName, HeaderValue)>> {
        let (name, value) = match self {
            Self::Anonymous => return Ok(None),
            Self::Token(token) | Self::TokenFile { token, .. } => {
                (AUTHORIZATION, format!("Bearer {}", token.reveal()))
            }
            Self::ApiKey(key) => (HeaderName::from_static("x-api-key"), key.reveal().to_owned()),
        };
        // Not the value: it is secret.
        let mut value: HeaderValue = value.parse().ok().context("no credential has such characters")?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }

    /// Whether new ones can come.
    pub(super) fn are_renewable(&self) -> bool {
        matches!(self, Self::TokenFile { .. })
    }

    /// Reads the file again: the token, if it is another than before.
    pub(super) fn renew(&mut self) -> anyhow::Result<Option<Secret>> {
        let Self::TokenFile { file, token } = self else { return Ok(None) };
        let new = read(file)?;
        if new == *token {
            return Ok(None);
        }
        *token = new.clone();
        Ok(Some(new))
    }
}

fn read(file: &Path) -> anyhow::Result<Secret> {
    let text = key_file::read(file, MAX_TOKEN_BYTES)
        .with_context(|| format!("cannot read the token in {}", file.display()))?;
    Ok(Secret::new(text.trim()))
}
