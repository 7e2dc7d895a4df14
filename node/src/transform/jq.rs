//! jq programs over one record, by jaq, under a budget of steps.
//!
//! Besides the record's value a program sees `$topic`, the log's name for where the record is, and `$key`, the record's own
//! key, null if it has none.
//!
//! The programs come from the operator, the records from outside, and together they must not stop the stream: a program
//! that takes more than [`MAX_STEPS`] steps on a record is ended, and the record is a dead letter. Filters that depend on
//! anything but the record (`now`, `env`, `input`, `halt`, `debug`) do not exist here, so that every ingest peer makes
//! the same of it. Numbers are exact decimals in all that programs do with them: [`exact`].

mod exact;
mod standard;

use std::{
    cell::Cell,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use bytes::Bytes;
use jaq_core::{
    Compiler, Ctx, DataT, Lut, Vars,
    data::HasLut,
    load::{Arena, File, Loader, parse::Def},
};
use jaq_json::{Val, read, write};
use serde::de::IgnoredAny;

/// Steps one program may take on one record. A projection of a record takes some tens, a walk over a book of a thousand
/// levels some thousands. It also bounds recursion: at some kilobytes per step in a debug build, this many need less than
/// the stack of the ingest thread ([`STACK_BYTES`]).
pub const MAX_STEPS: u32 = 20_000;

/// Stack of a thread that runs programs: [`MAX_STEPS`] nested steps at up to 12 KiB each in a debug build. Only what is
/// used of it is ever backed by memory.
pub const STACK_BYTES: usize = 256 * 1024 * 1024;

/// Deepest nesting of a record's value, as in serde_json: parsers that recurse, here and at the clients, stay safe.
pub const MAX_DEPTH: usize = 128;

/// What programs see of a record besides its value; [`Input`] has the values in this order.
const VARIABLES: [&str; 2] = ["$topic", "$key"];

/// The rewritten program is a definition, and what is run calls it.
const MAIN: &str = "program";
const CALL: &str = "program($topic; $key)";

/// A compiled program.
pub struct Filter(jaq_core::Filter<Budgeted>);

/// A record, parsed once for all programs that look at it.
pub struct Input {
    value: Val,
    variables: Vars<Val>,
}

impl Input {
    /// The value as JSON text.
    pub fn to_json(&self) -> Result<Vec<u8>, JqError> {
        json_of(&self.value)
    }
}

/// Why a program made nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JqError {
    #[error("jq does not compile: {0}")]
    Compile(String),
    #[error("jq failed: {0}")]
    Run(String),
    #[error("jq made no output")]
    NoOutput,
    #[error("jq made more than one output")]
    SeveralOutputs,
    #[error("jq made more than {0} outputs")]
    TooManyOutputs(usize),
    #[error("jq took more than {MAX_STEPS} steps")]
    Budget,
    #[error("jq made what JSON cannot express: {0}")]
    NotJson(String),
}

/// Parses a record's value: strict JSON (RFC 8259), not the superset that jaq reads. A key is any bytes; one that is no
/// UTF-8 names nothing that JSON can express.
pub fn parse(topic: &str, key: Option<&Bytes>, value: &[u8]) -> Result<Input, String> {
    check(value)?;
    let value = read::parse_single(value).map_err(|error| error.to_string())?;
    let topic = Val::utf8_str(topic.to_owned());
    let key = key.map_or(Val::Null, |key| Val::utf8_str(key.clone()));
    Ok(Input { value, variables: Vars::new([topic, key]) })
}

/// Does some work on a thread of its own, with the stack that programs may need.
///
/// # Errors
/// If the thread cannot be started, or panics.
pub fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("a route failed"))
    })
}

/// Refuses values nested deeper than [`MAX_DEPTH`]. A bracket inside a string does not nest.
pub fn check_depth(value: &[u8]) -> Result<(), String> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in value {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
    }
    Ok(())
}

/// Whether bytes are one JSON text in UTF-8, and not nested too deep.
fn check(value: &[u8]) -> Result<(), String> {
    check_depth(value)?;
    let text = std::str::from_utf8(value).map_err(|error| error.to_string())?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| error.to_string())?;
    Ok(())
}

impl Filter {
    pub fn compile(program: &str) -> Result<Self, JqError> {
        let arena = Arena::default();
        // Faults are told by the program as it is.
        let as_it_is = Loader::new(Vec::new()).load(&arena, File { code: program, path: () });
        as_it_is.map_err(|errors| JqError::Compile(describe_load(&errors)))?;
        let body = jaq_core::load::parse(program, |parser| parser.term());
        let body = body.ok_or_else(|| JqError::Compile("a program is one filter, without modules".into()))?;
        let rewrite = exact::Rewrite::default();
        let main = rewrite.def(Def { name: MAIN, args: VARIABLES.to_vec(), body });
        let mut defs = standard::needed(rewrite.called());
        defs.push(main);
        let modules = Loader::new(defs)
            .load(&arena, File { code: CALL, path: () })
            .map_err(|errors| JqError::Compile(describe_load(&errors)))?;
        Compiler::default()
            .with_funs(standard::funs())
            .with_global_vars(VARIABLES)
            .compile(modules)
            .map(Self)
            .map_err(|errors| JqError::Compile(describe_undefined(&errors)))
    }

    /// Runs the program and returns its one output as JSON text.
    pub fn run_to_json(&self, input: &Input) -> Result<Vec<u8>, JqError> {
        json_of(&self.run(input)?)
    }

    /// Runs the program and returns its one output if that is a string, and its JSON text in short if it is not.
    pub fn run_to_text(&self, input: &Input) -> Result<Result<String, String>, JqError> {
        Ok(match self.run(input)? {
            Val::TStr(bytes) => {
                Ok(String::from_utf8(bytes.to_vec()).map_err(|error| JqError::NotJson(error.to_string()))?)
            }
            other => Err(in_short(&other)),
        })
    }

