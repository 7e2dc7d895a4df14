//! tickmesh, a WebSocket broker for exchanges: ingest peers read an event log and publish it on a gossipsub mesh, edge
//! peers push it to clients. ARCHITECTURE.md has the map; [`app`] is the only place that wires the parts together.

pub mod app;
pub mod auth;
pub mod config;
pub mod durable;
pub mod edge;
pub mod ingest;
pub mod key_file;
pub mod mesh;
pub mod ops;
pub mod page;
pub mod ports;
pub mod signing;
pub mod source;
pub mod transform;
