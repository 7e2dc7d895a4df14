//! The model finds bugs: each is put in on purpose, and must be found within so many seeds.

use tickmesh_sim::model::{
    mutation::Mutation,
    scenario, shrink,
    world::{self, Fault},
};

#[test]
#[ignore]
fn survey() {
    for mutation in Mutation::ALL {
        let mut found = Vec::new();
        let mut last = 0;
        for seed in 0..20000 {
            last = seed;
            if let Some(failure) = world::run(&scenario::generate(seed), Some(mutation), false).failure {
                found.push((seed, failure.fault));
                if found.len() == 5 {
                    break;
                }
            }
        }
        eprintln!("{mutation:?}: {found:?} of {last}");
    }
    let _ = (shrink::shrink, Fault::Lost);
}
