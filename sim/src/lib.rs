//! Simulations of tickmesh that need nothing but the pure machines of `tickmesh_protocol`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands talk to people")]

pub mod model;
