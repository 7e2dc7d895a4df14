//! What operators see: metrics, health, logs, lifecycle events, dead letters; and how what fails is tried again.

pub mod backoff;
pub mod breaker;
pub mod health;
pub mod http;
pub mod lifecycle;
pub mod log;
pub mod metrics;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use tickmesh_protocol::client::Secret;

use crate::config::reader::Section;

/// Shortest token of an operator.
const MIN_ADMIN_TOKEN_BYTES: usize = 16;

/// `[ops]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where `/metrics`, `/healthz`, `/readyz` and `/dead-letters` are served. Not for the world: dead letters hold what
    /// the exchange's engine wrote.
    pub listen: SocketAddr,
    pub log_format: log::Format,
    /// Who may do what `tickmesh admin` does; without it nobody.
    pub admin_token: Option<Secret>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9100)),
            log_format: log::Format::Text,
            admin_token: None,
        }
    }
}

impl Config {
    /// Reads the section; files are relative to `folder`.
    pub fn read(section: &mut Section, folder: &Path) -> Self {
        let default = Self::default();
        let file: Option<PathBuf> = section.optional("admin_token_file");
        let admin_token = file.and_then(|file| {
            let file = folder.join(file);
            match fs::read_to_string(&file) {
                Ok(text) if text.trim().len() >= MIN_ADMIN_TOKEN_BYTES => Some(Secret::new(text.trim())),
                Ok(_) => {
                    let reason = format!(
                        "{}: at least {MIN_ADMIN_TOKEN_BYTES} characters, so that nobody guesses it",
                        file.display()
                    );
                    section.fault("admin_token_file", reason);
                    None
                }
                Err(error) => {
                    section.fault("admin_token_file", format!("cannot read {}: {error}", file.display()));
                    None
                }
            }
        });
        Self {
            admin_token,
            listen: section.parsed("listen").unwrap_or(default.listen),
            log_format: section.parsed("log_format").unwrap_or(default.log_format),
        }
    }
}
