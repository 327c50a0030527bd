//! Step-level batching (design §4): jobs are rows, and before every pass the rows that run are chosen afresh.
//!
//! [`policy`] says which rows, [`curve`] knows what a pass costs, [`warm_up`] measures it, and [`Batcher`] does it over any
//! [`StageModel`]: no gRPC, no ONNX Runtime, no clock but the one it is given. With the same calls it does the same.

mod conditioner;
pub mod curve;
mod event;
mod job;
pub mod policy;
#[cfg(test)]
mod tests;
pub mod warm_up;

use std::time::{Duration, Instant};

use muse_engine::{Row, RowState, StageError, StageModel};
use tracing::warn;

use self::{
    conditioner::Conditioner,
    curve::{PassCurve, Point},
    job::Job,
    policy::{Ageing, Chosen},
};
pub use self::{
    event::{DeviceFault, Event, JobFault, Pass, Turn},
    job::{NewJob, RowPlan},
    warm_up::{WarmUp, warm_up},
};
use crate::hub::Ticket;

/// The batcher's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Most rows in a pass, a guided row counted twice; at least 2.
    pub row_budget: usize,
    /// How fast waiting raises a job.
    pub ageing: Ageing,
    /// Passes in a row without one row that could be computed, after which the model is taken for broken.
    pub max_failed_passes: u32,
}

/// See the module.
pub struct Batcher<M> {
    model: M,
    settings: Settings,
    curve: PassCurve,
    conditioner: Conditioner,
    jobs: Vec<Job>,
    arrivals: u64,
    failed_passes: u32,
}

impl<M: StageModel> Batcher<M> {
    /// An idle batcher. `curve` is what warm-up measured.
    pub fn new(model: M, settings: Settings, curve: PassCurve) -> Self {
        Batcher {
            model,
            settings,
            curve,
            conditioner: Conditioner::new(settings.row_budget),
            jobs: Vec::new(),
            arrivals: 0,
            failed_passes: 0,
        }
    }

    /// Nothing to do.
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Gives memory back that only work needs; nothing while there is some.
    ///
    /// # Errors
    /// When the model cannot.
    pub fn release_memory(&mut self) -> Result<(), StageError> {
        if self.is_idle() {
            self.model.release_memory()?;
        }
        Ok(())
    }

    /// Rows that are not done.
    pub fn rows(&self) -> usize {
        self.jobs.iter().map(Job::rows_left).sum()
    }

    /// Takes a job. It is considered from the next pass on.
    pub fn admit(&mut self, job: NewJob) {
        self.jobs.push(Job::new(job, self.arrivals));
        self.arrivals += 1;
    }

