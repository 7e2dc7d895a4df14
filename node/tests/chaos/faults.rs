//! The faults, each under load.

use std::time::{Duration, Instant};

use crate::rig::Rig;

/// How long the load goes on after a fault before the next step, so that what it causes is seen.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Nothing fails.
pub fn nothing(rig: &mut Rig) {
    rig.go_on(rig.form.quiet);
}

/// The leader of most topics is killed and started again, many times.
pub fn kill_leaders(rig: &mut Rig) {
    let (mut killed, mut returned) = (Vec::new(), Vec::new());
    for _ in 0..rig.form.kills {
        let leader = rig.cluster.leader();
        let kill = Instant::now();
        rig.cluster.ingest[leader].kill();
        rig.go_on(AFTERWARDS);
        rig.catch_up();
        let restart = Instant::now();
        rig.cluster.ingest[leader].restart();
        rig.cluster.ingest[leader].node.wait_ready();
        rig.go_on(AFTERWARDS);
        rig.catch_up();
        killed.push(rig.longest_pause(kill, restart));
        returned.push(rig.longest_pause(restart, Instant::now()));
    }
    rig.note(format!("pause after a kill {}, after a return {}", spread(killed), spread(returned)));
}

/// The leader stands still and goes on where it was.
pub fn freeze_leader(rig: &mut Rig) {
    let leader = rig.cluster.leader();
    let begun = Instant::now();
    rig.cluster.ingest[leader].node.freeze();
    rig.go_on(rig.form.frozen);
    let thawed = Instant::now();
    rig.cluster.ingest[leader].node.thaw();
    rig.catch_up();
    rig.go_on(AFTERWARDS);
    let (first, second) = (rig.longest_pause(begun, thawed), rig.longest_pause(thawed, Instant::now()));
    rig.note(format!("pause {first:.0?} when it stood, {second:.0?} when it went on"));
}

fn spread(mut pauses: Vec<Duration>) -> String {
    pauses.sort_unstable();
    match (pauses.get(pauses.len() / 2), pauses.last()) {
        (Some(median), Some(longest)) => format!("p50 {median:.0?} max {longest:.0?} of {}", pauses.len()),
        _ => "of none".into(),
    }
}
