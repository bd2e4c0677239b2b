//! A small seeded generator: the same seed gives the same choices on every machine.

/// Splitmix64. Good enough to choose among completions and crash states, and free of state that
/// would have to be saved: one word is all there is.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`; zero if `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `times` draws, on average.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Spreads every bit of `value` over the whole word.
pub const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A fingerprint of `bytes`; not for adversaries.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9fb2_1c65_1e98_df25;
    let turn = |lane: u64, word: u64| (lane ^ word).wrapping_mul(PRIME).rotate_left(29);
    let mut lanes = [bytes.len() as u64 ^ PRIME, 1, 2, 3];
    let (fours, words) = bytes.as_chunks::<8>().0.as_chunks::<4>();
    for [a, b, c, d] in fours {
        lanes[0] = turn(lanes[0], u64::from_le_bytes(*a));
        lanes[1] = turn(lanes[1], u64::from_le_bytes(*b));
        lanes[2] = turn(lanes[2], u64::from_le_bytes(*c));
        lanes[3] = turn(lanes[3], u64::from_le_bytes(*d));
    }
    for word in words {
        lanes[0] = turn(lanes[0], u64::from_le_bytes(*word));
    }
    for byte in bytes.as_chunks::<8>().1 {
        lanes[1] = turn(lanes[1], u64::from(*byte));
    }
    lanes.iter().fold(0, |sum, lane| mix(sum ^ lane))
}
