//! Exact decimals in jq programs.
//!
//! jaq keeps the digits of a number that a program only moves, and calculates in binary floating point, which prices must never
//! meet. So arithmetic and comparisons of a program, and of the definitions that it uses, are rewritten before they are compiled: into
//! calls of the functions here, named as the operators are, which no program can call by itself. Integers stay jaq's own,
//! which are exact and of any length.

use std::cmp::Ordering;

use bigdecimal::{RoundingMode, num_bigint::BigInt};
use jaq_core::{
    DataT, Error,
    load::{
        lex::StrPart,
        parse::{BinaryOp, Def, Pattern, Term},
    },
    native::{Fun, bome, run, v},
    ops::{Cmp, Math},
    path::{Part, Path},
};
use jaq_json::{Num, Val};

use crate::transform::decimal::Decimal;

/// Functions of jaq and definitions over them that calculate in floating point, or ask for what no decimal is.
pub const INEXACT: &[&str] = &[
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "copysign",
    "cos",
    "cosh",
    "drem",
    "erf",
    "erfc",
    "exp",
    "exp10",
    "exp2",
    "expm1",
    "fabs",
    "fdim",
    "finites",
    "fma",
    "fmax",
    "fmin",
    "fmod",
    "frexp",
    "gamma",
    "hypot",
    "ilogb",
    "infinite",
    "isfinite",
    "isinfinite",
    "isnan",
    "isnormal",
    "j0",
    "j1",
    "jn",
    "ldexp",
    "lgamma",
    "lgamma_r",
    "log",
    "log10",
    "log1p",
    "log2",
    "logb",
    "modf",
    "nan",
    "nearbyint",
    "nextafter",
    "nexttoward",
    "normals",
    "pow",
    "pow10",
    "remainder",
    "rint",
    "scalb",
    "scalbln",
    "scalbn",
    "significand",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "tgamma",
    "y0",
    "y1",
    "yn",
];

/// Functions of jaq that have an exact one here.
pub const REPLACED: &[&str] = &["floor", "round", "ceil", "trunc"];

/// The variable of an arithmetic assignment; no program can name it.
const OPERAND: &str = "$=";

/// Rewrites a definition.
pub fn def(def: Def<&str>) -> Def<&str> {
    Def { body: term(def.body), ..def }
}

/// Rewrites a program.
pub fn term<'s>(this: Term<&'s str>) -> Term<&'s str> {
    let rewrite = |part: Box<Term<&'s str>>| Box::new(term(*part));
    match this {
        Term::BinOp(left, operator, right) => binary(term(*left), operator, term(*right)),
        Term::Neg(of) => Term::Call("-", vec![term(*of)]),
        // The size of a number is its absolute value, for which jaq would make a float of it.
        Term::Call("length", args) if args.is_empty() => Term::IfThenElse(
            vec![(Term::Call("isnumber", Vec::new()), Term::Call("abs", Vec::new()))],
            Some(Box::new(Term::Call("length", Vec::new()))),
        ),
        Term::Call(name, args) => Term::Call(name, args.into_iter().map(term).collect()),
        Term::Str(format, parts) => Term::Str(format, parts.into_iter().map(string_part).collect()),
        Term::Arr(of) => Term::Arr(of.map(rewrite)),
        Term::Obj(entries) => {
            Term::Obj(entries.into_iter().map(|(key, value)| (term(key), value.map(term))).collect())
        }
        Term::Label(name, of) => Term::Label(name, rewrite(of)),
        Term::Fold(name, over, with, parts) => {
            Term::Fold(name, rewrite(over), pattern(with), parts.into_iter().map(term).collect())
        }
        Term::TryCatch(of, catch) => Term::TryCatch(rewrite(of), catch.map(rewrite)),
        Term::IfThenElse(branches, other) => Term::IfThenElse(
            branches.into_iter().map(|(condition, then)| (term(condition), term(then))).collect(),
            other.map(rewrite),
        ),
        Term::Def(defs, of) => Term::Def(defs.into_iter().map(def).collect(), rewrite(of)),
        Term::Path(of, Path(parts)) => {
            let parts = parts.into_iter().map(|(part, optional)| (path_part(part), optional));
            Term::Path(rewrite(of), Path(parts.collect()))
        }
        Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) | Term::Var(_) => this,
    }
}

