//! The routes of one source as they change: each with the records that it is for.

use std::sync::Arc;

use tickmesh_protocol::catalogue::Life;

use super::RouteConfig;

/// The routes of one source, those that were taken away lately included: who reads the log again needs them.
pub type RouteTable = Arc<[TableRoute]>;

/// A route and its life.
#[derive(Clone, Debug)]
pub struct TableRoute {
    /// Tells it from all others of the source, before and after.
    pub id: RouteId,
    pub config: Arc<RouteConfig>,
    pub life: Life,
}

/// Which route of a source, whatever others come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteId {
    /// Of the configuration, by its place there.
    Fixed(usize),
    /// Of the catalogue: a hash of its name and of the version that brought it.
    Changing(u64),
}

impl RouteId {
    /// A route of the catalogue, by its name and the version that brought it.
    pub fn changing(name: &str, since: u64) -> Self {
        Self::Changing(digest(&format!("{since} {name}")))
    }
}

/// Tells texts apart: 64 bits of a hash.
pub fn digest(text: &str) -> u64 {
    blake3::hash(text.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The channels of routes that the log does not say again, of those that were taken away, too.
pub fn computed_channels(routes: &[TableRoute]) -> impl Iterator<Item = String> {
    routes.iter().filter_map(|route| route.config.computed_channel()).map(str::to_owned)
}

/// Routes that have always been, and stay.
pub fn fixed(routes: &[RouteConfig]) -> RouteTable {
    let route = |(place, config): (usize, &RouteConfig)| TableRoute {
        id: RouteId::Fixed(place),
        config: Arc::new(config.clone()),
        life: Life::default(),
    };
    routes.iter().enumerate().map(route).collect()
}
