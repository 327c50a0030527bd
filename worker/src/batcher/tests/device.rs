//! The device thread over the fake model.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use muse_engine::{Conditioning, ConditioningInput, Row, Stage, StageError, StageModel, StageSpec};

use super::fake::{Clock, Fake, Wish};
use crate::{
    batcher::{Batcher, Settings, curve::PassCurve, policy::Ageing},
    board::Board,
    device::{Device, JobEvent},
};

/// Notes in each pass whether the board says that the device computes.
struct Watched {
    model: Fake,
    board: Arc<Board>,
    seen: Arc<Mutex<Vec<bool>>>,
}

impl StageModel for Watched {
    fn spec(&self) -> &StageSpec {
        self.model.spec()
    }

    fn condition(&mut self, inputs: &[ConditioningInput]) -> Result<Vec<Arc<Conditioning>>, StageError> {
        self.model.condition(inputs)
    }

    fn pass(&mut self, rows: &mut [&mut Row]) -> Result<(), StageError> {
        self.seen.lock().unwrap().push(self.board.is_computing());
        self.model.pass(rows)
    }
}

#[tokio::test]
async fn the_board_says_that_the_device_computes_until_its_last_row_is_done() {
    let clock = Clock::new();
    let board = Arc::new(Board::new(Stage::Base));
    let seen = Arc::default();
    let model = Watched {
        model: Fake::new(clock.clone(), 4),
        board: Arc::clone(&board),
        seen: Arc::clone(&seen),
    };
    let settings = Settings {
        row_budget: 4,
        ageing: Ageing {
            interval: Duration::from_secs(60),
        },
        max_failed_passes: 3,
    };
    let batcher = Batcher::new(model, settings, PassCurve::default());
    let (device, _ended) = Device::start(batcher, Arc::clone(&board), 4).unwrap();
    for ticket in 0..3 {
        let mut events = device.admit(Wish::new(ticket, &clock).job()).await.unwrap();
        let mut last = None;
        while let Some(event) = events.recv().await {
            // A picture is ordered at this moment.
            assert!(!board.is_computing(), "{event:?}");
            last = Some(event);
        }
        assert!(matches!(last, Some(JobEvent::Done { .. })), "{last:?}");
    }
    assert_eq!(*seen.lock().unwrap(), [true; 12]);
}