/// The right operand comes first: for each of its outputs jq goes through all of the left one's.
fn binary<'s>(left: Term<&'s str>, operator: BinaryOp<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    match operator {
        BinaryOp::Math(math) => Term::Call(name_of(math), vec![right, left]),
        BinaryOp::Cmp(cmp) => Term::Call(name_of_comparison(cmp), vec![right, left]),
        // jaq's manual: the same as `right as $x | left |= . + $x`.
        BinaryOp::UpdateMath(math) => {
            let with = Term::Call(name_of(math), vec![Term::Var(OPERAND), Term::Id]);
            let update = Term::BinOp(Box::new(left), BinaryOp::Update, Box::new(with));
            Term::BinOp(Box::new(right), BinaryOp::Pipe(Some(Pattern::Var(OPERAND))), Box::new(update))
        }
        BinaryOp::Pipe(with) => {
            Term::BinOp(Box::new(left), BinaryOp::Pipe(with.map(pattern)), Box::new(right))
        }
        BinaryOp::Comma
        | BinaryOp::Alt
        | BinaryOp::Or
        | BinaryOp::And
        | BinaryOp::Assign
        | BinaryOp::Update
        | BinaryOp::UpdateAlt => Term::BinOp(Box::new(left), operator, Box::new(right)),
    }
}

fn string_part<'s>(part: StrPart<&'s str, Term<&'s str>>) -> StrPart<&'s str, Term<&'s str>> {
    match part {
        StrPart::Term(of) => StrPart::Term(term(of)),
        StrPart::Str(_) | StrPart::Char(_) => part,
    }
}

fn pattern(this: Pattern<&str>) -> Pattern<&str> {
    match this {
        Pattern::Var(_) => this,
        Pattern::Arr(parts) => Pattern::Arr(parts.into_iter().map(pattern).collect()),
        Pattern::Obj(entries) => {
            Pattern::Obj(entries.into_iter().map(|(key, value)| (term(key), pattern(value))).collect())
        }
    }
}

fn path_part(part: Part<Term<&str>>) -> Part<Term<&str>> {
    match part {
        Part::Index(of) => Part::Index(term(of)),
        Part::Range(from, until) => Part::Range(from.map(term), until.map(term)),
    }
}

const fn name_of(math: Math) -> &'static str {
    match math {
        Math::Add => "+",
        Math::Sub => "-",
        Math::Mul => "*",
        Math::Div => "/",
        Math::Rem => "%",
    }
}

const fn name_of_comparison(cmp: Cmp) -> &'static str {
    match cmp {
        Cmp::Lt => "<",
        Cmp::Le => "<=",
        Cmp::Gt => ">",
        Cmp::Ge => ">=",
        Cmp::Eq => "==",
        Cmp::Ne => "!=",
    }
}

