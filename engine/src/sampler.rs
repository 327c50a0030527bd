//! Draws tokens from logits, and chooses which positions are masked again (Muse §2.8; docs/decoding.md, "One step").
//!
//! One position costs a few passes over its V logits and no allocation: buffers live in [`Scratch`].

use std::cmp::Ordering;

/// Weights that are added up together: the sums up to the end of each block find the block in which a draw falls.
const SUM_BLOCK: usize = 64;
/// Sums of a block that are independent of each other, as vector instructions make them.
const SUM_LANES: usize = 8;

/// Buffers that are reused from position to position and from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Guided logits of a position.
    pub(crate) guided: Vec<f32>,
    /// z = logits / temperature.
    scaled: Vec<f32>,
    /// E(z − max z), an exponential.
    weights: Vec<f32>,
    /// z again, shuffled by the search for the k-th largest.
    selection: Vec<f32>,
    /// Sum of all weights up to the end of each block.
    sums: Vec<f64>,
    /// Positions with their confidence, shuffled by the search for the least.
    candidates: Vec<(f32, u32)>,
    /// What a row drew in this step.
    pub(crate) drawn: Vec<(u32, f32)>,
}

/// How a position is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawSettings {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Keeps the k largest; 0 keeps all.
    pub top_k: u32,
}

/// A token and how likely it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Index into the logits.
    pub token: u32,
    /// ln p under the distribution that it was drawn from; with temperature 0, under the one of temperature 1.
    pub log_probability: f32,
}

/// Draws a token from `softmax(logits / temperature)`, after top-k. `u` is uniform in (0, 1).
///
/// `None` if there are no logits, or one of them is not finite once divided by the temperature.
pub fn draw(logits: &[f32], settings: DrawSettings, u: f32, scratch: &mut Scratch) -> Option<Draw> {
    let greedy = settings.temperature == 0.0;
    let Scratch {
        scaled,
        weights,
        selection,
        sums,
        ..
    } = scratch;
    scaled.clear();
    if greedy || settings.temperature == 1.0 {
        scaled.extend_from_slice(logits);
    } else {
        with_vectors(
            #[inline(always)]
            || scaled.extend(logits.iter().map(|logit| logit / settings.temperature)),
        );
    }
    let largest = finite_max(scaled)?;

    weights.resize(scaled.len(), 0.0);
    exponentials(scaled, largest, weights);
    let k = settings.top_k as usize;
    if !greedy && k > 0 && k < scaled.len() {
        drop_below_top_k(scaled, weights, k, selection);
    }

    let total = sums_of_blocks(weights, sums);
    let token = if greedy {
        scaled.iter().position(|z| *z == largest)?
    } else {
        first_beyond(f64::from(u) * total, weights, sums)?
    };
    let log_probability = (scaled[token] - largest) - total.ln() as f32;
    Some(Draw {
        token: token as u32,
        log_probability,
    })
}

