//! The only wiring: bind, run, drain.
