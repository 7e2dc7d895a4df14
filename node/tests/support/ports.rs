//! Ports of servers that are started again on the same: below those that the system gives to anybody's connection (from 32768
//! on), which may have one while the server is down.

use std::{
    hash::{BuildHasher, RandomState},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    sync::{Mutex, PoisonError},
};

const PORTS: Range<u16> = 20_000..32_000;

/// Given out here; nobody may have bound them yet.
static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// A port that nobody uses now, and hardly anybody soon.
pub fn free_port() -> u16 {
    let width = u64::from(PORTS.end - PORTS.start);
    // Each of these has keys of its own: tests side by side seldom meet.
    let random = || PORTS.start + (RandomState::new().hash_one(0) % width) as u16;
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = random();
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.push(port);
            return port;
        }
    }
}
