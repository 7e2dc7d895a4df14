//! What the state machines cost per event, with nothing around them.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tickmesh_protocol::{
    Epoch, Event, Moment, Previous, Sequence, SigningKey, StreamName,
    repair::{Repair, Way},
    sequencer::Sequencer,
    takeover::{Publisher, Settings, SourceId},
};

const EVENTS: u64 = 1000;
const SOURCE: SourceId = SourceId(0);

fn event(number: u64) -> Event {
    Event {
        stream: stream(),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(number).unwrap(),
        previous: Previous::At(Sequence::new(number.saturating_sub(1)).unwrap()),
        engine_time_us: 0,
        data: vec![b'1'; 200].into(),
        signature: None,
    }
}

fn stream() -> StreamName {
    "trades.btc_usdt".parse().unwrap()
}

fn publisher(peers: u8) -> Publisher {
    let key = |n| SigningKey::from_bytes(&[n; 32]).publisher();
    let mut publisher = Publisher::new(key(0), 1, Settings::default());
    publisher.read_up(SOURCE, 0, Moment::START);
    publisher.settled(Moment::START);
    // Of a standby region, so that this one leads.
    for peer in 1..=peers {
        publisher.peer(key(peer), SOURCE, Some(1), Moment::START);
    }
    publisher
}

fn machines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("machines, 1000 events");
    group.throughput(Throughput::Elements(EVENTS));
    let events: Vec<_> = (1..=EVENTS).map(event).collect();
    group.bench_function("sequencer", |bencher| {
        let stream = stream();
        bencher.iter_batched(
            Sequencer::default,
            |mut sequencer| {
                for number in 0..EVENTS {
                    black_box(sequencer.next(&stream, Epoch::from_u64(1), number).unwrap());
                }
                sequencer
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("takeover: offered and published, ten at a time", |bencher| {
        bencher.iter_batched(
            || (publisher(2), events.clone()),
            |(mut publisher, events)| {
                let mut now = Moment::START;
                for (n, event) in events.into_iter().enumerate() {
                    publisher.offer(SOURCE, event, now);
                    if n % 10 == 9 {
                        now += Duration::from_millis(2);
                        black_box(publisher.take_due(now));
                    }
                }
                publisher
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("repair: nothing is missing", |bencher| {
        bencher.iter_batched(
            standing,
            |mut repair| {
                let mut outputs = Vec::new();
                for event in &events {
                    repair.receive(event, Way::Gossip, Moment::START, &mut outputs);
                    black_box(&outputs);
                    outputs.clear();
                }
                repair
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("repair: the first comes last", |bencher| {
        bencher.iter_batched(
            standing,
            |mut repair| {
                let mut outputs = Vec::new();
                for event in events[1..].iter().chain(&events[..1]) {
                    repair.receive(event, Way::Gossip, Moment::START, &mut outputs);
                }
                (repair, outputs)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A stream that stands before the first event.
fn standing() -> Repair {
    let mut repair = Repair::default();
    repair.join();
    repair.joined(Some(event(0).position()), Moment::START, &mut Vec::new());
    repair
}

criterion_group!(benches, machines);
criterion_main!(benches);