/// Compiled once for each width of vectors that processors have; the widest that is there runs. Additions and multiplications are
/// never fused or reordered, so every width gives the same bits. A loop in each: several in one are not made into vectors.
#[inline(always)]
pub(crate) fn with_vectors<T>(work: impl FnOnce() -> T) -> T {
    struct Work<F>(F);
    impl<T, F: FnOnce() -> T> pulp::WithSimd for Work<F> {
        type Output = T;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> T {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Work(work))
}

/// Fills `sums` with the sum of all weights up to the end of each block, and returns the last.
fn sums_of_blocks(weights: &[f32], sums: &mut Vec<f64>) -> f64 {
    sums.clear();
    sums.resize(weights.len().div_ceil(SUM_BLOCK), 0.0);
    with_vectors(
        #[inline(always)]
        || {
            let mut total = 0.0f64;
            for (block, sum) in weights.chunks(SUM_BLOCK).zip(sums.iter_mut()) {
                total += sum_of(block);
                *sum = total;
            }
            total
        },
    )
}

/// The sum of a block's weights in f64: those of one place in each eight first, in order, then the eight sums in halves.
#[inline(always)]
fn sum_of(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; SUM_LANES];
    let (chunks, rest) = block.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for (weight, lane) in chunk.iter().zip(&mut lanes) {
            *lane += f64::from(*weight);
        }
    }
    for (weight, lane) in rest.iter().zip(&mut lanes) {
        *lane += f64::from(*weight);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The largest value; `None` if there is none, or one is NaN or infinite.
fn finite_max(values: &[f32]) -> Option<f32> {
    const LANES: usize = 16;
    let (chunks, rest) = values.as_chunks::<LANES>();
    // A NaN or infinity makes the sum of `x · 0` NaN.
    let (mut largest, mut taint) = with_vectors(
        #[inline(always)]
        || {
            let mut largest = [f32::NEG_INFINITY; LANES];
            let mut taint = [0.0f32; LANES];
            for chunk in chunks {
                for ((value, largest), taint) in chunk.iter().zip(&mut largest).zip(&mut taint) {
                    *largest = if *value > *largest { *value } else { *largest };
                    *taint += value * 0.0;
                }
            }
            (largest, taint)
        },
    );
    for ((value, largest), taint) in rest.iter().zip(&mut largest).zip(&mut taint) {
        *largest = if *value > *largest { *value } else { *largest };
        *taint += value * 0.0;
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (taint.iter().sum::<f32>() == 0.0 && largest.is_finite()).then_some(largest)
}

/// Sets to 0 the weights of all but the k largest z; of equal ones the lower indices stay. `0 < k < z.len()`.
fn drop_below_top_k(z: &[f32], weights: &mut [f32], k: usize, selection: &mut Vec<f32>) {
    selection.clear();
    selection.extend_from_slice(z);
    let (above, threshold, _) =
        selection.select_nth_unstable_by(k - 1, |a, b| b.partial_cmp(a).unwrap_or(Ordering::Equal));
    let threshold = *threshold;
    let mut equals = k - above.iter().filter(|value| **value > threshold).count();
    for (value, weight) in z.iter().zip(weights) {
        if *value > threshold {
            continue;
        }
        if *value == threshold && equals > 0 {
            equals -= 1;
        } else {
            *weight = 0.0;
        }
    }
}

/// The first index whose running sum exceeds `threshold`, in the first block whose sum with all before does. If rounding leaves
/// none, the last with a weight: of that block, or of all.
fn first_beyond(threshold: f64, weights: &[f32], sums: &[f64]) -> Option<usize> {
    let block = sums.partition_point(|sum| *sum <= threshold);
    let mut sum = block
        .checked_sub(1)
        .and_then(|before| sums.get(before))
        .copied()
        .unwrap_or(0.0);
    let start = block * SUM_BLOCK;
    let end = weights.len().min(start + SUM_BLOCK);
    for (index, weight) in weights.get(start..end).unwrap_or(&[]).iter().enumerate() {
        sum += f64::from(*weight);
        if sum > threshold {
            return Some(start + index);
        }
    }
    weights.iter().take(end).rposition(|weight| *weight > 0.0)
}

/// `weights[i] = E(z[i] − largest)`; both are of one length.
///
/// Most of what sampling costs.
fn exponentials(z: &[f32], largest: f32, weights: &mut [f32]) {
    with_vectors(
        #[inline(always)]
        || {
            for (weight, z) in weights.iter_mut().zip(z) {
                *weight = exponential(z - largest);
            }
        },
    );
}

/// E(x) of docs/decoding.md: `exp(x)` for x ≤ 0, within two units in the last place, and 0 below −87.
///
/// Own code because tokens must be equal on every machine, and the C libraries' `expf` differ in their last bits; f32 additions and
/// multiplications do not. Being free of branches it also becomes vector instructions, whose whole width f32 uses.
#[inline(always)]
pub fn exponential(x: f32) -> f32 {
    /// From a little below on, results are no normal f32, on which processors take many times as long.
    const LEAST: f32 = -87.0;
    /// 1.5 · 2²³: adding and subtracting it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two: the first has so few bits that its product with a small integer is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    let clamped = if x > LEAST { x } else { LEAST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor's series to r⁷; |r| ≤ ln 2 / 2, so the rest is below 2⁻²⁷.
    let mut sum = 1.0 / 5_040.0;
    for factorial in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0f32] {
        sum = sum * r + 1.0 / factorial;
    }
    // The low bits of `shifted` hold n; moved into the exponent they make 2ⁿ.
    let power = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(127 << 23));
    if x >= LEAST { sum * power } else { 0.0 }
}

/// Confidence of a drawn token: `ln p + τ·Gumbel`; with τ = 0 no noise is drawn.
pub fn confidence(log_probability: f32, tau: f32, u: f32) -> f32 {
    if tau == 0.0 {
        log_probability
    } else {
        log_probability + tau * crate::random::gumbel(u)
    }
}

/// τ of a step (from 0) of `steps`: `τ·(1 − (step+1)/steps)`.
pub fn choice_temperature(tau: f32, step: u32, steps: u32) -> f32 {
    let r = f64::from(step + 1) / f64::from(steps);
    tau * (1.0 - r as f32)
}

/// The `count` least confident of `confidences`, each with its position; of equals the lower position first. Exactly
/// `count` of them, or all if there are fewer, in no particular order.
pub fn least_confident(
    confidences: impl Iterator<Item = (f32, u32)>,
    count: usize,
    scratch: &mut Scratch,
    mut chosen: impl FnMut(u32),
) {
    let candidates = &mut scratch.candidates;
    candidates.clear();
    candidates.extend(confidences);
    if count == 0 {
        return;
    }
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, |a, b| {
            a.0.partial_cmp(&b.0)
                .unwrap_or(Ordering::Equal)
                .then(a.1.cmp(&b.1))
        });
    }
    candidates
        .iter()
        .take(count)
        .for_each(|(_, position)| chosen(*position));
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
