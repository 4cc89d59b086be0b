//! Numbers that look random and are the same in every run (SplitMix64).

/// A source of them.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        // The 53 highest bits are what a double holds exactly.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_and_repeatable() {
        let numbers = |seed| -> Vec<f64> {
            let mut random = Random::new(seed);
            (0..10_000).map(|_| random.unit()).collect()
        };
        assert_eq!(numbers(7), numbers(7));
        let low = numbers(7).iter().filter(|number| **number < 0.02).count();
        assert!((150..250).contains(&low), "{low} of 10000 are below 2 %");
    }
}
