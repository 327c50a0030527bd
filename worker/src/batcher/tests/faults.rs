//! What fails, fails alone.

use super::fake::*;
use crate::{
    batcher::{Event, JobFault},
    hub::Ticket,
};

#[test]
fn a_job_that_breaks_its_pass_fails_alone_and_its_batch_mates_lose_no_step() {
    for (poison, name) in [(POISON, "error"), (NAN, "not finite")] {
        let clock = Clock::new();
        let mut batcher = batcher(Fake::new(clock.clone(), 8));
        let wishes = [
            Wish::new(0, &clock),
            Wish {
                value: poison,
                pictures: 2,
                ..Wish::new(1, &clock)
            },
            Wish {
                sampling: sampling(6, 2.0),
                ..Wish::new(2, &clock)
            },
        ];
        wishes.iter().for_each(|wish| batcher.admit(wish.job()));
        let turn = batcher.turn(&|| clock.now()).unwrap();
        let failed: Vec<_> = turn
            .events
            .iter()
            .filter(|event| {
                matches!(
                    event,
                    Event::Failed {
                        fault: JobFault::Model(_),
                        ..
                    }
                )
            })
            .collect();
        assert!(
            matches!(
                failed[..],
                [Event::Failed {
                    ticket: Ticket(1),
                    ..
                }]
            ),
            "{name}: {:?}",
            turn.events
        );
        let stepped = turn
            .events
            .iter()
            .filter(|event| matches!(event, Event::Stepped { step: 1, .. }))
            .count();
        assert_eq!(stepped, 2, "{name}: {:?}", turn.events);
        let finished = finish(&mut batcher, &clock);
        for wish in [&wishes[0], &wishes[2]] {
            assert_eq!(finished.grids[&wish.ticket], alone(wish, &clock, 8), "{name}");
        }
        assert!(finished.failed.is_empty(), "{name}: {:?}", finished.failed);
    }
}

#[test]
fn a_checkpoint_that_does_not_fit_fails_its_job_and_no_other() {
    let clock = Clock::new();
    let mut batcher = batcher(Fake::new(clock.clone(), 8));
    let wish = Wish::new(0, &clock);
    let mut rows = vec![wish.job().rows[0].start.clone()];
    rows[0].step = 2;
    batcher.admit(wish.resumed(rows));
    batcher.admit(Wish::new(1, &clock).job());
    let turn = batcher.turn(&|| clock.now()).unwrap();
    assert!(
        matches!(&turn.events[0], Event::Failed { ticket: Ticket(0), fault: JobFault::Lease(message) } if message.contains("masked")),
        "{:?}",
        turn.events
    );
    assert_eq!(finish(&mut batcher, &clock).done, [1]);
}

#[test]
fn a_model_that_computes_nothing_any_more_is_told_from_a_bad_job() {
    let clock = Clock::new();
    let mut model = Fake::new(clock.clone(), 2);
    model.broken = true;
    let mut batcher = batcher(model);
    for ticket in 0..3 {
        batcher.admit(
            Wish {
                pictures: 2,
                ..Wish::new(ticket, &clock)
            }
            .job(),
        );
    }
    let mut failed = Vec::new();
    let fault = loop {
        match batcher.turn(&|| clock.now()) {
            Ok(turn) => failed.extend(turn.events),
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault.passes, 3);
    assert_eq!(failed.len(), 2, "{failed:?}");
}
