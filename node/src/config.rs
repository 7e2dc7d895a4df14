//! The configuration of one peer, checked whole before anything starts.

pub mod reader;

pub use reader::{Fault, Faults, Section, Size, Span};
