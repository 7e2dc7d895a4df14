//! When events stopped coming, stream by stream. Pure.

use std::time::{Duration, Instant};

/// Shorter pauses are the beat of the producer and of two busy cores.
const SHORTEST: Duration = Duration::from_millis(10);

/// The pauses of one client.
#[derive(Debug)]
pub struct Pauses {
    /// When the last event of each stream came, since the beginning.
    last: Vec<Option<Instant>>,
    kept: Vec<(Instant, Instant)>,
}

impl Pauses {
    pub fn new(streams: usize) -> Self {
        Self { last: vec![None; streams], kept: Vec::new() }
    }

    /// Begins anew: the time until the next event is no pause.
    pub fn begin(&mut self) {
        self.last.fill(None);
    }

    /// An event of a stream came.
    pub fn event(&mut self, stream: usize, now: Instant) {
        if let Some(last) = self.last[stream].replace(now)
            && now - last >= SHORTEST
        {
            self.kept.push((last, now));
        }
    }

    /// The longest pause of any stream that was not over by `from` and had begun by `until`; zero if all were short.
    pub fn longest(&self, from: Instant, until: Instant) -> Duration {
        let within = self.kept.iter().filter(|(began, ended)| *ended > from && *began < until);
        within.map(|(began, ended)| *ended - *began).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_of_any_stream_within_a_span_is_found() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut pauses = Pauses::new(2);
        for (stream, ms) in [(0, 0), (1, 2), (0, 5), (1, 90), (0, 105), (0, 400)] {
            pauses.event(stream, at(ms));
        }
        let longest = |from, until| pauses.longest(at(from), at(until)).as_millis();
        assert_eq!(longest(0, 1000), 295);
        assert_eq!(longest(0, 105), 100);
        assert_eq!(longest(0, 5), 88);
        assert_eq!(longest(105, 106), 295);
        assert_eq!(longest(400, 1000), 0);
        pauses.begin();
        pauses.event(0, at(5000));
        assert_eq!(pauses.longest(at(400), at(6000)).as_millis(), 0);
    }
}
