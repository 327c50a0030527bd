//! The lines in progress, never more than the window holds: however long the input is, this is all that is in memory of it.
//! Pure: what comes in changes it and says what is to be done; connections and files are elsewhere.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use muse_proto::{
    std_duration,
    v1::{Image, Job, JobState, SubmitJobsError},
};
use tokio::time::Instant;
use tonic::Code;

use super::{
    folder::{FailureEntry, FailureKind},
    line::Line,
};
use crate::view::words;

/// Between two attempts of a line that was refused for now by a gateway that did not say how long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A job whose pictures were gone before they were fetched is made again so often.
const REMAKES: u32 = 3;

/// A line in progress.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) line: Line,
    /// Failed attempts that `--retry-failed` came after; part of the idempotency key.
    pub(super) round: u32,
    /// Failed in an earlier run.
    pub(super) failed_before: bool,
    job_id: Option<String>,
    images: BTreeMap<u32, Image>,
    pauses: u32,
    remakes: u32,
}

/// A line that is done, with its pictures.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) line: Line,
    pub(super) job_id: String,
    pub(super) failed_before: bool,
    /// In order, as many as the line asked for.
    pub(super) images: Vec<Image>,
}

/// What an answer led to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing is to be done.
    Goes,
    /// Its pictures are to be written.
    Finished(Box<Finished>),
    /// There will be no picture.
    Failed(Box<FailureEntry>),
    /// It is sent again later; the gateway said why.
    Later(String),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    most: usize,
    ready: VecDeque<Task>,
    /// To be sent again, by time.
    later: BTreeMap<(Instant, u64), Task>,
    /// Sent, by line number.
    sent: HashMap<u64, Task>,
    /// Handed to the writer.
    writing: usize,
}

impl Task {
    pub(super) fn new(line: Line, round: u32, failed_before: bool) -> Self {
        Self {
            line,
            round,
            failed_before,
            job_id: None,
            images: BTreeMap::new(),
            pauses: 0,
            remakes: 0,
        }
    }

    fn failure(&self, kind: FailureKind, message: String, reason: Option<&str>) -> Outcome {
        Outcome::Failed(Box::new(FailureEntry {
            line: self.line.number,
            id: Some(self.line.id.clone()),
            kind,
            message,
            reason: reason.map(str::to_owned),
            job_id: self.job_id.clone(),
            digest: Some(self.line.digest.clone()),
            round: self.round,
        }))
    }
}

