//! The embedded market.
