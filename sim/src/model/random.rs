//! Chance that can be repeated: SplitMix64 (Steele, Lea and Flood, 2014). Few lines, fast, and the same for ever; a
//! library could change its numbers with a new version, and every seed in a report would mean another world.

/// A stream of numbers that its seed decides.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another stream for one purpose: what is drawn from it changes nothing elsewhere, so a scenario with one fault less
    /// stays alike in everything that the fault did not touch.
    pub fn of(seed: u64, purpose: u64) -> Self {
        let mut mixed = Self(seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93));
        mixed.next();
        mixed
    }

    #[allow(clippy::should_implement_trait, reason = "an endless stream needs no Option")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`; zero for a bound of zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-40 for every bound used here.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Between the two, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// Between the two, small values more often than large ones: each order of magnitude is about as likely.
    pub fn spread(&mut self, least: u64, most: u64) -> u64 {
        let top = self.between(least, most);
        let middle = self.between(least, top.max(least));
        if self.chance(500) { self.between(least, middle.max(least)) } else { middle }
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// An index of a list with these weights.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut left = self.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if left < *weight {
                return index;
            }
            left -= weight;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports name seeds: the numbers must stay the same for ever. The first three of SplitMix64 from 1234567, as published
    /// with its reference implementation.
    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        let mut random = Random::new(1_234_567);
        let first = [random.next(), random.next(), random.next()];
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn bounds_are_kept() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            assert!(random.below(3) < 3);
            assert!((5..=7).contains(&random.between(5, 7)));
            assert!((5..=70).contains(&random.spread(5, 70)));
            assert!(random.weighted(&[1, 0, 2]) != 1);
        }
        assert_eq!((random.below(0), random.between(4, 4)), (0, 4));
    }
}
