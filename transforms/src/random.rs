//! Randomness as a pure function of (seed, epoch, position, operation): no state, no thread, no clock.
//!
//! A [`Draws`] is the sequence of one operation on one sample. Its n-th value is `mix(key + n * step)`, a counter in
//! front of a bijective mixer (the finaliser of MurmurHash3 in David Stafford's 13th variant, as in SplitMix64). The
//! key and the odd step come from absorbing the four inputs one after another through the same mixer, each round with
//! a constant of its own, so that neighbouring positions, epochs and operations have unrelated sequences. It is a
//! statistical generator, not a cryptographic one.

/// What the randomness of one sample depends on, besides the operation's place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleKey {
    /// The pipeline's seed.
    pub seed: u64,
    /// The epoch, counted from 0.
    pub epoch: u64,
    /// The sample's position in the epoch's order (not its index in the source).
    pub position: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The random values of one operation on one sample, in the order in which it draws them.
pub(crate) struct Draws {
    counter: u64,
    step: u64,
}

impl Draws {
    pub(crate) fn new(key: SampleKey, operation: u64) -> Self {
        let mut state = mix(key.seed ^ 0x6A09_E667_F3BC_C908);
        state = mix(state.wrapping_add(GOLDEN) ^ mix(key.epoch ^ 0xBB67_AE85_84CA_A73B));
        state = mix(state.wrapping_add(GOLDEN) ^ mix(key.position ^ 0x3C6E_F372_FE94_F82B));
        state = mix(state.wrapping_add(GOLDEN) ^ mix(operation ^ 0xA54F_F53A_5F1D_36F1));
        // An odd step walks all 2^64 counters; a step of its own keeps two sequences from running in parallel.
        Draws { counter: state, step: mix(state ^ GOLDEN) | 1 }
    }

