//! When an attempt that failed is tried again: full jitter, so that what failed together does not come back together.

/// The delays in milliseconds before attempt 2, 3, …, `attempts`: the n-th is uniform in `0 ..= min(cap, base * 2^(n-1))`.
/// `uniform` gives numbers in [0, 1).
pub(super) fn delays(attempts: u32, base_ms: u64, cap_ms: u64, mut uniform: impl FnMut() -> f64) -> Vec<u64> {
    (1..attempts)
        .map(|n| {
            let most = base_ms
                .saturating_mul(1_u64.checked_shl(n - 1).unwrap_or(u64::MAX))
                .min(cap_ms);
            // The product stays below most + 1, so that the cast cannot exceed it.
            (uniform() * (most as f64 + 1.0)).floor().min(most as f64) as u64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_delay_is_within_its_doubling_bound_and_the_cap(
            attempts in 1_u32..80, base in 0_u64..10_000, cap in 0_u64..1_000_000, u in 0.0_f64..1.0,
        ) {
            let delays = delays(attempts, base, cap, || u);
            prop_assert_eq!(delays.len() as u32, attempts - 1);
            for (n, delay) in delays.iter().enumerate() {
                let bound = (u128::from(base) << n.min(64)).min(u128::from(cap));
                prop_assert!(u128::from(*delay) <= bound, "delay {} of {:?} exceeds {}", n, delays, bound);
            }
        }
    }

    #[test]
    fn the_whole_range_is_used() {
        assert_eq!(delays(4, 100, 1_000, || 0.0), [0, 0, 0]);
        assert_eq!(delays(4, 100, 300, || 0.999_999_9), [100, 200, 300]);
    }
}
