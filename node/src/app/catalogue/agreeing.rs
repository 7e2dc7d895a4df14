//! How one peer, which was asked, brings a change about at all ingest peers, or at none.

use std::time::Duration;

use tickmesh_protocol::{
    Epoch, PublisherKey,
    catalogue::{Answer, Ask, Change, MAX_STANDING, Standing, begin_of},
};
use tokio::time::{Instant, sleep};

use super::{Keeper, Refused, names};

/// Between two rounds of questions how far everybody is: long enough to see a pace.
const ROUND: Duration = Duration::from_millis(20);

/// How many times the time between two rounds a version begins ahead of the foremost, at first.
const AHEAD: u64 = 2;

/// How old promises may be when it is decided: half of what others hold to them for (`siblings::PROMISE`), so that they do when
/// they are told. Who was frozen since gives up.
const DECIDE_WITHIN: Duration = Duration::from_millis(2500);

/// Tries to find a position that nobody has read beyond; each is twice as far ahead.
const TRIES: u32 = 5;

impl Keeper {
    /// Checks a change, and keeps others from beginning one here. Which sources it is about.
    pub(super) async fn begin(&self, change: &Change) -> Result<Vec<String>, Refused> {
        let plan = self.try_out(change).await?;
        let mut state = self.0.state.lock().await;
        if state.changing || state.promised.is_some() {
            return Err(Refused::Busy("another change is being made".into()));
        }
        state.changing = true;
        Ok(plan.changed(&state.plan))
    }

    pub(super) async fn agree(
        &self,
        change: Change,
        sources: Vec<String>,
        without: bool,
    ) -> Result<u64, Refused> {
        let live = self.siblings();
        let absent = self.0.siblings.iter().filter(|key| !live.contains(key));
        let absent: Vec<_> = absent.copied().collect();
        if !absent.is_empty() && !without {
            return Err(Refused::Absent(absent));
        }
        let (mut ahead, mut beyond) = (AHEAD, String::new());
        for _ in 0..TRIES {
            let first = self.standings(&live).await?;
            sleep(ROUND).await;
            let second = self.standings(&live).await?;
            let at = begin_of(&first, &second, ahead);
            ahead *= 2;
            if let Err(past) = self.0.control.hold(at.clone(), sources.clone()).await? {
                beyond = past.to_string();
                continue;
            }
            let version = self.0.state.lock().await.kept.catalogue.version + 1;
            let asked = Instant::now();
            let agreed = match self.promises(&live, version, &change, &at).await {
                Ok(()) => self.commit(&live, version, asked).await,
                Err(refused) => Err(refused),
            };
            match agreed {
                Ok(()) => return self.decide(change, at).await,
                Err(refused) => {
                    self.0.control.release().await;
                    self.all(&live, &Ask::Abort { version }).await;
                    match refused {
                        Refused::Beyond(past) => beyond = past,
                        refused => return Err(refused),
                    }
                }
            }
        }
        Err(Refused::Beyond(beyond))
    }

    /// Tells those who have promised that it is decided.
    ///
    /// # Errors
    /// If none of them waits for it any more, and so it is not.
    async fn commit(&self, live: &[PublisherKey], version: u64, asked: Instant) -> Result<(), Refused> {
        let too_late = || Refused::Busy("it took too long to hear of all; try again".into());
        if asked.elapsed() > DECIDE_WITHIN {
            return Err(too_late());
        }
        let answers = self.all(live, &Ask::Commit { version }).await;
        for (peer, answer) in answers.iter().filter(|(_, answer)| !matches!(answer, Ok(Answer::Done))) {
            let peer = names(&[*peer]);
            tracing::warn!(peer, ?answer, version, "has not said that it takes the change over");
        }
        if is_decided(&answers) { Ok(()) } else { Err(too_late()) }
    }

