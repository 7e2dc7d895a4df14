//! Checkpoints on real disks: full, read-only, killed in the middle.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
};

use tickmesh_protocol::{Epoch, Sequence, checkpoint::PartitionState, checkpoint::SourceState};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
/// Set for the process that is to be killed.
const CHILD_PATH: &str = "TICKMESH_TEST_CHECKPOINT_CHILD";

fn state(next: u64) -> State {
    let partition = |number| PartitionState {
        epoch: Epoch::from_u64(1),
        topic: "market.trades".into(),
        partition: number,
        next,
        read_from: Sequence::ZERO,
        term: None,
    };
    let partitions = (0..200).map(partition).collect();
    State { sources: vec![SourceState { name: "engine".into(), partitions, ..SourceState::default() }] }
}

/// How far the file says that the log was read; none without a file. Panics if the file cannot be used.
fn next(path: &Path) -> Option<u64> {
    let state = read(path).unwrap()?;
    let partitions = &state.sources[0].partitions;
    assert!(partitions.iter().all(|partition| partition.next == partitions[0].next), "one state, in whole");
    Some(partitions[0].next)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn value(registry: &Registry, name: &str) -> u64 {
    let shown = registry.render();
    let line = shown.lines().find(|line| line.starts_with(&format!("tickmesh_{name} "))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn the_newest_is_written_when_it_is_time_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (path, registry) = (folder.path().join("data").join("checkpoint"), Registry::new());
    assert!(load(&path).is_none(), "no file is no fault");
    let writer = Writer::spawn(path.clone(), Duration::from_millis(10), &registry).unwrap();
    writer.offer(Arc::new(state(1)));
    until("the first", || next(&path) == Some(1));
    writer.end();

    let writer = Writer::spawn(path.clone(), Duration::from_secs(3600), &Registry::new()).unwrap();
    (2..=50).for_each(|number| writer.offer(Arc::new(state(number))));
    assert_eq!(next(&path), Some(1), "it is not time");
    writer.end();
    assert_eq!(next(&path), Some(50), "the newest, at the end");
    assert_eq!(load(&path), Some(state(50)));
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600,
        "names of private streams hold user ids"
    );
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    assert_eq!(value(&registry, "checkpoint_failures_total"), 0);
    assert_eq!(value(&registry, "checkpoint_bytes"), fs::metadata(&path).unwrap().len());
    // Dropped, and not ended: no less is written.
    let writer = Writer::spawn(path.clone(), Duration::from_secs(3600), &Registry::new()).unwrap();
    writer.offer(Arc::new(state(51)));
    drop(writer);
    assert_eq!(next(&path), Some(51));
}

#[test]
fn each_fault_of_a_file_is_told_and_the_file_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let good = encode_state(&state(7)).unwrap();
    let mut damaged = good.clone();
    damaged[100] ^= 1;
    let mut newer = good.clone();
    newer[8] = 9;
    let faults = [
        (good[..good.len() / 2].to_vec(), "cut short"),
        (Vec::new(), "no checkpoint of tickmesh"),
        (damaged, "hash is wrong"),
        (newer, "version 9"),
        (b"[node]\nname = 'eu-1'\n".to_vec(), "no checkpoint of tickmesh"),
        ([&good[..], b"x"].concat(), "left over"),
    ];
    for (bytes, reason) in faults {
        fs::write(&path, &bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(load(&path).is_none());
        assert_eq!(fs::read(beside(&path, "refused")).unwrap(), bytes, "kept for whoever wants to look");
        assert!(!path.exists());
    }
    let huge = fs::File::create(&path).unwrap();
    huge.set_len(MAX_STATE_BYTES as u64 + 1).unwrap();
    assert!(matches!(read(&path), Err(LoadError::State(StateError::TooLarge))));
    assert!(load(&path).is_none());
    fs::create_dir(&path).unwrap();
    assert!(matches!(read(&path), Err(LoadError::Read(_))));
    assert!(load(&path).is_none());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_an_alarm_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be: even root cannot write there.
    let (blocked, registry) = (folder.path().join("data"), Registry::new());
    fs::write(&blocked, b"").unwrap();
    let path = blocked.join("checkpoint");
    let writer = Writer::spawn(path.clone(), Duration::from_millis(5), &registry).unwrap();
    writer.offer(Arc::new(state(1)));
    until("a failure", || value(&registry, "checkpoint_failures_total") >= 2);
    fs::remove_file(&blocked).unwrap();
    until("the state that could not be written", || next(&path) == Some(1));
    let writer_of_nothing =
        Writer::spawn("/proc/nothing/here".into(), Duration::from_secs(1), &Registry::new());
    let writer_of_nothing = writer_of_nothing.unwrap();
    writer_of_nothing.offer(Arc::new(state(1)));
    writer_of_nothing.end();
    writer.end();
}

/// A small file system in memory, for as long as the value lives. Only root can have one.
/// A disk of its own.
pub(in crate::ingest) struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    /// `None` where that is not allowed.
    pub(in crate::ingest) fn mount(on: &'a Path, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(on).output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Self(on))
    }

    fn remount(&self, options: &str) {
        let done = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0).status();
        assert!(done.unwrap().success(), "cannot remount with {options}");
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_or_read_only_disk_keeps_the_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(folder.path(), "size=64k") else {
        // The other ways to fail have tests that need no rights.
        eprintln!("not run: only root can mount a file system");
        return;
    };
    let (path, registry) = (folder.path().join("checkpoint"), Registry::new());
    let writer = Writer::spawn(path.clone(), Duration::from_millis(5), &registry).unwrap();
    writer.offer(Arc::new(state(1)));
    until("the first", || next(&path) == Some(1));
    let failures = || value(&registry, "checkpoint_failures_total");
    let hog = folder.path().join("hog");
    // Fails when the disk is full, which is what it is for.
    let _ = fs::write(&hog, vec![0; 1 << 20]);
    writer.offer(Arc::new(state(2)));
    until("a failure on a full disk", || failures() >= 2);
    assert_eq!(next(&path), Some(1), "the last one is whole");
    // It tries again every few milliseconds, and each time the file is there for a moment.
    until("nothing to take the room that is missing", || !beside(&path, "new").exists());
    fs::remove_file(&hog).unwrap();
    until("room", || next(&path) == Some(2));

    disk.remount("ro");
    let before = failures();
    writer.offer(Arc::new(state(3)));
    until("a failure on a read-only disk", || failures() >= before + 2);
    assert_eq!(next(&path), Some(2));
    disk.remount("rw");
    until("a disk that can be written to", || next(&path) == Some(3));
    writer.end();
}

