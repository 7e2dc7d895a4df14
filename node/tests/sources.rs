//! One list of behaviours that every kind of source has, against real servers; and with each of them, what clients get when its
//! server is killed. A new kind of log implements `log::Log` and stands here once more.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests, outside test functions"
)]

#[path = "sources/behaviours.rs"]
mod behaviours;
#[path = "support/client.rs"]
mod client;
#[path = "sources/end_to_end.rs"]
mod end_to_end;
#[path = "support/kafka.rs"]
mod kafka;
#[path = "sources/kafka_log.rs"]
mod kafka_log;
#[path = "sources/letters.rs"]
mod letters;
#[path = "sources/log.rs"]
mod log;
#[path = "support/nats.rs"]
mod nats;
#[path = "sources/nats_log.rs"]
mod nats_log;
#[path = "support/node.rs"]
mod node;
#[path = "sources/redis_log.rs"]
mod redis_log;
#[path = "support/redis.rs"]
mod redis_server;
#[path = "support/source.rs"]
mod source;

use kafka_log::Kafka;
use log::Log;
use nats_log::Nats;
use redis_log::Redis;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_without_a_fault() {
    Box::pin(behaviours::without_a_fault(&Kafka::shared().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_with_its_server_killed() {
    behaviours::a_killed_server_loses_and_doubles_nothing(&mut Kafka::prepare().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_to_clients() {
    end_to_end::clients_have_exactly_the_log(&mut Kafka::prepare().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_dead_letters() {
    letters::dead_letters_are_kept_and_come_back(&Kafka::shared().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_without_a_fault() {
    Box::pin(behaviours::without_a_fault(&Nats::shared().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_with_its_server_killed() {
    behaviours::a_killed_server_loses_and_doubles_nothing(&mut Nats::prepare().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_to_clients() {
    end_to_end::clients_have_exactly_the_log(&mut Nats::prepare().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_dead_letters() {
    letters::dead_letters_are_kept_and_come_back(&Nats::shared().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_that_lost_its_end() {
    behaviours::a_log_that_lost_its_end_is_another_epoch(&mut Nats::prepare().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_without_a_fault() {
    Box::pin(behaviours::without_a_fault(&Redis::shared().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_with_its_server_killed() {
    behaviours::a_killed_server_loses_and_doubles_nothing(&mut Redis::prepare().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_dead_letters() {
    letters::dead_letters_are_kept_and_come_back(&Redis::shared().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_to_clients() {
    end_to_end::clients_have_exactly_the_log(&mut Redis::prepare().await).await;
}
