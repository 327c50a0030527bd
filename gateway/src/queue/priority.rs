//! Priority as a head start: a job of high priority is queued as if it had arrived earlier. So everything ages, and
//! nothing starves.

use muse_proto::v1::Priority;

/// How many milliseconds earlier than it arrived a job is taken to have arrived.
pub fn boost_ms(priority: Priority, step_ms: u64) -> i64 {
    let step = i64::try_from(step_ms).unwrap_or(i64::MAX);
    match priority {
        Priority::Low => -step,
        Priority::Unspecified | Priority::Normal => 0,
        Priority::High => step,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score(arrived_ms: i64, priority: Priority, step_ms: u64) -> i64 {
        arrived_ms - boost_ms(priority, step_ms)
    }

    proptest! {
        #[test]
        fn of_two_that_arrive_together_the_higher_priority_goes_first(now in 0_i64..1 << 41, step in 1_u64..1 << 32) {
            prop_assert!(score(now, Priority::High, step) < score(now, Priority::Normal, step));
            prop_assert!(score(now, Priority::Normal, step) < score(now, Priority::Low, step));
        }

        #[test]
        fn a_low_one_that_waited_two_steps_overtakes_every_newcomer(now in 0_i64..1 << 41, step in 1_u64..1 << 32) {
            let later = now + 2 * step as i64 + 1;
            prop_assert!(score(now, Priority::Low, step) < score(later, Priority::High, step));
        }
    }
}