#[test]
fn what_a_killed_write_left_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    replace(&path, &encode_state(&state(1)).unwrap()).unwrap();
    // Killed after half of the write, and before the rename.
    fs::write(beside(&path, "new"), &encode_state(&state(2)).unwrap()[..1000]).unwrap();
    assert_eq!(next(&path), Some(1));
    replace(&path, &encode_state(&state(3)).unwrap()).unwrap();
    assert_eq!(next(&path), Some(3));
    assert!(!beside(&path, "new").exists());
}

/// Not a test by itself: the process that [`a_kill_at_any_moment_leaves_a_whole_file`] kills.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD_PATH).map(PathBuf::from) else { return };
    let mut number = next(&path).unwrap_or(0);
    loop {
        number += 1;
        replace(&path, &encode_state(&state(number)).unwrap()).unwrap();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_kill_at_any_moment_leaves_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let mut last = 0;
    for round in 0..10 {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "ingest::checkpoint::tests::child_that_is_killed", "--nocapture"])
            .env(CHILD_PATH, &path)
            .stdout(Stdio::null())
            .spawn();
        let child = Killed(child.unwrap());
        // Some rounds are caught early and some late in a write: how far it is then depends on the machine.
        until("the child to write", || next(&path).unwrap_or(0) > last + round);
        drop(child);
        let now = next(&path).expect("a whole file");
        assert!(now > last, "{now} after {last}");
        last = now;
    }
}
