//! What clients, workers, the wire to Redis and the harness itself saw, in one list.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// What a job is for, and so how it may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum JobKind {
    /// Nothing is done to it: it has to succeed.
    Plain,
    /// As [`JobKind::Plain`], by a model that really computes: equal prompts have to give equal pictures.
    Real,
    /// Its client cancels it at some time.
    Cancelled,
    /// It has little time.
    Hasty,
    /// Some of its attempts fail.
    Flaky,
    /// It has to fail.
    Rejected,
    /// An operator puts it back while it runs.
    Requeued,
    /// It fails, an operator retries it, it fails again, and is purged.
    Buried,
}

/// A job as somebody saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub version: u64,
    /// `JOB_STATE_…`
    pub state: String,
    /// `JOB_ERROR_REASON_…`, of a failed one.
    pub reason: String,
    /// Digests of its pictures, in order.
    pub digests: Vec<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    // === clients ===
    /// The first attempt to submit under a key.
    Submitting {
        tenant: String,
        key: String,
        kind: JobKind,
        prompt: String,
    },
    /// A gateway answered with a job.
    Accepted {
        tenant: String,
        key: String,
        job: String,
    },
    /// A gateway took another request under a key that stood for one already.
    TakenAnew {
        tenant: String,
        key: String,
        job: String,
    },
    /// A gateway refused; `retry_ms`: when to come again, as it said.
    Refused {
        tenant: String,
        code: String,
        retry_ms: Option<u64>,
    },
    /// Told by a watch or by an answer.
    Seen { job: String, view: View },
    /// NOT_FOUND.
    Missing { job: String },
    /// A watch told a version that is not above the one before it.
    WentBack { job: String, from: u64, to: u64 },
    /// An operator gives a dead job another life.
    Reviving { job: String },
    /// An operator forgets a dead job.
    Purging { job: String },
    /// Something that no answer should be.
    Wrong { what: String },
    /// As a list told it at the end, when nothing more happens.
    Swept {
        tenant: String,
        job: String,
        seed: u64,
        view: View,
    },

    // === workers ===
    /// A lease arrived.
    Leased {
        worker: String,
        job: String,
        nonce: String,
        stage: String,
    },
    /// The gateway said to drop it.
    Dropped {
        worker: String,
        job: String,
        nonce: String,
    },
    /// The gateway answered its report: `ACK_OUTCOME_…`.
    Acked {
        worker: String,
        job: String,
        nonce: String,
        outcome: String,
    },

    // === the wire to Redis; the record's time is the reply's, `sent` the command's ===
    /// claim gave this lease.
    Granted {
        sent: u64,
        job: String,
        nonce: String,
        stage: String,
        owner: String,
        tenant: String,
    },
    /// complete answered.
    Completed {
        sent: u64,
        job: String,
        nonce: String,
        stage: String,
        digest: String,
        outcome: String,
        state: String,
        /// The digest of another finisher, where it told one.
        other: String,
    },
    /// fail or release was accepted, or (`again`) had been: the lease is over, and the job may be.
    GivenUp {
        sent: u64,
        job: String,
        nonce: String,
        again: bool,
        state: String,
    },
    /// cancel or requeue took the job from whoever had it.
    TakenBack { sent: u64, job: String, state: String },
    /// A failpoint: the connection was cut before or after this script ran.
    Cut { script: String, after: bool },

    // === the harness ===
    /// `lone`: nothing else is disturbed until recovery can be judged.
    Fault {
        kind: String,
        target: String,
        lone: bool,
    },
    /// Redis answers again.
    RedisBack { lone: bool },
    /// What was written in this time was taken from the disk on purpose.
    Unsynced { from: u64, to: u64 },
    /// A quantity that must not be above its limit.
    Sampled { what: String, value: u64, limit: u64 },
    /// An audit's findings.
    Audited { jobs: u64, findings: Vec<String> },
    /// In this time more work waited than shards could take, of tenants with these weights.
    Saturated {
        from: u64,
        to: u64,
        stage: String,
        weights: Vec<(String, f64)>,
    },
}

/// Microseconds that a record may come after one that is later.
const LATEST_RECORD: u64 = 1_000_000;

/// When, in microseconds since 1970 by this machine's clock, and what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub at: u64,
    pub event: Event,
}

/// Takes events down.
pub trait Log {
    /// Now.
    fn write(&self, event: &Event);
}

/// In memory; clones share it.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Vec<Record>>>);

/// In a file, one JSON object a line; each line is one write, which a killed process has done whole or not at all.
#[derive(Debug)]
pub struct LogFile(File);

/// This machine's clock, in microseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

// === impl History ===

impl History {
    /// What was seen so far, ordered by time.
    pub fn records(&self) -> Vec<Record> {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        records.sort_by_key(|record| record.at);
        records
    }

    /// What `choose` makes of the events so far, in the order of their writing.
    pub fn select<T>(&self, choose: impl FnMut(&Record) -> Option<T>) -> Vec<T> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().filter_map(choose).collect()
    }

    /// Whether an event after this time is one that is wanted; looks at the newest alone, however long the history is.
    pub fn has_since(&self, since: u64, wanted: impl Fn(&Event) -> bool) -> bool {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = records
            .iter()
            .rev()
            .take_while(|record| record.at + LATEST_RECORD >= since);
        newest
            .into_iter()
            .any(|record| record.at > since && wanted(&record.event))
    }

    /// Adds a file that [`LogFile`] wrote.
    pub fn read(&self, path: &Path) {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let records = text.lines().map(|line| match serde_json::from_str(line) {
            Ok(record) => record,
            Err(error) => panic!("{}: {error}: {line}", path.display()),
        });
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(records);
    }
}

impl Log for History {
    fn write(&self, event: &Event) {
        let record = Record {
            at: now(),
            event: event.clone(),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }
}

// === impl LogFile ===

impl LogFile {
    /// Appends to a file.
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl Log for LogFile {
    fn write(&self, event: &Event) {
        let record = Record {
            at: now(),
            event: event.clone(),
        };
        let mut line = serde_json::to_vec(&record).expect("an event is JSON");
        line.push(b'\n');
        (&self.0).write_all(&line).expect("the history is written");
    }
}
