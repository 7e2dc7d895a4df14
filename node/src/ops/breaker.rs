//! Circuit breakers: what fails again and again is left alone for a while. Of each target it is shown how that is, in
//! `circuit_state{target}` and on the operators' page.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::IntGauge;
use tokio::time::Instant;

use super::metrics::Registry;

/// Failures in a row after which the circuit opens: one or two are a restart, five are an outage.
const FAILURES: u32 = 5;

/// How the circuit towards a target is; the numbers are those of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CircuitState {
    /// It works, as far as is known.
    Closed = 0,
    /// It failed too often, and is being tried once.
    HalfOpen = 1,
    /// It failed too often, and is left alone.
    Open = 2,
}

impl CircuitState {
    pub fn words(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }

    /// What a value of the metric means.
    pub(super) fn of(shown: i64) -> Self {
        match shown {
            0 => Self::Closed,
            1 => Self::HalfOpen,
            _ => Self::Open,
        }
    }
}

/// What decides, without clock and metric.
#[derive(Debug)]
struct Breaker {
    /// How long nothing is asked once it is open. Then one question shows whether it works again.
    pause: Duration,
    failures: u32,
    open_until: Option<Instant>,
    trying: bool,
}

impl Breaker {
    fn new(pause: Duration) -> Self {
        Self { pause, failures: 0, open_until: None, trying: false }
    }

    /// Whether the target may be asked now. Of those who ask after a pause only the first may; another, should nothing be
    /// heard of it for as long as a pause.
    fn allows(&mut self, now: Instant) -> bool {
        match self.open_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + self.pause);
                self.trying = true;
                true
            }
            None => true,
        }
    }

    /// Somebody asks who waits as long as he finds right.
    fn tries(&mut self) {
        self.trying = self.open_until.is_some();
    }

    /// Notes how a question ended.
    fn note(&mut self, answered: bool, now: Instant) {
        self.trying = false;
        if answered {
            (self.failures, self.open_until) = (0, None);
        } else {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= FAILURES {
                self.open_until = Some(now + self.pause);
            }
        }
    }

    fn state(&self) -> CircuitState {
        match self.open_until {
            None => CircuitState::Closed,
            Some(_) if self.trying => CircuitState::HalfOpen,
            Some(_) => CircuitState::Open,
        }
    }
}

/// The breaker towards one target.
#[derive(Debug)]
pub struct Circuit {
    target: String,
    breaker: Mutex<Breaker>,
    shown: IntGauge,
}

impl Circuit {
    /// A closed one. `target` is a label of metrics: a part of this peer, or a name of the configuration.
    pub fn new(registry: &Registry, target: impl Into<String>, pause: Duration) -> Self {
        let target = target.into();
        let shown = registry.circuit(&target);
        Self { target, breaker: Mutex::new(Breaker::new(pause)), shown }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the target may be asked now, for who can do without an answer.
    pub fn allows(&self) -> bool {
        let mut breaker = self.breaker();
        let allowed = breaker.allows(Instant::now());
        self.show(breaker.state());
        allowed
    }

    /// The target is asked, by who cannot do without an answer and waits between his questions by himself.
    pub fn tries(&self) {
        let mut breaker = self.breaker();
        breaker.tries();
        self.show(breaker.state());
    }

    /// Notes how a question ended; logs it when the circuit opens, and when it closes.
    pub fn note(&self, answered: bool) {
        let mut breaker = self.breaker();
        let was = breaker.state();
        breaker.note(answered, Instant::now());
        let (state, target) = (breaker.state(), &self.target);
        self.show(state);
        if was == CircuitState::Closed && state == CircuitState::Open {
            tracing::warn!(target_name = target, "circuit opens: it failed {FAILURES} times in a row");
        } else if was != CircuitState::Closed && state == CircuitState::Closed {
            tracing::info!(target_name = target, "circuit closes: it works again");
        }
    }

    fn show(&self, state: CircuitState) {
        self.shown.set(state as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_with_the_first_answer() {
        let now = Instant::now();
        let mut breaker = Breaker::new(PAUSE);
        for _ in 0..FAILURES - 1 {
            assert!(breaker.allows(now));
            breaker.note(false, now);
            assert_eq!(breaker.state(), CircuitState::Closed);
        }
        // One that is answered begins the row anew.
        breaker.note(true, now);
        for n in 1..=FAILURES {
            assert!(breaker.allows(now));
            breaker.note(false, now);
            assert_eq!(breaker.state() == CircuitState::Open, n == FAILURES);
        }
        assert!(!breaker.allows(now));
        let later = now + PAUSE;
        assert_eq!((breaker.allows(later), breaker.allows(later)), (true, false), "one tries");
        assert_eq!(breaker.state(), CircuitState::HalfOpen);
        breaker.note(false, later);
        assert!(breaker.state() == CircuitState::Open && !breaker.allows(later), "in vain");
        let later = later + PAUSE;
        assert!(breaker.allows(later));
        breaker.note(true, later);
        assert!(breaker.allows(later) && breaker.allows(later));
        assert_eq!(breaker.state(), CircuitState::Closed);
    }

    #[test]
    fn who_tries_at_his_own_pace_is_shown_as_well() {
        let registry = Registry::new();
        let circuit = Circuit::new(&registry, "source engine", PAUSE);
        let shown = || registry.circuits().collect::<Vec<_>>();
        assert_eq!(shown(), [("source engine".to_owned(), CircuitState::Closed)]);
        for _ in 0..FAILURES {
            circuit.tries();
            assert_eq!(shown()[0].1, CircuitState::Closed);
            circuit.note(false);
        }
        assert_eq!(shown()[0].1, CircuitState::Open);
        circuit.tries();
        assert_eq!(shown()[0].1, CircuitState::HalfOpen);
        circuit.note(true);
        assert_eq!(shown()[0].1, CircuitState::Closed);
    }
}
