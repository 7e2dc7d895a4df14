//! What operators see: metrics, health, logs, lifecycle events.

pub mod health;
pub mod lifecycle;
pub mod metrics;
