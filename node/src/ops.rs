//! What operators see: metrics, health, logs, lifecycle events, dead letters.

pub mod health;
pub mod http;
pub mod lifecycle;
pub mod log;
pub mod metrics;

use std::net::{Ipv4Addr, SocketAddr};

use crate::config::reader::Section;

/// `[ops]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where `/metrics`, `/healthz`, `/readyz` and `/dead-letters` are served. Not for the world: dead letters hold what
    /// the exchange's engine wrote.
    pub listen: SocketAddr,
    pub log_format: log::Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9100)), log_format: log::Format::Text }
    }
}

impl Config {
    pub fn read(section: &mut Section) -> Self {
        let default = Self::default();
        Self {
            listen: section.parsed("listen").unwrap_or(default.listen),
            log_format: section.parsed("log_format").unwrap_or(default.log_format),
        }
    }
}
