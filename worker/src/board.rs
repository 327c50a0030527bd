//! Where the device thread writes how far each job is, and the hub client reads it: a heartbeat must not wait for a pass.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use muse_engine::{RowState, Stage};
use muse_proto::{internal::v1::Checkpoint, v1::Progress};

use crate::{
    checkpoint,
    hub::{Snapshot, Ticket},
    settings,
};

/// See the module.
#[derive(Debug)]
pub struct Board {
    stage: Stage,
    entries: Mutex<HashMap<Ticket, Entry>>,
    changes: AtomicU64,
    passes: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    version: u64,
    step: u32,
    of: u32,
    rows: Option<Vec<RowState>>,
}

impl Board {
    /// An empty board of a shard of `stage`.
    pub fn new(stage: Stage) -> Self {
        Board {
            stage,
            entries: Mutex::default(),
            changes: AtomicU64::new(0),
            passes: AtomicU64::new(0),
        }
    }

    /// A job stands at `step` of `of`, and can be resumed from `rows`; `None` before its first step here.
    pub fn write(&self, ticket: Ticket, step: u32, of: u32, rows: Option<Vec<RowState>>) {
        let version = self.changes.fetch_add(1, Ordering::Relaxed) + 1;
        self.entries().insert(
            ticket,
            Entry {
                version,
                step,
                of,
                rows,
            },
        );
    }

    /// Nothing about the job will be asked any more.
    pub fn remove(&self, ticket: Ticket) {
        self.entries().remove(&ticket);
    }

    /// A pass has run.
    pub fn count_pass(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    /// Passes since the process started.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Grows with every progress of any job.
    pub fn version(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// How far a job is.
    pub fn read(&self, ticket: Ticket) -> Option<Snapshot> {
        let entries = self.entries();
        let entry = entries.get(&ticket)?;
        let stage = settings::stage_to_wire(self.stage) as i32;
        Some(Snapshot {
            version: entry.version,
            progress: Progress {
                stage,
                step: entry.step,
                of: entry.of,
            },
            checkpoint: entry
                .rows
                .as_ref()
                .map(|rows| checkpoint::to_wire(self.stage, rows)),
        })
    }

    /// A job's checkpoint.
    pub fn checkpoint(&self, ticket: Ticket) -> Option<Checkpoint> {
        self.read(ticket)?.checkpoint
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Ticket, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
