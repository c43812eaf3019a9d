//! Weights of rows for bagging: so that models that are trained on one feed are trained on a bootstrap sample each.
//!
//! Online bagging (Oza and Russell, 2001): of a data set of n rows, a bootstrap sample has a row Binomial(n, 1/n)
//! times, which for large n is Poisson(1) times, independently of the others. The weight is a function of (seed,
//! client, epoch, position) alone.

use xxhash_rust::xxh3::xxh3_64;

/// How often the row at a place is in a client's sample: Poisson(1).
pub fn weight(seed: u64, client: u64, epoch: u64, position: u64) -> u8 {
    let mut key = [0; 32];
    for (to, number) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, client, epoch, position]) {
        *to = number.to_le_bytes();
    }
    // 53 random bits, as a number in [0, 1).
    let mut left = (xxh3_64(&key) >> 11) as f64 / (1u64 << 53) as f64;
    let mut share = (-1.0f64).exp();
    for times in 0..20 {
        left -= share;
        if left < 0.0 {
            return times;
        }
        share /= f64::from(times + 1);
    }
    20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_poisson_of_one_and_clients_are_independent() {
        const ROWS: u64 = 200_000;
        let mut counts = [0u64; 8];
        let (mut products, mut moved) = (0.0, 0);
        for position in 0..ROWS {
            let (one, other) = (weight(7, 0, 0, position), weight(7, 1, 0, position));
            counts[usize::from(one).min(7)] += 1;
            products += (f64::from(one) - 1.0) * (f64::from(other) - 1.0);
            moved += u64::from(one != weight(7, 0, 1, position));
        }
        let mut share = (-1.0f64).exp();
        for (times, &count) in counts.iter().enumerate().take(6) {
            let expected = share * ROWS as f64;
            assert!(
                (count as f64 - expected).abs() < 5.0 * expected.sqrt(),
                "{times}: {count}, not {expected}"
            );
            share /= (times + 1) as f64;
        }
        assert!((products / ROWS as f64).abs() < 0.02, "no correlation");
        assert!(moved > ROWS / 2, "an epoch has a sample of its own");
    }

    #[test]
    fn weights_stay_what_they_are() {
        let found: Vec<u8> = (0..16).map(|position| weight(1, 2, 3, position)).collect();
        assert_eq!(found, [2, 2, 1, 2, 0, 1, 0, 0, 1, 1, 0, 1, 2, 1, 0, 4]);
    }
}