    /// The sequence of the operation at `place` inside this one. It depends on this sequence as a whole, and not on
    /// what has been drawn from it: what one part draws changes nothing for another.
    pub(crate) fn child(&self, place: u64) -> Self {
        // The step is a digest of all that this sequence depends on, and no value that it draws.
        let state = mix(self.step.wrapping_add(GOLDEN) ^ mix(place ^ 0x510E_527F_ADE6_82D1));
        Draws { counter: state, step: mix(state ^ GOLDEN) | 1 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(self.step);
        mix(mix(self.counter))
    }

    /// Uniform in [0, 1): 53 random bits.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high), or `low` where they are equal.
    pub(crate) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`: always for 1, never for 0.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Uniform in 0..count without bias (Lemire's multiplication with rejection); `count` must not be 0.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        let mut product = u128::from(self.next_u64()) * u128::from(count);
        if (product as u64) < count {
            let threshold = count.wrapping_neg() % count;
            while (product as u64) < threshold {
                product = u128::from(self.next_u64()) * u128::from(count);
            }
        }
        (product >> 64) as u64
    }

    /// An order of `N` things: the n-th place holds the number of the thing that comes there.
    pub(crate) fn order<const N: usize>(&mut self) -> [usize; N] {
        let mut order = std::array::from_fn(|place| place);
        self.shuffle(&mut order);
        order
    }

    /// Puts `things` into a random order (Fisher and Yates, from the end).
    pub(crate) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// A place in `weights`, with a probability in proportion to its weight; their sum must be above 0.
    pub(crate) fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        let mut found = 0;
        for (place, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            found = place;
            if left < *weight {
                break;
            }
            left -= weight;
        }
        found
    }

    /// Two independent values of the standard normal distribution (Box and Muller, in f32).
    pub(crate) fn normal_pair(&mut self) -> (f32, f32) {
        let bits = self.next_u64();
        // (0, 1]: the logarithm of 0 must not be taken.
        let u = ((bits >> 40) as f32 + 1.0) * (1.0 / 16_777_216.0);
        let v = (bits & 0xFF_FFFF) as f32 * (1.0 / 16_777_216.0);
        let radius = (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * v).sin_cos();
        (radius * cos, radius * sin)
    }
}

impl Draws {
    /// `count` weights that sum to 1, of the symmetric Dirichlet distribution: for `alpha` = 1 all mixtures are alike.
    pub(crate) fn dirichlet(&mut self, alpha: f64, count: usize) -> Vec<f64> {
        let parts: Vec<f64> = (0..count).map(|_| self.gamma(alpha)).collect();
        let sum: f64 = parts.iter().sum();
        // Of a tiny alpha all parts may be 0.
        if sum > 0.0 {
            parts.into_iter().map(|part| part / sum).collect()
        } else {
            vec![1.0 / count as f64; count]
        }
    }

    /// Of the gamma distribution with this shape and a scale of 1 (Marsaglia and Tsang).
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * (1.0 - self.unit()).powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = f64::from(self.normal_pair().0);
            let v = (1.0 + c * x).powi(3);
            // (0, 1]: the logarithm of 0 must not be taken.
            let u = 1.0 - self.unit();
            if v > 0.0 && u.ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u64, epoch: u64, position: u64) -> SampleKey {
        SampleKey { seed, epoch, position }
    }

    #[test]
    fn the_same_inputs_give_the_same_values_and_any_other_input_gives_others() {
        let first = |key, op| Draws::new(key, op).next_u64();
        let base = first(key(1, 2, 3), 4);
        assert_eq!(base, first(key(1, 2, 3), 4));
        for other in [
            first(key(2, 2, 3), 4),
            first(key(1, 3, 3), 4),
            first(key(1, 2, 4), 4),
            first(key(1, 2, 3), 5),
            first(key(2, 1, 3), 4),
            first(key(1, 3, 2), 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_part_of_an_operation_has_a_sequence_that_nothing_else_changes_or_repeats() {
        let first = |mut draws: Draws| draws.next_u64();
        let mut parent = Draws::new(key(1, 2, 3), 4);
        let child = first(parent.child(0));
        parent.next_u64();
        assert_eq!(child, first(parent.child(0)), "whatever the parent has drawn");
        // All paths of up to three steps below eight operations of a chain, and the operations themselves.
        let mut seen = std::collections::HashSet::new();
        for operation in 0..8 {
            let mut level = vec![Draws::new(key(1, 2, 3), operation)];
            for _ in 0..4 {
                level = level
                    .into_iter()
                    .flat_map(|mut draws| {
                        let children: Vec<_> = (0..8).map(|place| draws.child(place)).collect();
                        assert!((0..3).all(|_| seen.insert(draws.next_u64())), "two sequences meet");
                        children
                    })
                    .collect();
            }
        }
        // Neighbours among the parts are unrelated: half of all bits differ.
        let differing: u32 = (0..2000)
            .map(|p| {
                let draws = Draws::new(key(7, 0, p), 0);
                (first(draws.child(0)) ^ first(draws.child(1))).count_ones()
            })
            .sum();
        let mean = f64::from(differing) / 2000.0;
        assert!((mean - 32.0).abs() < 0.5, "{mean} of 64 bits differ");
    }

    #[test]
    fn orders_are_even_and_weights_are_kept() {
        let mut draws = Draws::new(key(3, 1, 4), 1);
        let mut counts = std::collections::HashMap::new();
        for _ in 0..60_000 {
            *counts.entry(draws.order::<3>()).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        let mut picked = [0u32; 4];
        for _ in 0..60_000 {
            picked[draws.weighted(&[0.0, 2.0, 1.0, 0.0])] += 1;
        }
        assert_eq!((picked[0], picked[3]), (0, 0));
        assert!((39_400..40_600).contains(&picked[1]), "{picked:?}");
    }

    #[test]
    fn mixtures_have_the_mean_and_variance_of_the_dirichlet_distribution() {
        for (alpha, count) in [(1.0, 2), (1.0, 3), (0.3, 2), (4.0, 5)] {
            let mut draws = Draws::new(key(3, 1, 4), 1);
            let weights: Vec<Vec<f64>> = (0..40_000).map(|_| draws.dirichlet(alpha, count)).collect();
            assert!(weights.iter().all(|weights| (weights.iter().sum::<f64>() - 1.0).abs() < 1e-9));
            let n = count as f64;
            for place in 0..count {
                let mean = weights.iter().map(|weights| weights[place]).sum::<f64>() / 40_000.0;
                let variance =
                    weights.iter().map(|weights| (weights[place] - mean).powi(2)).sum::<f64>() / 40_000.0;
                let expected = (n - 1.0) / (n * n * (n * alpha + 1.0));
                assert!((mean - 1.0 / n).abs() < 0.006, "{alpha} {count}: mean {mean}");
                assert!((variance / expected - 1.0).abs() < 0.04, "{alpha} {count}: variance {variance}");
            }
        }
    }

    #[test]
    fn neighbouring_positions_are_unrelated() {
        // Flipping one bit of the position flips half of the output's bits, on average and for each input bit.
        for bit in 0..64 {
            let flipped: u32 = (0..200)
                .map(|p| {
                    let a = Draws::new(key(7, 0, p), 0).next_u64();
                    let b = Draws::new(key(7, 0, p ^ (1 << bit)), 0).next_u64();
                    (a ^ b).count_ones()
                })
                .sum();
            let mean = f64::from(flipped) / 200.0;
            assert!((mean - 32.0).abs() < 1.5, "bit {bit}: {mean} of 64 bits flip");
        }
    }

    #[test]
    fn uniform_values_have_the_right_mean_and_variance() {
        for operation in 0..4 {
            let values: Vec<f64> = (0..20_000).map(|p| Draws::new(key(0, 0, p), operation).unit()).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((mean - 0.5).abs() < 0.01, "{mean}");
            assert!((variance - 1.0 / 12.0).abs() < 0.002, "{variance}");
            assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        }
    }

    #[test]
    fn small_ranges_are_even() {
        let mut counts = [0u32; 7];
        let mut draws = Draws::new(key(3, 1, 4), 1);
        for _ in 0..70_000 {
            counts[draws.below(7) as usize] += 1;
        }
        for count in counts {
            assert!((9_500..10_500).contains(&count), "{counts:?}");
        }
        assert_eq!(draws.below(1), 0);
    }

    #[test]
    fn normal_values_have_mean_0_and_variance_1() {
        let mut draws = Draws::new(key(3, 1, 4), 1);
        let (mut sum, mut squares) = (0.0f64, 0.0f64);
        let count = 50_000;
        for _ in 0..count {
            let (a, b) = draws.normal_pair();
            sum += f64::from(a) + f64::from(b);
            squares += f64::from(a).powi(2) + f64::from(b).powi(2);
        }
        let mean = sum / f64::from(2 * count);
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((squares / f64::from(2 * count) - 1.0).abs() < 0.02);
    }

    #[test]
    fn chance_is_never_at_0_and_always_at_1() {
        let mut draws = Draws::new(key(0, 0, 0), 0);
        assert!((0..1000).all(|_| !draws.chance(0.0)));
        assert!((0..1000).all(|_| draws.chance(1.0)));
    }
}
