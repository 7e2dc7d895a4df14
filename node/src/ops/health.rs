//! Whether this node is alive and ready, and if not, why: `/healthz` and `/readyz`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;

/// What a node needs to be ready, and what of it is missing. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, State>>>);

/// The state of one condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    Ready,
    /// Not ready, with the reason in words.
    Waiting {
        reason: String,
    },
}

/// One thing a node needs, such as a source that answers; held by whoever knows about it.
#[derive(Clone, Debug)]
pub struct Condition {
    name: String,
    health: Health,
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub conditions: BTreeMap<String, State>,
}

impl Health {
    /// Adds a condition that is not met yet.
    pub fn condition(&self, name: impl Into<String>) -> Condition {
        let condition = Condition { name: name.into(), health: self.clone() };
        let starting = State::Waiting { reason: "starting".to_owned() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(condition.name.clone(), starting);
        condition
    }

    /// Takes a condition away. What its holder still says of it is not heard.
    pub fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub fn readiness(&self) -> Readiness {
        let conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Readiness { ready: conditions.values().all(|state| *state == State::Ready), conditions }
    }
}

impl Condition {
    pub fn ready(&self) {
        self.set(State::Ready);
    }

    pub fn waiting(&self, reason: impl Into<String>) {
        self.set(State::Waiting { reason: reason.into() });
    }

    /// Logs a change once, not each time it is said.
    fn set(&self, state: State) {
        let mut conditions = self.health.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = conditions.get_mut(&self.name) else { return };
        if *known == state {
            return;
        }
        match &state {
            State::Ready => tracing::info!(condition = self.name, "ready"),
            State::Waiting { reason } => tracing::warn!(condition = self.name, reason, "not ready"),
        }
        *known = state;
    }
}
