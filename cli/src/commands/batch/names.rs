//! The names that a run has given away. Millions of them must fit: numbers below 2^26, which line numbers are, take a bit
//! each, any other name the 16 bytes of its hash.

use std::collections::{HashMap, HashSet};

use sha2::{Digest as _, Sha256};

/// A set of names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By the number's upper bits: a bit for each of 4096 numbers.
    numbers: HashMap<u32, Box<[u64; 64]>>,
    others: HashSet<u128>,
}

/// Numbers from here on are hashed, so that a few large ones do not each take a block of bits.
const NUMBERS: u32 = 1 << 26;

/// A name's hash, wide enough that two names never share one.
pub(super) fn hash(name: &str) -> u128 {
    let digest = Sha256::digest(name.as_bytes());
    digest
        .iter()
        .take(16)
        .fold(0, |hash, byte| (hash << 8) | u128::from(*byte))
}

/// The number that a name is, if it is written as numbers are: `7`, not `07` or `+7`.
fn number(name: &str) -> Option<u32> {
    let plain = name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    name.parse().ok().filter(|number| plain && *number < NUMBERS)
}

impl Names {
    /// False: it was there.
    pub(super) fn insert(&mut self, name: &str) -> bool {
        let Some(number) = number(name) else {
            return self.others.insert(hash(name));
        };
        let block = self
            .numbers
            .entry(number / 4096)
            .or_insert_with(|| Box::new([0; 64]));
        let word = &mut block[(number % 4096 / 64) as usize];
        let bit = 1 << (number % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        let Some(number) = number(name) else {
            return self.others.contains(&hash(name));
        };
        let block = self.numbers.get(&(number / 4096));
        block.is_some_and(|block| block[(number % 4096 / 64) as usize] & (1 << (number % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_like_any_other(names in prop::collection::vec("(0|[1-9][0-9]{0,9}|0[0-9]|[a-z+]{1,2})", 0..200)) {
            let mut set = Names::default();
            let mut model = BTreeSet::new();
            for name in &names {
                prop_assert_eq!(set.contains(name), model.contains(name), "{}", name);
                prop_assert_eq!(set.insert(name), model.insert(name.clone()), "{}", name);
            }
        }
    }

    #[test]
    fn a_million_line_numbers_take_a_bit_each() {
        let mut set = Names::default();
        for number in 0..1_000_000 {
            assert!(set.insert(&number.to_string()));
        }
        assert_eq!(
            (set.numbers.len(), set.others.len()),
            (245, 0),
            "blocks of 512 bytes"
        );
    }
}