impl Window {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            ready: VecDeque::new(),
            later: BTreeMap::new(),
            sent: HashMap::new(),
            writing: 0,
        }
    }

    /// Lines in it.
    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.later.len() + self.sent.len() + self.writing
    }

    pub(super) fn has_room(&self) -> bool {
        self.len() < self.most
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lines that were sent and not settled.
    pub(super) fn sent(&self) -> usize {
        self.sent.len()
    }

    /// Whether there is anything to do for a gateway, now or later.
    pub(super) fn needs_gateway(&self) -> bool {
        self.len() > self.writing
    }

    /// Takes a line in; the caller has asked for room.
    pub(super) fn add(&mut self, task: Task) {
        self.ready.push_back(task);
    }

    /// Whether a line is to be sent now.
    pub(super) fn has_ready(&mut self, now: Instant) -> bool {
        while let Some(entry) = self.later.first_entry()
            && entry.key().0 <= now
        {
            self.ready.push_back(entry.remove());
        }
        !self.ready.is_empty()
    }

    /// When the next line is to be sent again.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        self.later.keys().next().map(|(moment, _)| *moment)
    }

    /// The next line to send; it counts as sent.
    pub(super) fn send(&mut self) -> Option<&Task> {
        let task = self.ready.pop_front()?;
        let number = task.line.number;
        Some(self.sent.entry(number).insert_entry(task).into_mut())
    }

    /// The stream is lost: everything that was sent is to be sent again, in order.
    pub(super) fn lost(&mut self) {
        let mut tasks: Vec<Task> = self.sent.drain().map(|(_, task)| task).collect();
        tasks.sort_unstable_by_key(|task| std::cmp::Reverse(task.line.number));
        for mut task in tasks {
            task.images.clear();
            self.ready.push_front(task);
        }
    }

    pub(super) fn accepted(&mut self, number: u64, job_id: String) {
        if let Some(task) = self.sent.get_mut(&number) {
            task.job_id = Some(job_id);
            task.pauses = 0;
        }
    }

    pub(super) fn image(&mut self, number: u64, image: Image) {
        if let Some(task) = self.sent.get_mut(&number)
            && let Some(info) = &image.info
        {
            task.images.insert(info.index, image);
        }
    }

    pub(super) fn ended(&mut self, number: u64, job: &Job) -> Outcome {
        let Some(mut task) = self.sent.remove(&number) else {
            return Outcome::Goes;
        };
        if job.state() != JobState::Succeeded {
            let (message, reason) = match &job.error {
                Some(error) => (error.message.clone(), Some(words::reason(error.reason()))),
                None => (format!("the job was {}", words::state(job.state())), None),
            };
            return task.failure(FailureKind::Job, message, reason);
        }
        let images: Vec<Image> = std::mem::take(&mut task.images).into_values().collect();
        let indexes = images
            .iter()
            .filter_map(|image| image.info.as_ref())
            .map(|info| info.index);
        if !indexes.eq(0..task.line.count()) {
            let message = "the gateway did not send the pictures that were asked for".to_owned();
            return task.failure(FailureKind::Job, message, None);
        }
        self.writing += 1;
        Outcome::Finished(Box::new(Finished {
            line: task.line,
            job_id: job.id.clone(),
            failed_before: task.failed_before,
            images,
        }))
    }

    /// A line was refused; `jitter` in 0..1 spreads those that were refused together.
    pub(super) fn refused(
        &mut self,
        number: u64,
        error: &SubmitJobsError,
        now: Instant,
        jitter: f64,
    ) -> Outcome {
        let Some(mut task) = self.sent.remove(&number) else {
            return Outcome::Goes;
        };
        task.images.clear();
        let told = error.retry_delay.as_ref().and_then(std_duration);
        match Code::from(error.code) {
            // The gateway's own limits pass; what it cannot say goes by its RetryInfo.
            Code::Unavailable | Code::ResourceExhausted => {}
            // Its pictures were not kept until now: the next round is another job, with the same pictures.
            Code::NotFound if task.job_id.is_some() && task.remakes < REMAKES => {
                task.remakes += 1;
                task.round += 1;
                task.job_id = None;
                self.ready.push_back(task);
                return Outcome::Later(error.message.clone());
            }
            _ if told.is_some() => {}
            _ => {
                let fields: Vec<String> = error
                    .field_violations
                    .iter()
                    .map(|fault| format!("{}: {}", fault.field, fault.description))
                    .collect();
                let message = if fields.is_empty() {
                    error.message.clone()
                } else {
                    fields.join("; ")
                };
                return task.failure(FailureKind::Refused, message, None);
            }
        }
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(task.pauses.min(16)));
        let pause = told.unwrap_or_else(|| doubled.min(LONGEST_PAUSE));
        task.pauses = task.pauses.saturating_add(1);
        let moment = now + pause.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0);
        self.later.insert((moment, number), task);
        Outcome::Later(error.message.clone())
    }

    /// A line that cannot even be sent.
    pub(super) fn unsendable(&mut self, number: u64, message: String) -> Outcome {
        match self.sent.remove(&number) {
            Some(task) => task.failure(FailureKind::Refused, message, None),
            None => Outcome::Goes,
        }
    }

    /// A line's failure is to be written.
    pub(super) fn writing_failure(&mut self) {
        self.writing += 1;
    }

    /// A line's pictures, or its failure, are on disk.
    pub(super) fn written(&mut self) {
        self.writing = self.writing.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests;
