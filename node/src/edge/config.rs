//! The `[edge]` section of the configuration.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    thread,
    time::Duration,
};

use governor::Quota;
use ipnet::IpNet;

use super::{outbox::Bounds, resume::ResumeLimits};
use crate::{
    auth::{Permissions, default_private},
    config::reader::{Section, Size, Span},
};

/// Smallest queue, in bytes, that does not call every client slow: a `subscribed` for a hundred streams fits.
const MIN_QUEUE_BYTES: usize = 16 * 1024;

/// A page that opens some hundred streams one by one, and then goes on, is served.
const REQUESTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).unwrap();
const REQUESTS_AT_ONCE: NonZeroU32 = NonZeroU32::new(500).unwrap();

/// More shards than any machine has cores are a mistake.
const MAX_SHARDS: usize = 256;

/// What an edge is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Threads that each own a listener and its connections.
    pub shards: usize,
    /// What is kept for a client that reads slowly, before it is closed with 4408.
    pub queue: Bounds,
    /// Connections at once, over all shards.
    pub max_connections: usize,
    /// Connections of one address, over all shards; an IPv6 network of 64 bits counts as one.
    pub max_connections_per_address: Option<usize>,
    /// Connections of one user, over all shards.
    pub max_connections_per_user: Option<usize>,
    /// Who may say for whom it connects (`X-Forwarded-For`).
    pub trusted_proxies: Vec<IpNet>,
    /// Connections of trusted proxies begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Pages whose scripts may connect; without a list, all. Clients that are no browsers name none.
    pub origins: Option<Vec<String>>,
    /// Requests of one connection per second, and how many at once.
    pub requests: Quota,
    /// Subscriptions of one connection.
    pub max_streams: usize,
    /// Silence of a client after which it is pinged.
    pub ping_interval: Duration,
    /// Silence of a client after which it is closed.
    pub idle_timeout: Duration,
    /// How long a client may take nothing while something is to be written.
    pub write_timeout: Duration,
    /// Time from the TCP connection to the whole request.
    pub handshake_timeout: Duration,
    /// Silence towards a client after which it gets a heartbeat.
    pub heartbeat: Duration,
    /// How long a topic stays joined after its last subscriber.
    pub leave_after: Duration,
    /// How long a client waits for `subscribed`.
    pub join_timeout: Duration,
    /// How long before a token expires its client is warned.
    pub token_warning: Duration,
    /// How much clients that come back are given of what they missed.
    pub resume: ResumeLimits,
    /// Who may have which stream. Of the section itself only `anonymous`: streams for clients without credentials.
    pub permissions: Permissions,
    /// Messages come back as they are, and nothing else is said: for test suites of WebSocket itself, which
    /// `examples/echo.rs` is for. No key of the section sets it.
    pub echo: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            shards: thread::available_parallelism().map_or(1, usize::from).min(MAX_SHARDS),
            queue: Bounds { frames: 1024, bytes: 1024 * 1024 },
            // About 100 MB in the process and 400 MB in the kernel when all are idle.
            max_connections: 100_000,
            max_connections_per_address: None,
            max_connections_per_user: Some(100),
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            origins: None,
            requests: quota(REQUESTS_PER_SECOND, REQUESTS_AT_ONCE),
            max_streams: 1024,
            ping_interval: Duration::from_secs(25),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(5),
            leave_after: Duration::from_secs(30),
            join_timeout: Duration::from_secs(2),
            token_warning: Duration::from_secs(60),
            resume: ResumeLimits::default(),
            permissions: Permissions { private: Arc::new(default_private()), ..Permissions::default() },
            echo: false,
        }
    }
}

impl Config {
    /// Reads the section and notes every fault; the section is not finished, so that others may have keys in it.
    pub fn read(section: &mut Section) -> Self {
        let default = Self::default();
        let mut queue = section.section("queue");
        let bounds = Bounds {
            frames: at_least(&mut queue, "frames", default.queue.frames, 1, usize::MAX),
            bytes: queue.or("bytes", Size(default.queue.bytes)).0,
        };
        if bounds.bytes < MIN_QUEUE_BYTES {
            queue.fault("bytes", format!("must be at least {MIN_QUEUE_BYTES}B"));
        }
        queue.finish();
        let mut requests = section.section("requests");
        let per_second = requests.or("per_second", REQUESTS_PER_SECOND);
        let at_once = requests.or("at_once", REQUESTS_AT_ONCE);
        requests.finish();
        let requests = quota(per_second, at_once);
        let mut resume = section.section("resume");
        let limits = ResumeLimits {
            events: resume.or("events", default.resume.events),
            age: span(&mut resume, "age", default.resume.age),
            memory: resume.or("memory", Size(default.resume.memory)).0,
        };
        resume.finish();
        let config = Self {
            listen: section.parsed("listen").unwrap_or(default.listen),
            shards: at_least(section, "shards", default.shards, 1, MAX_SHARDS),
            queue: bounds,
            max_connections: at_least(section, "max_connections", default.max_connections, 1, usize::MAX),
            max_connections_per_address: section.optional("max_connections_per_address"),
            max_connections_per_user: section
                .optional("max_connections_per_user")
                .or(default.max_connections_per_user),
            trusted_proxies: section.parsed_list("trusted_proxies").unwrap_or_default(),
            proxy_protocol: section.or("proxy_protocol", false),
            origins: section.optional("origins"),
            requests,
            max_streams: at_least(section, "max_streams", default.max_streams, 1, usize::MAX),
            ping_interval: span(section, "ping_interval", default.ping_interval),
            idle_timeout: span(section, "idle_timeout", default.idle_timeout),
            write_timeout: span(section, "write_timeout", default.write_timeout),
            handshake_timeout: span(section, "handshake_timeout", default.handshake_timeout),
            heartbeat: span(section, "heartbeat", default.heartbeat),
            leave_after: span(section, "leave_after", default.leave_after),
            join_timeout: span(section, "join_timeout", default.join_timeout),
            token_warning: span(section, "token_warning", default.token_warning),
            resume: limits,
            permissions: Permissions { anonymous: section.parsed_list("anonymous"), ..default.permissions },
            echo: false,
        };
        if config.proxy_protocol && config.trusted_proxies.is_empty() {
            section.fault("proxy_protocol", "needs trusted_proxies: whose header is to be believed");
        }
        if config.idle_timeout <= config.ping_interval {
            section.fault("idle_timeout", "must be longer than ping_interval, or no pong can come in time");
        }
        config
    }
}

