//! Which regions read a source, and which of them lead it.

use tickmesh_protocol::stream::is_part;

use crate::config::reader::Section;

/// More standby regions than this are a mistake.
const MAX_STANDBY: usize = 32;

/// `home` and `standby_regions` of a `[[source]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiers {
    /// Where the peers are that lead; all regions, if it is not said.
    pub home: Option<String>,
    /// Regions that read the same (stretched) log and lead when nobody does in the home region, in this order.
    pub standby: Vec<String>,
}

impl Tiers {
    /// Reads the two keys of a `[[source]]`.
    pub fn read(section: &mut Section) -> Self {
        let home: Option<String> = section.optional("home");
        let standby: Vec<String> = section.or("standby_regions", Vec::new());
        for (key, region) in home
            .iter()
            .map(|home| ("home", home))
            .chain(standby.iter().map(|region| ("standby_regions", region)))
        {
            if !is_part(region) {
                section.fault(key, format!("{region:?} is no region; write a-z, 0-9, _ and -"));
            }
        }
        if home.is_none() && !standby.is_empty() {
            section.fault(
                "standby_regions",
                "needs home: where the peers are that lead as long as there are any",
            );
        }
        if standby.len() > MAX_STANDBY {
            section.fault("standby_regions", format!("at most {MAX_STANDBY}"));
        }
        Self { home, standby }
    }

    /// The tier of a region's peers, the least leads; `None`: they do not read the source.
    pub fn of(&self, region: &str) -> Option<u8> {
        let Some(home) = &self.home else { return Some(0) };
        if home == region {
            return Some(0);
        }
        let at = self.standby.iter().position(|standby| standby == region)?;
        u8::try_from(at + 1).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_comes_first_and_strangers_do_not_read() {
        assert_eq!(Tiers::default().of("anywhere"), Some(0));
        let tiers = Tiers { home: Some("eu".into()), standby: vec!["us".into(), "ap".into()] };
        assert_eq!(
            ["eu", "us", "ap", "af"].map(|region| tiers.of(region)),
            [Some(0), Some(1), Some(2), None]
        );
    }
}
