use super::*;
use crate::random::uniform;
use proptest::prelude::*;
use std::ops::Range;

const PLAIN: DrawSettings = DrawSettings {
    temperature: 1.0,
    top_k: 0,
};

/// The same rules, written down as plainly as docs/decoding.md says them.
fn plain_draw(logits: &[f32], settings: DrawSettings, u: f32) -> Draw {
    let greedy = settings.temperature == 0.0;
    let z: Vec<f32> = logits
        .iter()
        .map(|l| if greedy { *l } else { l / settings.temperature })
        .collect();
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|a, b| z[*b].partial_cmp(&z[*a]).unwrap());
    let k = settings.top_k as usize;
    let kept = if greedy || k == 0 || k >= z.len() {
        &order[..]
    } else {
        &order[..k]
    };
    let largest = z[order[0]];
    let weight = |v: usize| {
        if kept.contains(&v) {
            exponential(z[v] - largest)
        } else {
            0.0
        }
    };
    // The sum of a block: first those of each place in eight.
    let block = |start: usize| {
        let of = |place: usize| {
            (start + place..z.len().min(start + 64))
                .step_by(8)
                .fold(0.0, |sum, v| sum + f64::from(weight(v)))
        };
        ((of(0) + of(4)) + (of(2) + of(6))) + ((of(1) + of(5)) + (of(3) + of(7)))
    };
    let total = (0..z.len())
        .step_by(64)
        .fold(0.0f64, |sum, start| sum + block(start));
    let threshold = f64::from(u) * total;
    let mut before = 0.0f64;
    let within = (0..z.len()).step_by(64).find(|start| {
        let exceeds = before + block(*start) > threshold;
        if !exceeds {
            before += block(*start);
        }
        exceeds
    });
    let within = within.map_or(0..0, |start| start..z.len().min(start + 64));
    let drawn = within.clone().find(|v| {
        before += f64::from(weight(*v));
        before > threshold
    });
    let last = |among: Range<usize>| among.rev().find(|v| weight(*v) > 0.0);
    let token = if greedy {
        order[0]
    } else {
        drawn
            .or_else(|| last(within))
            .or_else(|| last(0..z.len()))
            .unwrap()
    };
    Draw {
        token: token as u32,
        log_probability: (z[token] - largest) - total.ln() as f32,
    }
}

#[test]
fn vectors_of_this_machine_give_the_bits_of_one_number_at_a_time() {
    let largest = 7.25f32;
    // Lengths that are no multiple of a vector's, and values down to where the exponential is 0.
    for length in [1usize, 3, 17, 1_000, 1_024, 8_191] {
        let z: Vec<f32> = (0..length)
            .map(|index| largest - 130.0 * (index as f32 / length as f32).powi(3))
            .collect();
        let mut weights = vec![0.0; length];
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || exponentials(&z, largest, &mut weights),
        );
        for (z, weight) in z.iter().zip(&weights) {
            let alone = std::hint::black_box(exponential(std::hint::black_box(z - largest)));
            assert_eq!(weight.to_bits(), alone.to_bits(), "exp({})", z - largest);
        }
    }
}

#[test]
fn the_exponential_is_the_librarys_within_two_units_in_the_last_place_over_its_whole_range() {
    let mut farthest = (0, 0.0f32);
    for step in 0..2_000_000u32 {
        let x = -(step as f32) * 4.35e-5;
        let expected = f64::from(x).exp() as f32;
        let units = exponential(x).to_bits().abs_diff(expected.to_bits());
        if units > farthest.0 {
            farthest = (units, x);
        }
    }
    let (units, x) = farthest;
    assert!(units <= 2, "{units} units at {x}");
    assert_eq!(exponential(0.0), 1.0);
    // Still a normal number, and then nothing.
    assert!(exponential(-87.0) >= f32::MIN_POSITIVE, "{}", exponential(-87.0));
    assert_eq!(exponential(-87.001), 0.0);
    assert_eq!(exponential(-1e30), 0.0);
    assert_eq!(exponential(f32::NEG_INFINITY), 0.0);
}

#[test]
fn temperature_zero_takes_the_lowest_of_the_likeliest() {
    let settings = DrawSettings {
        temperature: 0.0,
        top_k: 1,
    };
    let drawn = draw(&[1.0, 3.0, 3.0, -2.0], settings, 0.999, &mut Scratch::default()).unwrap();
    assert_eq!(drawn.token, 1);
    let expected = -((2.0 + (-2.0f64).exp() + (-5.0f64).exp()).ln() as f32);
    assert!((drawn.log_probability - expected).abs() < 1e-6, "{drawn:?}");
}

