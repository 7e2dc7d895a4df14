//! Replays the committed fuzz corpora: whatever the fuzzer once found stays found.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::{fs, path::Path};

#[test]
fn every_corpus_file_is_answered() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut folders: Vec<_> = fs::read_dir(&corpora)
        .unwrap()
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    folders.sort_unstable();
    let mut names: Vec<_> = targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort_unstable();
    assert_eq!(folders, names, "one corpus for each target");
    for (name, target) in targets::ALL {
        let mut replayed = 0;
        for file in fs::read_dir(corpora.join(name)).unwrap() {
            let file = file.unwrap().path();
            println!("{}", file.display());
            target(&fs::read(&file).unwrap());
            replayed += 1;
        }
        assert!(replayed > 0, "the corpus of {name} is empty");
    }
}
