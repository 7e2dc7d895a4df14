//! What programs may call: jaq's functions, and the definitions over them that a program needs.

use std::{collections::HashSet, sync::LazyLock};

use jaq_core::{load::parse::Def, native::Fun};

use super::{
    Budgeted,
    exact::{self, Rewrite},
};

/// Filters whose outcome depends on more than the record, or that reach outside the program.
const REMOVED: &[&str] = &[
    "now",
    "env",
    "halt",
    "halt_error",
    "debug",
    "debug_empty",
    "stderr",
    "stderr_empty",
    "input",
    "inputs",
];

/// jaq's own `range` produces any number of outputs in one step; this one takes steps.
const RANGE: &str = "def range($from; $to; $by): $from |
    def rec: if ($by > 0 and . < $to) or ($by < 0 and . > $to) or ($by == 0 and . != $to)
        then ., (. + $by | rec) else empty end;
    rec;";

/// A definition, rewritten, and what it calls.
struct Definition {
    def: Def<&'static str>,
    calls: HashSet<&'static str>,
}

/// Parsed once: that takes longer than to compile most programs.
static DEFINITIONS: LazyLock<Vec<Definition>> = LazyLock::new(|| {
    let defs = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let mut defs: Vec<_> =
        defs.filter(|def| is_kept(def.name) && !is_range(def.name, def.args.len())).collect();
    // A definition sees only those before it: this one goes in front of the first that calls it.
    let range = jaq_core::load::parse(RANGE, |parser| parser.defs()).unwrap_or_default();
    let at = defs.iter().position(|def| def.name == "range").unwrap_or(defs.len());
    defs.splice(at..at, range);
    let rewritten = |def| {
        let rewrite = Rewrite::default();
        Definition { def: rewrite.def(def), calls: rewrite.called() }
    };
    defs.into_iter().map(rewritten).collect()
});

/// The definitions behind some names, and those that they need themselves, in their order. Most programs need none, and all
/// of them are more than a hundred to compile.
pub fn needed(mut names: HashSet<&str>) -> Vec<Def<&str>> {
    let mut defs = Vec::new();
    // A definition calls itself, and those before it.
    for Definition { def, calls } in DEFINITIONS.iter().rev() {
        if names.contains(def.name) {
            names.extend(calls.iter().copied());
            defs.push(def.clone());
        }
    }
    defs.reverse();
    defs
}

/// Functions that are no definitions.
pub fn funs() -> impl Iterator<Item = Fun<Budgeted>> {
    let funs = jaq_core::funs().chain(jaq_std::funs()).chain(jaq_json::funs());
    let kept = |(name, args, _): &Fun<Budgeted>| {
        is_kept(name) && !is_range(name, args.len()) && !exact::REPLACED.contains(name)
    };
    funs.filter(kept).chain(exact::funs())
}

fn is_kept(name: &str) -> bool {
    !REMOVED.contains(&name) && !exact::INEXACT.contains(&name)
}

fn is_range(name: &str, args: usize) -> bool {
    name == "range" && args == 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::jq::Filter;

    #[test]
    fn each_definition_comes_with_what_it_needs() {
        assert!(DEFINITIONS.len() > 50, "only {} definitions", DEFINITIONS.len());
        for Definition { def, .. } in DEFINITIONS.iter() {
            let args = vec!["."; def.args.len()].join("; ");
            let program = if args.is_empty() { def.name.to_owned() } else { format!("{}({args})", def.name) };
            assert!(Filter::compile(&program).is_ok(), "{program}: {:?}", Filter::compile(&program).err());
        }
    }

    #[test]
    fn a_program_that_names_nothing_needs_nothing() {
        let names = |program: &[&'static str]| {
            needed(program.iter().copied().collect()).iter().map(|def| def.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]), [""; 0]);
        assert_eq!(names(&["map"]), ["map"]);
    }
}
