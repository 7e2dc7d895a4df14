//! Exact decimals in jq programs.
//!
//! jaq keeps the digits of a number that a program only moves, and calculates in binary floating point, which prices must never
//! meet. So arithmetic and comparisons of a program, and of the definitions that it uses, are rewritten before they are compiled: into
//! calls of the functions here, named as the operators are, which no program can call by itself. Integers stay jaq's own,
//! which are exact and of any length.

use std::{cell::RefCell, cmp::Ordering, collections::HashSet};

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

/// Rewrites a program, and the definitions that it uses, and knows what they call.
#[derive(Debug, Default)]
pub struct Rewrite<'s> {
    called: RefCell<HashSet<&'s str>>,
}

impl<'s> Rewrite<'s> {
    /// Names of all that was called, by what was rewritten as well.
    pub fn called(self) -> HashSet<&'s str> {
        self.called.into_inner()
    }

    pub fn def(&self, def: Def<&'s str>) -> Def<&'s str> {
        Def { body: self.term(def.body), ..def }
    }

    fn call(&self, name: &'s str, args: Vec<Term<&'s str>>) -> Term<&'s str> {
        self.called.borrow_mut().insert(name);
        Term::Call(name, args)
    }

    fn term(&self, this: Term<&'s str>) -> Term<&'s str> {
        let boxed = |part: Box<Term<&'s str>>| Box::new(self.term(*part));
        match this {
            Term::BinOp(left, operator, right) => self.binary(self.term(*left), operator, self.term(*right)),
            Term::Neg(of) => self.call("-", vec![self.term(*of)]),
            // The size of a number is its absolute value, for which jaq would make a float of it.
            Term::Call("length", args) if args.is_empty() => Term::IfThenElse(
                vec![(self.call("isnumber", Vec::new()), self.call("abs", Vec::new()))],
                Some(Box::new(self.call("length", Vec::new()))),
            ),
            Term::Call(name, args) => self.call(name, args.into_iter().map(|arg| self.term(arg)).collect()),
            Term::Str(format, parts) => {
                // A format is a definition's name, as in `@base64 "\(.)"`.
                self.called.borrow_mut().extend(format);
                Term::Str(format, parts.into_iter().map(|part| self.string_part(part)).collect())
            }
            Term::Arr(of) => Term::Arr(of.map(boxed)),
            Term::Obj(entries) => {
                let entry = |(key, value): (_, Option<_>)| (self.term(key), value.map(|of| self.term(of)));
                Term::Obj(entries.into_iter().map(entry).collect())
            }
            Term::Label(name, of) => Term::Label(name, boxed(of)),
            Term::Fold(name, over, with, parts) => {
                let parts = parts.into_iter().map(|part| self.term(part)).collect();
                Term::Fold(name, boxed(over), self.pattern(with), parts)
            }
            Term::TryCatch(of, catch) => Term::TryCatch(boxed(of), catch.map(boxed)),
            Term::IfThenElse(branches, other) => {
                let branch = |(condition, then)| (self.term(condition), self.term(then));
                Term::IfThenElse(branches.into_iter().map(branch).collect(), other.map(boxed))
            }
            Term::Def(defs, of) => Term::Def(defs.into_iter().map(|def| self.def(def)).collect(), boxed(of)),
            Term::Path(of, Path(parts)) => {
                let parts = parts.into_iter().map(|(part, optional)| (self.path_part(part), optional));
                Term::Path(boxed(of), Path(parts.collect()))
            }
            Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) | Term::Var(_) => this,
        }
    }

    /// The right operand comes first: for each of its outputs jq goes through all of the left one's.
    fn binary(
        &self,
        left: Term<&'s str>,
        operator: BinaryOp<&'s str>,
        right: Term<&'s str>,
    ) -> Term<&'s str> {
        match operator {
            BinaryOp::Math(math) => self.call(name_of(math), vec![right, left]),
            BinaryOp::Cmp(cmp) => self.call(name_of_comparison(cmp), vec![right, left]),
            // jaq's manual: the same as `right as $x | left |= . + $x`.
            BinaryOp::UpdateMath(math) => {
                let with = self.call(name_of(math), vec![Term::Var(OPERAND), Term::Id]);
                let update = Term::BinOp(Box::new(left), BinaryOp::Update, Box::new(with));
                let with_operand = BinaryOp::Pipe(Some(Pattern::Var(OPERAND)));
                Term::BinOp(Box::new(right), with_operand, Box::new(update))
            }
            BinaryOp::Pipe(with) => {
                let with = with.map(|with| self.pattern(with));
                Term::BinOp(Box::new(left), BinaryOp::Pipe(with), Box::new(right))
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

    fn string_part(&self, part: StrPart<&'s str, Term<&'s str>>) -> StrPart<&'s str, Term<&'s str>> {
        match part {
            StrPart::Term(of) => StrPart::Term(self.term(of)),
            StrPart::Str(_) | StrPart::Char(_) => part,
        }
    }

    fn pattern(&self, this: Pattern<&'s str>) -> Pattern<&'s str> {
        match this {
            Pattern::Var(_) => this,
            Pattern::Arr(parts) => Pattern::Arr(parts.into_iter().map(|part| self.pattern(part)).collect()),
            Pattern::Obj(entries) => {
                let entry = |(key, value)| (self.term(key), self.pattern(value));
                Pattern::Obj(entries.into_iter().map(entry).collect())
            }
        }
    }

    fn path_part(&self, part: Part<Term<&'s str>>) -> Part<Term<&'s str>> {
        let term = |of| self.term(of);
        match part {
            Part::Index(of) => Part::Index(term(of)),
            Part::Range(from, until) => Part::Range(from.map(term), until.map(term)),
        }
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