fn quota(per_second: NonZeroU32, at_once: NonZeroU32) -> Quota {
    Quota::per_second(per_second).allow_burst(at_once)
}

fn span(section: &mut Section, key: &'static str, default: Duration) -> Duration {
    let span = section.or(key, Span(default)).0;
    if span.is_zero() {
        section.fault(key, "must be longer than nothing");
        return default;
    }
    span
}

fn at_least(section: &mut Section, key: &'static str, default: usize, min: usize, max: usize) -> usize {
    let number = section.or(key, default);
    if (min..=max).contains(&number) {
        return number;
    }
    match max {
        usize::MAX => section.fault(key, format!("must be at least {min}, not {number}")),
        max => section.fault(key, format!("must be {min} to {max}, not {number}")),
    }
    default
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::read_text;

    fn read(text: &str) -> (Config, Vec<String>) {
        read_text(text, Config::read)
    }

    #[test]
    fn every_key_is_read() {
        let (config, faults) = read(
            r#"
            listen = "127.0.0.1:9000"
            shards = 3
            queue = { frames = 10, bytes = "64KiB" }
            max_connections = 7
            max_connections_per_address = 5
            max_connections_per_user = 6
            trusted_proxies = ["10.0.0.0/8"]
            proxy_protocol = true
            origins = ["https://exchange.example"]
            requests = { per_second = 2, at_once = 3 }
            max_streams = 8
            ping_interval = "1s"
            idle_timeout = "2s"
            write_timeout = "3s"
            handshake_timeout = "4s"
            heartbeat = "500ms"
            leave_after = "6s"
            join_timeout = "7s"
            token_warning = "8s"
            anonymous = ["trades.*", "ticker.global"]
            "#,
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(
            (config.listen.port(), config.shards, config.max_connections, config.max_streams),
            (9000, 3, 7, 8)
        );
        assert_eq!(
            (
                config.max_connections_per_address,
                config.max_connections_per_user,
                config.trusted_proxies.len()
            ),
            (Some(5), Some(6), 1)
        );
        assert!(config.proxy_protocol);
        assert_eq!(config.origins, Some(vec!["https://exchange.example".to_owned()]));
        assert_eq!(config.requests.burst_size().get(), 3);
        assert_eq!(config.queue, Bounds { frames: 10, bytes: 64 * 1024 });
        let seconds = [
            config.ping_interval,
            config.idle_timeout,
            config.write_timeout,
            config.handshake_timeout,
            config.heartbeat,
            config.leave_after,
            config.join_timeout,
            config.token_warning,
        ];
        assert_eq!(seconds.map(|span| span.as_secs_f64()), [1.0, 2.0, 3.0, 4.0, 0.5, 6.0, 7.0, 8.0]);
        let may = |name: &str| config.permissions.decide(None, &name.parse().unwrap()).is_ok();
        assert!(may("trades.btc_usdt") && may("ticker.global") && !may("ticker.btc_usdt"));
    }

    #[test]
    fn every_fault_is_noted_at_once() {
        let (_, faults) = read(
            r#"
            listen = "nowhere"
            shards = 0
            queue = { frames = 0, bytes = "1B", colour = 1 }
            heartbeat = "0s"
            idle_timeout = "10s"
            anonymous = ["TRADES.*", "trades.*"]
            "#,
        );
        let keys: Vec<_> =
            faults.iter().filter_map(|fault| fault.split_once(':')).map(|(key, _)| key).collect();
        let expected = [
            "queue.frames",
            "queue.bytes",
            "queue.colour",
            "listen",
            "shards",
            "heartbeat",
            "anonymous",
            "idle_timeout",
        ];
        assert_eq!(keys, expected, "{faults:?}");
    }
}