    /// Runs the program and returns its one output if that is true or false, and its JSON text in short if it is not.
    pub fn run_to_bool(&self, input: &Input) -> Result<Result<bool, String>, JqError> {
        Ok(match self.run(input)? {
            Val::Bool(bool) => Ok(bool),
            other => Err(in_short(&other)),
        })
    }

    /// Runs the program and returns its one output if that is a number or a text, as text, and its JSON text in short if it
    /// is not.
    pub fn run_to_number(&self, input: &Input) -> Result<Result<String, String>, JqError> {
        let output = self.run(input)?;
        Ok(number_text(&output).ok_or_else(|| in_short(&output)))
    }

    /// Runs the program and returns its one output if that is a list of lists that begin with two numbers or texts, those as text;
    /// its JSON text in short if it is not. Null is an empty list.
    pub fn run_to_pairs(
        &self,
        input: &Input,
        most: usize,
    ) -> Result<Result<Vec<(String, String)>, String>, JqError> {
        Ok(match self.run(input)? {
            Val::Null => Ok(Vec::new()),
            Val::Arr(pairs) if pairs.len() > most => Err(format!("{} of them; at most {most}", pairs.len())),
            Val::Arr(pairs) => pairs.iter().map(|pair| pair_of(pair).ok_or_else(|| in_short(pair))).collect(),
            other => Err(in_short(&other)),
        })
    }

    /// Runs the program and returns each of its outputs, in the place of the record's value.
    pub fn run_to_parts(&self, input: &Input, most: usize) -> Result<Vec<Input>, JqError> {
        let parts = self.outputs(input, most + 1)?;
        if parts.len() > most {
            return Err(JqError::TooManyOutputs(most));
        }
        let part = |value| Input { value, variables: input.variables.clone() };
        Ok(parts.into_iter().map(part).collect())
    }

    fn run(&self, input: &Input) -> Result<Val, JqError> {
        let mut outputs = self.outputs(input, 2)?;
        match (outputs.pop(), outputs.is_empty()) {
            (None, _) => Err(JqError::NoOutput),
            (Some(one), true) => Ok(one),
            (Some(_), false) => Err(JqError::SeveralOutputs),
        }
    }

    /// The first outputs of the program.
    fn outputs(&self, input: &Input, most: usize) -> Result<Vec<Val>, JqError> {
        let steps = Cell::new(MAX_STEPS);
        let run = || {
            let data = Budget { lut: &self.0.lut, steps: &steps };
            let outputs =
                self.0.id.run((Ctx::<Budgeted>::new(data, input.variables.clone()), input.value.clone()));
            let output = |output: jaq_core::ValX<'_, Val>| {
                output.map_err(|error| match error.get_err() {
                    Ok(error) => JqError::Run(error.to_string().chars().take(256).collect()),
                    Err(_) => JqError::Run("halt or break outside of its label".into()),
                })
            };
            outputs.take(most).map(output).collect()
        };
        // jaq is safe code over reference counts: unwinding through it frees what it held and leaves nothing broken.
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| {
            if payload.is::<OutOfSteps>() { Err(JqError::Budget) } else { resume_unwind(payload) }
        })
    }
}

/// A number or a text, as text.
fn number_text(value: &Val) -> Option<String> {
    match value {
        Val::TStr(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        Val::Num(_) => Some(value.to_string()),
        _ => None,
    }
}

fn pair_of(value: &Val) -> Option<(String, String)> {
    let Val::Arr(parts) = value else { return None };
    let [first, second, ..] = &parts[..] else { return None };
    Some((number_text(first)?, number_text(second)?))
}

fn in_short(value: &Val) -> String {
    value.to_string().chars().take(64).collect()
}

fn json_of(value: &Val) -> Result<Vec<u8>, JqError> {
    let mut text = Vec::with_capacity(256);
    write::write(&mut text, &write::Pp::default(), 0, value)
        .map_err(|error| JqError::NotJson(error.to_string()))?;
    // jaq writes NaN, byte strings and keys that are no strings as they are; JSON and the clients know none of them.
    check(&text).map_err(JqError::NotJson)?;
    Ok(text)
}

/// Counts every step jaq takes: it looks each one up in the table it gets from here.
struct Budgeted;

#[derive(Clone)]
struct Budget<'a> {
    lut: &'a Lut<Budgeted>,
    steps: &'a Cell<u32>,
}

/// The payload that unwinds out of a program without budget; no panic, so no panic hook is called.
struct OutOfSteps;

impl DataT for Budgeted {
    type V<'a> = Val;
    type Data<'a> = Budget<'a>;
}

impl<'a> HasLut<'a, Budgeted> for Budget<'a> {
    fn lut(&self) -> &'a Lut<Budgeted> {
        match self.steps.get().checked_sub(1) {
            Some(left) => self.steps.set(left),
            None => resume_unwind(Box::new(OutOfSteps)),
        }
        self.lut
    }
}

fn describe_load<S: fmt::Debug, P>(errors: &jaq_core::load::Errors<S, P>) -> String {
    let first = errors.iter().map(|(_, error)| format!("{error:?}")).next();
    first.unwrap_or_default().chars().take(256).collect()
}

fn describe_undefined<S: fmt::Display, P>(errors: &jaq_core::compile::Errors<S, P>) -> String {
    let undefined: Vec<String> = errors
        .iter()
        .flat_map(|(_, errors)| errors)
        .map(|(name, undefined)| format!("undefined {} {name}", undefined.as_str()))
        .collect();
    undefined.join(", ")
}
