//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), keyed by what a draw is for.
//!
//! There is no state. The words of a position at a step of a picture are a function of the seed and of those numbers, so
//! a picture does not depend on its batch mates, the shard, a restart in the middle, or the order of arrival.

use crate::bundle::Stage;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: u32 = 10;

/// Output words of `counter` under `key`.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        let (high0, low0) = ((product0 >> 32) as u32, product0 as u32);
        let (high1, low1) = ((product1 >> 32) as u32, product1 as u32);
        (c0, c1, c2, c3) = (high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0);
        k0 = k0.wrapping_add(KEY_STEPS[0]);
        k1 = k1.wrapping_add(KEY_STEPS[1]);
    }
    [c0, c1, c2, c3]
}

/// Uniform in (0, 1), never 0 or 1: 23 bits and a half, exact in f32.
pub fn uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// Gumbel noise `−ln(−ln u)` of a uniform, each logarithm rounded to f32.
pub fn gumbel(u: f32) -> f32 {
    -rounded_ln(-rounded_ln(u))
}

/// The natural logarithm in f64, rounded once to f32: the same on every platform but for one value in 2²⁸.
fn rounded_ln(value: f32) -> f32 {
    f64::from(value).ln() as f32
}

/// What the random numbers of a row's step depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepKey {
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's pictures.
    pub image_index: u32,
    /// The stage.
    pub stage: Stage,
    /// The step, from 0.
    pub step: u32,
}

/// The uniforms of one position at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Uniforms {
    /// Draws the token.
    pub token: f32,
    /// The noise on its confidence.
    pub confidence: f32,
    /// Kept for mask choice in editing.
    pub mask: f32,
}

// === impl StepKey ===

impl StepKey {
    /// The uniforms of `position`, a row-major index into the grid.
    pub fn uniforms(&self, position: u32) -> Uniforms {
        let counter = [position, self.step, self.image_index, self.stage.code()];
        let [token, confidence, mask, _] = philox(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        Uniforms {
            token: uniform(token),
            confidence: uniform(confidence),
            mask: uniform(mask),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_stay_off_zero_and_one() {
        assert!(uniform(0) > 0.0);
        assert!(uniform(u32::MAX) < 1.0);
        assert!(gumbel(uniform(0)).is_finite() && gumbel(uniform(u32::MAX)).is_finite());
    }

    #[test]
    fn every_part_of_the_key_changes_the_draw() {
        let key = StepKey {
            seed: 7,
            image_index: 0,
            stage: Stage::Base,
            step: 3,
        };
        let drawn = key.uniforms(11);
        assert_ne!(drawn, key.uniforms(12));
        assert_ne!(drawn, StepKey { seed: 8, ..key }.uniforms(11));
        assert_ne!(
            drawn,
            StepKey {
                seed: 7 | 1 << 40,
                ..key
            }
            .uniforms(11)
        );
        assert_ne!(
            drawn,
            StepKey {
                image_index: 1,
                ..key
            }
            .uniforms(11)
        );
        assert_ne!(
            drawn,
            StepKey {
                stage: Stage::Superres,
                ..key
            }
            .uniforms(11)
        );
        assert_ne!(drawn, StepKey { step: 4, ..key }.uniforms(11));
    }
}