    /// Takes a job out, at a step boundary as every call is, and returns its checkpoint; `None` when it is not here.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Vec<RowState>> {
        let index = self.jobs.iter().position(|job| job.ticket == ticket)?;
        Some(self.jobs.remove(index).checkpoint())
    }

    /// Estimated time until a job is done if it had all passes to itself; `None` when it is not here.
    pub fn remaining(&self, ticket: Ticket) -> Option<Duration> {
        let job = self.jobs.iter().find(|job| job.ticket == ticket)?;
        Some(job.remaining(&self.curve, self.settings.row_budget))
    }

    /// Drops what is overdue, chooses rows, conditions those of new jobs, and runs one pass.
    ///
    /// # Errors
    /// When the model is broken. What is still here can be taken out with [`Batcher::remove`].
    pub fn turn(&mut self, clock: &dyn Fn() -> Instant) -> Result<Turn, DeviceFault> {
        let mut turn = Turn::default();
        let now = clock();
        self.drop_overdue(now, &mut turn);
        // Jobs that arrive finished, from a checkpoint, need no pass.
        self.settle(now, &mut turn);
        let chosen = self.choose(now);
        // Conditioning is a job's own work, not a wait.
        for (job, _) in by_job(&chosen) {
            self.jobs[job].begun_at.get_or_insert(now);
        }
        let chosen = self.condition(chosen, &mut turn);
        if chosen.is_empty() {
            return Ok(turn);
        }
        let begun = clock();
        let cost = self.cost(&chosen);
        let steps = self.steps(&chosen);
        match self.pass(&chosen) {
            Ok(()) => {
                let pass = Pass {
                    rows: chosen.len(),
                    cost,
                    time: clock().saturating_duration_since(begun),
                };
                self.curve.observe(Point {
                    rows: cost,
                    time: pass.time,
                });
                self.failed_passes = 0;
                turn.pass = Some(pass);
            }
            Err(error) => self.isolate(&chosen, &steps, &error, &mut turn)?,
        }
        let ended = clock();
        for (job, _) in by_job(&chosen) {
            let job = &mut self.jobs[job];
            if !job.is_done() {
                let (step, of) = job.progress();
                turn.events.push(Event::Stepped {
                    ticket: job.ticket,
                    step,
                    of,
                    rows: job.checkpoint(),
                });
            }
        }
        self.drop_failed(&mut turn);
        self.settle(ended, &mut turn);
        Ok(turn)
    }

    fn drop_overdue(&mut self, now: Instant, turn: &mut Turn) {
        self.jobs.retain(|job| {
            let overdue = job.deadline.is_some_and(|deadline| deadline <= now);
            if overdue {
                turn.events.push(Event::Overdue { ticket: job.ticket });
            }
            !overdue
        });
    }

    /// Takes out the jobs that failed in this turn.
    fn drop_failed(&mut self, turn: &mut Turn) {
        let failed: Vec<Ticket> = turn
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Failed { ticket, .. } => Some(*ticket),
                _ => None,
            })
            .collect();
        if !failed.is_empty() {
            self.jobs.retain(|job| !failed.contains(&job.ticket));
            turn.events
                .retain(|event| !matches!(event, Event::Stepped { ticket, .. } if failed.contains(ticket)));
        }
    }

    /// Tells the rows that are done, and takes out the jobs that are.
    fn settle(&mut self, now: Instant, turn: &mut Turn) {
        for job in &mut self.jobs {
            let ticket = job.ticket;
            let rows = job.newly_done().into_iter();
            turn.events.extend(rows.map(|(index, tokens)| Event::Row {
                ticket,
                index,
                tokens,
            }));
        }
        self.jobs.retain(|job| {
            if job.is_done() {
                let begun_at = job.begun_at.unwrap_or(now);
                turn.events.push(Event::Done {
                    ticket: job.ticket,
                    begun_at,
                    ended_at: now,
                });
            }
            !job.is_done()
        });
    }

    /// The rows of the next pass, ordered by job and row.
    fn choose(&self, now: Instant) -> Vec<Chosen> {
        let Settings {
            row_budget, ageing, ..
        } = self.settings;
        let mut ranked: Vec<_> = self
            .jobs
            .iter()
            .enumerate()
            .map(|(index, job)| (job.standing(&self.curve, row_budget).rank(now, ageing), index))
            .collect();
        ranked.sort_unstable();
        let offered = ranked
            .into_iter()
            .map(|(_, index)| (index, self.jobs[index].costs()));
        let mut chosen = policy::choose(offered, row_budget);
        chosen.sort_unstable();
        chosen
    }

    /// Conditions the chosen jobs that are not yet, all of them at once; if that fails, one by one, and the culprit fails
    /// alone. Returns the rows that can run, with the indices that hold after the culprits have left.
    fn condition(&mut self, chosen: Vec<Chosen>, turn: &mut Turn) -> Vec<Chosen> {
        let fresh: Vec<usize> = by_job(&chosen)
            .map(|(job, _)| job)
            .filter(|job| !self.jobs[*job].inputs().is_empty())
            .collect();
        if fresh.is_empty() {
            return chosen;
        }
        let (model, jobs) = (&mut self.model, &self.jobs);
        let together: Vec<&Job> = fresh.iter().map(|job| &jobs[*job]).collect();
        let mut together = self
            .conditioner
            .condition(model, &together)
            .ok()
            .map(Vec::into_iter);
        for job in fresh {
            let own = match &mut together {
                Some(all) => Ok(all.next().unwrap_or_default()),
                None => self
                    .conditioner
                    .condition(&mut self.model, &[&self.jobs[job]])
                    .map(|all| all.into_iter().next().unwrap_or_default()),
            };
            let fault = match own {
                Ok(own) => self.jobs[job]
                    .condition(self.model.spec(), &own)
                    .err()
                    .map(|error| JobFault::Lease(error.to_string())),
                Err(error) => Some(JobFault::Model(error)),
            };
            if let Some(fault) = fault {
                turn.events.push(Event::Failed {
                    ticket: self.jobs[job].ticket,
                    fault,
                });
            }
        }
        let tickets: Vec<(Ticket, usize)> = chosen
            .iter()
            .map(|chosen| (self.jobs[chosen.job].ticket, chosen.row))
            .collect();
        self.drop_failed(turn);
        let find = |ticket| self.jobs.iter().position(|job| job.ticket == ticket);
        tickets
            .into_iter()
            .filter_map(|(ticket, row)| find(ticket).map(|job| Chosen { job, row }))
            .collect()
    }

    fn pass(&mut self, chosen: &[Chosen]) -> Result<(), String> {
        let (model, jobs) = (&mut self.model, &mut self.jobs);
        let mut rows: Vec<&mut Row> = Vec::with_capacity(chosen.len());
        let mut wanted = by_job(chosen).peekable();
        for (index, job) in jobs.iter_mut().enumerate() {
            if let Some((_, own)) = wanted.next_if(|(job, _)| *job == index) {
                rows.extend(job.live(own));
            }
        }
        model.pass(&mut rows).map_err(|error| error.to_string())
    }

    /// After a pass that failed: runs each of its rows alone, once. A row that fails alone is the culprit, and its job fails;
    /// the others have taken their step.
    fn isolate(
        &mut self,
        chosen: &[Chosen],
        steps: &[u32],
        error: &str,
        turn: &mut Turn,
    ) -> Result<(), DeviceFault> {
        warn!(
            error,
            rows = chosen.len(),
            "a pass failed; running its rows one by one"
        );
        metrics::counter!("muse_failed_passes_total").increment(1);
        let mut computed = 0usize;
        let mut failed: Vec<usize> = Vec::new();
        for (chosen, step) in chosen.iter().zip(steps) {
            if failed.contains(&chosen.job) {
                continue;
            }
            // A pass may have failed after some of its rows took their step.
            if self.steps(&[*chosen]) != [*step] {
                computed += 1;
                continue;
            }
            match self.pass(&[*chosen]) {
                Ok(()) => computed += 1,
                Err(error) => {
                    failed.push(chosen.job);
                    let ticket = self.jobs[chosen.job].ticket;
                    turn.events.push(Event::Failed {
                        ticket,
                        fault: JobFault::Model(error),
                    });
                }
            }
        }
        self.failed_passes = if computed > 0 { 0 } else { self.failed_passes + 1 };
        if self.failed_passes >= self.settings.max_failed_passes {
            return Err(DeviceFault {
                passes: self.failed_passes,
                last: error.to_owned(),
            });
        }
        Ok(())
    }

    fn cost(&mut self, chosen: &[Chosen]) -> usize {
        self.each(chosen, Row::cost).iter().sum()
    }

    fn steps(&mut self, chosen: &[Chosen]) -> Vec<u32> {
        self.each(chosen, Row::step)
    }

    fn each<T>(&mut self, chosen: &[Chosen], ask: impl Fn(&Row) -> T) -> Vec<T> {
        let mut answers = Vec::with_capacity(chosen.len());
        for (job, rows) in by_job(chosen) {
            answers.extend(self.jobs[job].live(rows).map(|row| ask(row)));
        }
        answers
    }
}

/// Chosen rows, ordered by job, as (job, its rows).
fn by_job(chosen: &[Chosen]) -> impl Iterator<Item = (usize, &[Chosen])> {
    chosen
        .chunk_by(|left, right| left.job == right.job)
        .map(|rows| (rows[0].job, rows))
}
