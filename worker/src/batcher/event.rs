//! What a turn of the batcher brings.

use std::time::{Duration, Instant};

use muse_engine::RowState;

use crate::hub::Ticket;

/// Something that happened to a job.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// It took part in a pass and is not done.
    Stepped {
        /// Which.
        ticket: Ticket,
        /// Steps done by its least advanced row.
        step: u32,
        /// And in all.
        of: u32,
        /// Its checkpoint.
        rows: Vec<RowState>,
    },
    /// One of its rows is done.
    Row {
        /// Which job.
        ticket: Ticket,
        /// Which picture.
        index: usize,
        /// `[S]`.
        tokens: Vec<u32>,
    },
    /// All of its rows are done. It has left.
    Done {
        /// Which.
        ticket: Ticket,
        /// When its decoding began: conditioning, then the first pass.
        begun_at: Instant,
        /// When its last pass ended.
        ended_at: Instant,
    },
    /// It failed, alone. It has left.
    Failed {
        /// Which.
        ticket: Ticket,
        /// Why.
        fault: JobFault,
    },
    /// Its deadline passed. It has left.
    Overdue {
        /// Which.
        ticket: Ticket,
    },
}

/// Why a job failed alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobFault {
    /// Its rows cannot be built from what the lease says: settings or checkpoint do not fit the stage.
    #[error("{0}")]
    Lease(String),
    /// The model fails on it, also when it is alone.
    #[error("the model failed on it: {0}")]
    Model(String),
}

/// A pass that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Rows that took a step.
    pub rows: usize,
    /// Rows that the model computed: guided ones counted twice.
    pub cost: usize,
    /// How long it took.
    pub time: Duration,
}

/// What one turn brought.
#[derive(Debug, Default, PartialEq)]
pub struct Turn {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// The pass, if one ran without a fault.
    pub pass: Option<Pass>,
}

/// The model is broken: nothing it was given for several passes could be computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model failed in {passes} passes in a row; the last: {last}")]
pub struct DeviceFault {
    /// How many.
    pub passes: u32,
    /// The last failure.
    pub last: String,
}
