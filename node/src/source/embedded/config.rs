//! The `[[source]]` table with `kind = "embedded"`.

use std::collections::BTreeSet;

use tickmesh_protocol::stream::is_part;

use super::market::Setting;
use crate::{config::reader::Section, ops::metrics::now_us};

const SYMBOLS: [&str; 6] = ["btc_usdt", "eth_usdt", "sol_usdt", "bnb_usdt", "xrp_usdt", "doge_usdt"];
const RATE: u64 = 200;
/// Symbols of one market; each costs some hundred kilobytes of kept states.
const MAX_SYMBOLS: usize = 64;
/// Orders per second; one core makes more, but then does little else.
const MAX_RATE: u64 = 100_000;
/// Longest symbol: with any channel before it the stream name stays within its bound.
const MAX_SYMBOL_BYTES: usize = 64;
/// Oldest opening. Everything since then is worked out at the start: about a minute at the default rate, release build.
const MAX_AGE_MS: u64 = 7 * 24 * 3_600_000;
const HOUR_MS: u64 = 3_600_000;

/// What market is run. Peers that share it must have it equal in all parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub setting: Setting,
}

impl Default for Config {
    /// The market of the demo, open since the current hour began.
    fn default() -> Self {
        Self {
            setting: Setting {
                seed: 1,
                symbols: SYMBOLS.map(str::to_owned).to_vec(),
                rate: RATE,
                origin_ms: now_us() / 1000 / HOUR_MS * HOUR_MS,
            },
        }
    }
}

impl Config {
    /// Reads the keys of an embedded source: `seed`, `symbols`, `rate` (orders per second) and `origin` (milliseconds
    /// since 1970 UTC; without it the current hour's beginning, which two peers started in different hours do not share).
    pub fn read(section: &mut Section) -> Option<Self> {
        let default = Self::default().setting;
        let setting = Setting {
            seed: section.or("seed", default.seed),
            symbols: section.or("symbols", default.symbols),
            rate: section.or("rate", default.rate),
            origin_ms: section.or("origin", default.origin_ms),
        };
        let mut good = true;
        let mut fault = |key: &str, reason: String| {
            section.fault(key, reason);
            good = false;
        };
        for symbol in &setting.symbols {
            if !is_part(symbol) || symbol.len() > MAX_SYMBOL_BYTES || symbol == "global" {
                fault("symbols", format!("{symbol:?} is no symbol; write a-z, 0-9, _ and -, as in btc_usdt"));
            }
        }
        if setting.symbols.is_empty() || setting.symbols.len() > MAX_SYMBOLS {
            fault("symbols", format!("has {} symbols; write 1 to {MAX_SYMBOLS}", setting.symbols.len()));
        }
        if setting.symbols.iter().collect::<BTreeSet<_>>().len() < setting.symbols.len() {
            fault("symbols", "names a symbol twice".to_owned());
        }
        if !(1..=MAX_RATE).contains(&setting.rate) {
            fault("rate", format!("is {}; write 1 to {MAX_RATE} orders per second", setting.rate));
        }
        if setting.origin_ms.saturating_add(MAX_AGE_MS) < now_us() / 1000 {
            fault("origin", "is more than a week ago; all since then would have to be worked out".to_owned());
        }
        good.then_some(Self { setting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::read_text;

    fn read(text: &str) -> (Option<Config>, String) {
        let (config, faults) = read_text(text, Config::read);
        (config, faults.join("\n"))
    }

    #[test]
    fn nothing_at_all_is_the_demo() {
        let (config, faults) = read("");
        assert_eq!(faults, "");
        assert_eq!(config.unwrap().setting.symbols.len(), 6);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let (config, faults) =
            read("symbols = ['BTC', 'a', 'a', 'global']\nrate = 0\norigin = 5\nspeed = 3\nseed = -1");
        assert!(config.is_none());
        for part in
            ["\"BTC\"", "twice", "\"global\"", "rate: is 0", "origin: ", "speed: no such key", "seed: "]
        {
            assert!(faults.contains(part), "no word about {part} in:\n{faults}");
        }
    }
}
