//! Classifier-free guidance with the paper's t (Muse §2.7), in f32.

use crate::sampler::with_vectors;
use crate::sampling::GuidanceSchedule;

/// t of `step` (from 0) of `steps`: constant, or rising linearly from 0 at the first step to `guidance` at the last.
///
/// Where it is 0, no unconditional row is needed.
pub fn weight(guidance: f32, schedule: GuidanceSchedule, step: u32, steps: u32) -> f32 {
    match schedule {
        GuidanceSchedule::Linear if steps > 1 => guidance * (step as f32 / (steps - 1) as f32),
        GuidanceSchedule::Linear | GuidanceSchedule::Constant => guidance,
    }
}

/// `(1 + t)·l_c − t·l_u`, each operation rounded to f32 on its own. `output` is cleared first; it gets as many logits as
/// the shorter input has.
pub fn guide(conditional: &[f32], unconditional: &[f32], t: f32, output: &mut Vec<f32>) {
    let lead = 1.0 + t;
    output.clear();
    with_vectors(
        #[inline(always)]
        || {
            output.extend(
                conditional
                    .iter()
                    .zip(unconditional)
                    .map(|(c, u)| lead * c - t * u),
            );
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linear_schedule_starts_without_guidance_and_ends_in_full() {
        let weights: Vec<_> = (0..4)
            .map(|step| weight(3.0, GuidanceSchedule::Linear, step, 4))
            .collect();
        assert_eq!(weights, [0.0, 3.0 * (1.0 / 3.0), 3.0 * (2.0 / 3.0), 3.0]);
        assert_eq!(weight(3.0, GuidanceSchedule::Linear, 0, 1), 3.0);
        assert_eq!(weight(3.0, GuidanceSchedule::Constant, 0, 4), 3.0);
    }

    #[test]
    fn guidance_leads_away_from_the_unconditional_logits() {
        let mut guided = vec![9.0];
        guide(&[1.0, 2.0], &[0.5, 3.0], 2.0, &mut guided);
        assert_eq!(guided, [2.0, 0.0]);
    }
}