#[test]
fn of_equal_logits_top_k_keeps_the_lower_indices() {
    let settings = DrawSettings {
        temperature: 1.0,
        top_k: 2,
    };
    let mut scratch = Scratch::default();
    let seen: Vec<u32> = (0..1000u32)
        .map(|n| {
            draw(&[0.5; 8], settings, uniform(n << 22), &mut scratch)
                .unwrap()
                .token
        })
        .collect();
    assert!(
        seen.iter().all(|token| *token < 2) && seen.contains(&0) && seen.contains(&1),
        "{seen:?}"
    );
}

#[test]
fn logits_that_are_not_finite_are_refused() {
    let mut scratch = Scratch::default();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 3, 9] {
            let mut logits = [0.0; 10];
            logits[place] = bad;
            assert_eq!(draw(&logits, PLAIN, 0.5, &mut scratch), None, "{bad} at {place}");
        }
    }
    assert_eq!(draw(&[], PLAIN, 0.5, &mut scratch), None);
    let overflowing = DrawSettings {
        temperature: 1e-38,
        top_k: 0,
    };
    assert_eq!(draw(&[1.0, 100.0], overflowing, 0.5, &mut scratch), None);
}

#[test]
fn draws_follow_the_distribution() {
    let mut scratch = Scratch::default();
    let mut counts = [0u32; 3];
    for n in 0..40_000u32 {
        let [word, ..] = crate::random::philox([n, 0, 0, 0], [1, 2]);
        counts[draw(&[0.0, 2f32.ln(), 5f32.ln()], PLAIN, uniform(word), &mut scratch)
            .unwrap()
            .token as usize] += 1;
    }
    for (count, share) in counts.into_iter().zip([1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0]) {
        assert!((f64::from(count) / 40_000.0 - share).abs() < 0.01, "{counts:?}");
    }
}

#[test]
fn ties_in_confidence_mask_exactly_as_many_and_the_earlier_first() {
    let mut chosen = Vec::new();
    let confidences = [(0.5, 0), (0.1, 1), (0.5, 2), (0.5, 3)];
    least_confident(confidences.into_iter(), 3, &mut Scratch::default(), |position| {
        chosen.push(position);
    });
    chosen.sort_unstable();
    assert_eq!(chosen, [0, 1, 2]);
}

proptest! {
    #[test]
    fn the_fast_draw_is_the_plain_one(
        // Few distinct values make ties common.
        logits in prop::collection::vec((-40i32..40).prop_map(|n| n as f32 * 0.37), 1..300),
        temperature in prop_oneof![Just(0.0f32), Just(1.0), 0.05f32..4.0],
        top_k in 0u32..40,
        word: u32,
    ) {
        let settings = DrawSettings { temperature, top_k };
        let fast = draw(&logits, settings, uniform(word), &mut Scratch::default()).unwrap();
        prop_assert_eq!(fast, plain_draw(&logits, settings, uniform(word)));
    }

    #[test]
    fn top_k_never_draws_outside_of_the_k_largest(
        logits in prop::collection::vec(-10f32..10.0, 2..100),
        top_k in 1u32..10,
        word: u32,
    ) {
        let settings = DrawSettings { temperature: 1.5, top_k };
        let drawn = draw(&logits, settings, uniform(word), &mut Scratch::default()).unwrap();
        let larger = logits.iter().filter(|logit| **logit > logits[drawn.token as usize]).count();
        prop_assert!(larger < top_k as usize);
    }

    #[test]
    fn exactly_as_many_as_asked_are_masked_again(
        confidences in prop::collection::vec((-5i32..5).prop_map(|n| n as f32), 0..80),
        count in 0usize..80,
    ) {
        let mut chosen = Vec::new();
        let pairs = confidences.iter().copied().zip(0u32..);
        least_confident(pairs, count, &mut Scratch::default(), |position| chosen.push(position));
        let mut order: Vec<u32> = (0..confidences.len() as u32).collect();
        order.sort_by(|a, b| confidences[*a as usize].partial_cmp(&confidences[*b as usize]).unwrap());
        order.truncate(count);
        order.sort_unstable();
        chosen.sort_unstable();
        prop_assert_eq!(chosen, order);
    }
}