/// What rewritten programs call.
pub fn funs<D: for<'a> DataT<V<'a> = Val>>() -> impl Iterator<Item = Fun<D>> {
    let mut funs = Vec::new();
    macro_rules! two_operands {
        ($name:expr, $of:expr) => {
            funs.push(run(($name, v(2), |mut cv| {
                let (left, right) = (cv.0.pop_var(), cv.0.pop_var());
                bome($of(left, right))
            })));
        };
    }
    macro_rules! of_input {
        ($name:expr, $args:expr, $of:expr) => {
            funs.push(run(($name, v($args), $of)));
        };
    }
    two_operands!("+", |left, right| calculate(Math::Add, left, right));
    two_operands!("-", |left, right| calculate(Math::Sub, left, right));
    two_operands!("*", |left, right| calculate(Math::Mul, left, right));
    two_operands!("/", |left, right| calculate(Math::Div, left, right));
    two_operands!("%", |left, right| calculate(Math::Rem, left, right));
    two_operands!("<", |left, right| compare(Cmp::Lt, &left, &right));
    two_operands!("<=", |left, right| compare(Cmp::Le, &left, &right));
    two_operands!(">", |left, right| compare(Cmp::Gt, &left, &right));
    two_operands!(">=", |left, right| compare(Cmp::Ge, &left, &right));
    two_operands!("==", |left, right| compare(Cmp::Eq, &left, &right));
    two_operands!("!=", |left, right| compare(Cmp::Ne, &left, &right));
    of_input!("-", 1, |mut cv| bome(negate(cv.0.pop_var())));
    of_input!("floor", 0, |cv| bome(rounded(cv.1, RoundingMode::Floor)));
    of_input!("ceil", 0, |cv| bome(rounded(cv.1, RoundingMode::Ceiling)));
    of_input!("trunc", 0, |cv| bome(rounded(cv.1, RoundingMode::Down)));
    // As in C, and so in jq: away from zero.
    of_input!("round", 0, |cv| bome(rounded(cv.1, RoundingMode::HalfUp)));
    funs.into_iter()
}

type Outcome = Result<Val, Error<Val>>;

fn calculate(math: Math, left: Val, right: Val) -> Outcome {
    match (&left, &right) {
        // The quotient of two integers may be none; jaq knows all others.
        (Val::Num(a), Val::Num(b)) if matches!(math, Math::Div) || !(is_integer(a) && is_integer(b)) => {
            let (a, b) = (decimal(a)?, decimal(b)?);
            let result = match math {
                Math::Add => a.plus(&b),
                Math::Sub => a.minus(&b),
                Math::Mul => a.times(&b),
                Math::Div => a.divide(&b),
                Math::Rem => a.remainder(&b),
            };
            Ok(value(&result.map_err(Error::str)?))
        }
        _ => math.run(left, right),
    }
}

fn compare(cmp: Cmp, left: &Val, right: &Val) -> Outcome {
    let holds = match (left, right) {
        (Val::Num(a), Val::Num(b)) if !(is_integer(a) && is_integer(b)) => {
            let order = decimal(a)?.cmp(&decimal(b)?);
            cmp.run(&order, &Ordering::Equal)
        }
        _ => cmp.run(left, right),
    };
    Ok(Val::from(holds))
}

fn negate(of: Val) -> Outcome {
    match &of {
        Val::Num(number) if !is_integer(number) => Ok(value(&decimal(number)?.negated())),
        _ => Val::from(0_isize) - of,
    }
}

fn rounded(of: Val, mode: RoundingMode) -> Outcome {
    match &of {
        Val::Num(number) if is_integer(number) => Ok(of),
        Val::Num(number) => Ok(value(&decimal(number)?.rounded_to(0, mode))),
        _ => Err(Error::typ(of, "number")),
    }
}

const fn is_integer(number: &Num) -> bool {
    matches!(number, Num::Int(_) | Num::BigInt(_))
}

fn decimal(number: &Num) -> Result<Decimal, Error<Val>> {
    match number {
        Num::Int(integer) => Ok(BigInt::from(*integer).into()),
        Num::BigInt(integer) => Ok(BigInt::clone(integer).into()),
        // Only a point in time is one here, in seconds. Its shortest text is what was meant.
        Num::Float(float) => float.to_string().parse().map_err(Error::str),
        Num::Dec(text) => text.parse().map_err(Error::str),
    }
}

/// A whole number without decimal places is an integer, which can stand where jaq wants one.
fn value(of: &Decimal) -> Val {
    let text = of.to_string();
    let integer = (!of.has_places()).then(|| Num::from_str_radix(&text, 10)).flatten();
    Val::Num(integer.unwrap_or_else(|| Num::Dec(text.into())))
}
