//! The order in which the Halton scheduler reveals a grid: positions far apart come together, so that what one step reveals
//! hardly depends on each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// All positions of a grid, row-major, in 2-D Halton order (bases 2 and 3): a permutation of `0..rows·columns`.
///
/// `rows` and `columns` are at least 1 and their product fits u32.
pub fn halton_order(rows: u32, columns: u32) -> Vec<u32> {
    let positions = rows as usize * columns as usize;
    let mut order = Vec::with_capacity(positions);
    let mut seen = vec![false; positions];
    let mut n = 0;
    while order.len() < positions {
        n += 1;
        let row = scaled_radical_inverse(n, 2, u64::from(rows));
        let column = scaled_radical_inverse(n, 3, u64::from(columns));
        let position = row * u64::from(columns) + column;
        if let Some(seen) = seen.get_mut(position as usize)
            && !std::mem::replace(seen, true)
        {
            order.push(position as u32);
        }
    }
    order
}

/// The same, made once a process for each grid size.
pub fn shared_halton_order(rows: u32, columns: u32) -> Arc<[u32]> {
    type Orders = Mutex<HashMap<(u32, u32), Arc<[u32]>>>;
    static ORDERS: OnceLock<Orders> = OnceLock::new();
    let mut orders = ORDERS
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    orders
        .entry((rows, columns))
        .or_insert_with(|| halton_order(rows, columns).into())
        .clone()
}

/// `⌊size · 0.d0 d1 d2 …⌋` where `… d2 d1 d0` are the digits of `n` in `base`; in integers, hence exact.
fn scaled_radical_inverse(mut n: u64, base: u64, size: u64) -> u64 {
    let (mut reversed, mut denominator) = (0u128, 1u128);
    while n > 0 {
        reversed = reversed * u128::from(base) + u128::from(n % base);
        denominator *= u128::from(base);
        n /= base;
    }
    (reversed * u128::from(size) / denominator) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_of_a_small_grid_is_the_one_worked_out_by_hand() {
        // n = 1: (1/2, 1/3), 2: (1/4, 2/3), 3: (3/4, 1/9), 4: (1/8, 4/9), 5: (5/8, 7/9), 6: (3/8, 2/9).
        // On 2 x 3: (1,1) (0,2) (1,0) (0,1) (1,2) (0,0).
        assert_eq!(halton_order(2, 3), [4, 2, 3, 1, 5, 0]);
    }

    proptest! {
        #[test]
        fn the_order_is_a_permutation(rows in 1u32..20, columns in 1u32..20) {
            let mut order = halton_order(rows, columns);
            order.sort_unstable();
            prop_assert_eq!(order, (0..rows * columns).collect::<Vec<_>>());
        }
    }
}