    /// The siblings that are connected.
    pub(super) fn siblings(&self) -> Vec<PublisherKey> {
        let live = self.0.mesh.live_publishers();
        let live = live.borrow();
        let mut siblings: Vec<_> = live.keys().copied().filter(|key| *key != self.0.me).collect();
        siblings.sort();
        siblings
    }

    /// How far this peer and the others are, who must have the same catalogue.
    async fn standings(&self, live: &[PublisherKey]) -> Result<Vec<Vec<Standing>>, Refused> {
        let (mine, own) = {
            let state = self.0.state.lock().await;
            (state.identity(), self.0.control.standing().await?)
        };
        let mut standings = vec![own];
        for (peer, answer) in self.all(live, &Ask::Standing).await {
            let refused = |reason: String, busy| Refused::Sibling { peer, reason, busy };
            match answer {
                Ok(Answer::Standing { version, content, partitions }) if (version, content) == mine => {
                    standings.push(partitions);
                }
                Ok(Answer::Standing { version, .. }) => {
                    let reason = format!(
                        "its routes are others than here: its catalogue is of version {version}, the one here of {}; if they are the same, \
                         compare the [[route]]s of the configuration files",
                        mine.0
                    );
                    return Err(refused(reason, version != mine.0));
                }
                Ok(Answer::Refused { reason, busy }) => return Err(refused(reason, busy)),
                Ok(_) => return Err(refused("it answers something else".into(), false)),
                Err(reason) => return Err(refused(reason, true)),
            }
        }
        if standings.iter().any(|partitions| partitions.len() > MAX_STANDING) {
            let reason = format!(
                "more than {MAX_STANDING} partitions are read; their routes cannot be changed while peers run"
            );
            return Err(Refused::Invalid(vec![reason]));
        }
        Ok(standings)
    }

    async fn promises(
        &self,
        live: &[PublisherKey],
        version: u64,
        change: &Change,
        at: &[(Epoch, u64)],
    ) -> Result<(), Refused> {
        let ask = Ask::Promise { version, change: change.clone(), at: at.to_vec() };
        for (peer, answer) in self.all(live, &ask).await {
            let (reason, busy) = match answer {
                Ok(Answer::Done) => continue,
                Ok(Answer::Refused { reason, busy }) => (reason, busy),
                Ok(Answer::Beyond { reason }) => return Err(Refused::Beyond(reason)),
                Ok(_) => ("it answers something else".into(), false),
                Err(reason) => (reason, true),
            };
            return Err(Refused::Sibling { peer, reason, busy });
        }
        Ok(())
    }

    /// Everybody has promised.
    async fn decide(&self, change: Change, at: Vec<(Epoch, u64)>) -> Result<u64, Refused> {
        let mut state = self.0.state.lock().await;
        let (next, plan) = state.next(&change, at).map_err(Refused::Invalid)?;
        self.take_over(&mut state, next, plan).await?;
        Ok(state.kept.catalogue.version)
    }
}

/// Whether a change is made: by somebody, or by who has not answered and so may have made it. What all refuse, nobody has made.
fn is_decided(answers: &[(PublisherKey, Result<Answer, String>)]) -> bool {
    answers.is_empty() || answers.iter().any(|(_, answer)| !matches!(answer, Ok(Answer::Refused { .. })))
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::SigningKey;

    use super::*;

    #[test]
    fn what_all_refuse_is_not_decided() {
        let peer = SigningKey::from_bytes(&[1; 32]).publisher();
        let refused = || (peer, Ok(Answer::Refused { reason: "no longer".into(), busy: true }));
        let done = || (peer, Ok(Answer::Done));
        let silent = || (peer, Err("it does not answer".to_owned()));
        assert!(is_decided(&[]), "there is nobody else");
        for answers in [vec![done()], vec![silent()], vec![refused(), done()], vec![refused(), silent()]] {
            assert!(is_decided(&answers), "{answers:?}");
        }
        assert!(!is_decided(&[refused()]));
        assert!(!is_decided(&[refused(), refused()]));
    }
}
