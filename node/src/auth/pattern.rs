//! Names in which `*` stands for any characters.

use std::str::FromStr;

/// Which streams, or which keys of streams: `trades.*`, `*_usdt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// A text that can match no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern is a stream name in which * stands for any characters, as in trades.*")]
pub struct InvalidPattern;

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '.' | '@' | '*');
        if text.is_empty() || !text.chars().all(known) {
            return Err(InvalidPattern);
        }
        Ok(Self(text.to_owned()))
    }
}

impl Pattern {
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_like_globs() {
        let matches = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(name);
        assert!(matches("depth.*@100ms", "depth.eth_usdt@100ms"));
        assert!(matches("*.btc_*", "trades.btc_usdt"));
        assert!(matches("trades.btc_usdt", "trades.btc_usdt"));
        assert!(matches("*a*b*", "xa.ybz"));
        assert!(!matches("trades.btc", "trades.btc_usdt"));
        assert!(!matches("depth.*@100ms", "depth.eth_usdt"));
        assert!(!matches("a.b*b", "a.b"), "one b is not two");
    }
}
