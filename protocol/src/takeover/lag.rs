//! How late another publisher's events usually are.

use std::time::Duration;

/// Samples kept: some 100 ms of a busy leader, some minutes of a quiet one.
const SAMPLES: usize = 128;

/// Samples that say anything.
const ENOUGH: usize = 16;

/// The last lags observed.
#[derive(Debug, Default)]
pub(super) struct Lag {
    micros: Vec<u32>,
    next: usize,
    p99: Duration,
}

impl Lag {
    pub(super) fn note(&mut self, lag: Duration) {
        let micros = u32::try_from(lag.as_micros()).unwrap_or(u32::MAX);
        if self.micros.len() < SAMPLES {
            self.micros.push(micros);
        } else {
            self.micros[self.next] = micros;
        }
        self.next = (self.next + 1) % SAMPLES;
        // The largest but one of 128. Looked for rarely, and at once when it grows.
        if self.next.is_multiple_of(16) || lag > self.p99 {
            let largest = |most: (u32, u32), &lag: &u32| {
                if lag > most.0 { (lag, most.0) } else { (most.0, most.1.max(lag)) }
            };
            let (_, second) = self.micros.iter().fold((0, 0), largest);
            self.p99 = Duration::from_micros(second.into());
        }
    }

    /// About the 99th percentile; nothing, if too little was observed.
    pub(super) fn p99(&self) -> Option<Duration> {
        (self.micros.len() >= ENOUGH).then_some(self.p99)
    }
}
