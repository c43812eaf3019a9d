//! A keyed permutation of `0..len` in O(1) memory, and the random draws that everything here is made of.
//!
//! An alternating Feistel network over the smallest power of two that holds the range, *cycle-walked* (Black & Rogaway,
//! "Ciphers with Arbitrary Finite Domains", 2002): a value that falls outside is enciphered again until it falls
//! inside, which keeps it a bijection and takes less than two rounds on average.

/// A keyed permutation of `0..len`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    len: u64,
    key: u64,
    rounds: u64,
    left_bits: u32,
    right_bits: u32,
}

impl Permutation {
    pub fn new(len: u64, key: u64) -> Self {
        let bits = if len <= 2 { 2 } else { (len - 1).ilog2() + 1 };
        // Half-rounds. Eight are twice what Luby and Rackoff need for a pseudorandom permutation; but their bound grows
        // useless when a half has a few bits only, and there (up to 4096 records) many more are needed to be fair.
        let rounds = if bits <= 12 { 32 } else { 8 };
        Self { len, key, rounds, left_bits: bits / 2, right_bits: bits - bits / 2 }
    }

    pub fn apply(&self, value: u64) -> u64 {
        if self.len <= 1 {
            return value;
        }
        let mut value = value;
        loop {
            value = self.encipher(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn encipher(&self, value: u64) -> u64 {
        let (left_mask, right_mask) = ((1u64 << self.left_bits) - 1, (1u64 << self.right_bits) - 1);
        let (mut left, mut right) = ((value >> self.right_bits) & left_mask, value & right_mask);
        let mut round = 0;
        while round < self.rounds {
            left ^= derive(self.key, right, round) & left_mask;
            right ^= derive(self.key, left, round + 1) & right_mask;
            round += 2;
        }
        left << self.right_bits | right
    }
}

/// A well-mixed 64-bit value of three: two rounds of the SplitMix64 finaliser (Steele, Lea & Flood, 2014), each with
/// its own odd constant between the inputs, so that neighbouring inputs share nothing.
pub(crate) fn derive(a: u64, b: u64, c: u64) -> u64 {
    let mut value = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = finalise(value.wrapping_add(0x2545_f491_4f6c_dd1d));
    finalise(value ^ c.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(0x8cb9_2ba7_2f3d_8dd7))
}

fn finalise(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A 64-bit draw scaled to `0..len` (Lemire's multiplication; its bias of len/2^64 is far below what can be seen).
pub(super) fn below(draw: u64, len: u64) -> u64 {
    ((u128::from(draw) * u128::from(len)) >> 64) as u64
}
