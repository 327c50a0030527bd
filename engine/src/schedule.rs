//! How many positions stay masked after each step (Muse §2.8, MaskGIT §3.3).

use crate::sampling::MaskSchedule;
use std::f64::consts::PI;

/// γ(r): the share that is still masked when the share `r` of the steps is done. Falls from 1 at 0 to 0 at 1.
pub fn masked_share(schedule: MaskSchedule, r: f64) -> f64 {
    match schedule {
        MaskSchedule::Cosine => (PI * r / 2.0).cos(),
        MaskSchedule::Linear => 1.0 - r,
        MaskSchedule::Arccos => r.acos() * 2.0 / PI,
    }
}

/// Steps that a row really takes: at most one for each of the `initially` masked positions.
pub fn steps_taken(asked: u32, initially: u32) -> u32 {
    asked.min(initially)
}

/// Positions masked again after `step` (from 0) of `steps`. At least one comes in every step, and one is left for the last.
///
/// `initially` is U, the number masked at the start of this very row; `unknown` is the number masked before this step.
pub fn masked_after(schedule: MaskSchedule, initially: u32, unknown: u32, step: u32, steps: u32) -> u32 {
    if step + 1 >= steps || unknown <= 1 {
        return 0;
    }
    let r = f64::from(step + 1) / f64::from(steps);
    // Saturates at 0 where rounding makes γ a hair negative.
    let wanted = (f64::from(initially) * masked_share(schedule, r)).floor() as u32;
    wanted.clamp(1, unknown - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(schedule: MaskSchedule, initially: u32, asked: u32) -> Vec<u32> {
        let steps = steps_taken(asked, initially);
        let mut unknown = initially;
        (0..steps)
            .map(|step| {
                unknown = masked_after(schedule, initially, unknown, step, steps);
                unknown
            })
            .collect()
    }

    #[test]
    fn the_papers_base_stage_masks_what_its_table_says() {
        assert_eq!(
            table(MaskSchedule::Cosine, 256, 24),
            [
                255, 253, 251, 247, 242, 236, 229, 221, 212, 203, 192, 181, 168, 155, 142, 128, 113, 97, 82,
                66, 49, 33, 16, 0
            ]
        );
    }

    #[test]
    fn the_papers_super_resolution_stage_masks_what_its_table_says() {
        assert_eq!(
            table(MaskSchedule::Cosine, 4096, 8),
            [4017, 3784, 3405, 2896, 2275, 1567, 799, 0]
        );
    }

    #[test]
    fn with_more_steps_than_positions_one_comes_at_a_time() {
        assert_eq!(table(MaskSchedule::Linear, 3, 100), [2, 1, 0]);
        assert_eq!(table(MaskSchedule::Cosine, 0, 5), [0u32; 0]);
    }

    proptest! {
        #[test]
        fn the_masked_count_falls_at_every_step_to_zero_and_stays_there(
            initially in 1u32..5000,
            asked in 1u32..200,
            schedule in prop_oneof![
                Just(MaskSchedule::Cosine), Just(MaskSchedule::Linear), Just(MaskSchedule::Arccos)
            ],
        ) {
            let mut before = initially;
            for after in table(schedule, initially, asked) {
                // Rounding may finish a row one step early: linear, U = N = 10.
                prop_assert!(after < before || before == 0, "{before} -> {after}");
                before = after;
            }
            prop_assert_eq!(before, 0);
        }
    }
}
