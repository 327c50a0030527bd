//! The device thread: one OS thread that owns the stage's model, and nothing that waits.
//!
//! It takes orders between passes and otherwise computes. What comes of a job goes to that job's own channel, which has room
//! for all of it, so that the thread never waits for anyone.

use std::{sync::Arc, thread, time::Instant};

use muse_engine::{RowState, StageModel};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::{
    batcher::{Batcher, DeviceFault, Event, JobFault, NewJob},
    board::Board,
    hub::Ticket,
};

/// An order to the device thread.
enum Order {
    Admit(Box<NewJob>, mpsc::Sender<JobEvent>),
    Drop(Ticket),
    Release(Ticket),
    Rest,
}

/// What comes of a job. One of the last four ends it.
#[derive(Debug)]
pub enum JobEvent {
    /// A row's grid is full.
    Row {
        /// Which picture.
        index: usize,
        /// `[S]`.
        tokens: Vec<u32>,
    },
    /// All of its rows are done.
    Done {
        /// When its decoding began: conditioning, then the first pass.
        begun_at: Instant,
        /// When its last pass ended.
        ended_at: Instant,
    },
    /// It failed, alone.
    Failed(JobFault),
    /// Its deadline passed.
    Overdue,
    /// It was given up at a step boundary as ordered.
    Released(Vec<RowState>),
}

/// The device thread is gone: its model is broken, or the process ends.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the device thread has ended")]
pub struct Gone;

/// Orders for the device thread. It ends when all of these are dropped.
#[derive(Clone)]
pub struct Device {
    orders: mpsc::Sender<Order>,
}

impl Device {
    /// Starts the thread. `queue` orders may wait. The receiver tells why it ended.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start<M: StageModel + 'static>(
        batcher: Batcher<M>,
        board: Arc<Board>,
        queue: usize,
    ) -> std::io::Result<(Device, oneshot::Receiver<Result<(), DeviceFault>>)> {
        let (orders, received) = mpsc::channel(queue.max(1));
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("device".to_owned()).spawn(move || {
            let result = work(batcher, received, &board);
            if let Err(fault) = &result {
                error!(%fault, "the device thread ends");
            }
            // Nobody listens when the process ends anyway.
            let _ = ended.send(result);
        })?;
        Ok((Device { orders }, end))
    }

    /// Admits a job of `job.rows.len()` rows; what comes of it arrives in the receiver.
    ///
    /// # Errors
    /// When the thread is gone.
    pub async fn admit(&self, job: NewJob) -> Result<mpsc::Receiver<JobEvent>, Gone> {
        // One event for each row, and one for the end.
        let (events, receiver) = mpsc::channel(job.rows.len() + 1);
        self.orders
            .send(Order::Admit(Box::new(job), events))
            .await
            .map_err(|_| Gone)?;
        Ok(receiver)
    }

    /// Drops a job at the next step boundary, without an event.
    ///
    /// # Errors
    /// When the thread is gone.
    pub async fn drop_job(&self, ticket: Ticket) -> Result<(), Gone> {
        self.orders.send(Order::Drop(ticket)).await.map_err(|_| Gone)
    }

    /// Gives a job up at the next step boundary, with [`JobEvent::Released`].
    ///
    /// # Errors
    /// When the thread is gone.
    pub async fn release(&self, ticket: Ticket) -> Result<(), Gone> {
        self.orders.send(Order::Release(ticket)).await.map_err(|_| Gone)
    }

    /// Gives memory back that only work needs, unless a job has come meanwhile.
    ///
    /// # Errors
    /// When the thread is gone.
    pub async fn rest(&self) -> Result<(), Gone> {
        self.orders.send(Order::Rest).await.map_err(|_| Gone)
    }
}

/// The senders of the jobs in the batcher.
type Listeners = std::collections::HashMap<Ticket, mpsc::Sender<JobEvent>>;

fn work<M: StageModel>(
    mut batcher: Batcher<M>,
    mut orders: mpsc::Receiver<Order>,
    board: &Board,
) -> Result<(), DeviceFault> {
    let mut listeners = Listeners::new();
    loop {
        if batcher.is_idle() {
            match orders.blocking_recv() {
                Some(order) => obey(order, &mut batcher, &mut listeners, board),
                None => {
                    info!("the device thread has nothing more to do");
                    return Ok(());
                }
            }
        }
        while let Ok(order) = orders.try_recv() {
            obey(order, &mut batcher, &mut listeners, board);
        }
        let turn = batcher.turn(&Instant::now)?;
        for event in turn.events {
            tell(event, &mut listeners, board);
        }
        if let Some(pass) = turn.pass {
            board.count_pass();
            metrics::histogram!("muse_pass_seconds", "rows" => pass.cost.to_string())
                .record(pass.time.as_secs_f64());
            metrics::histogram!("muse_batch_rows").record(pass.cost as f64);
        }
        metrics::gauge!("muse_rows_inflight").set(batcher.rows() as f64);
    }
}

fn obey<M: StageModel>(order: Order, batcher: &mut Batcher<M>, listeners: &mut Listeners, board: &Board) {
    match order {
        Order::Admit(job, events) => {
            listeners.insert(job.ticket, events);
            batcher.admit(*job);
        }
        Order::Drop(ticket) => {
            batcher.remove(ticket);
            listeners.remove(&ticket);
            board.remove(ticket);
        }
        Order::Release(ticket) => {
            if let Some(rows) = batcher.remove(ticket) {
                end(ticket, JobEvent::Released(rows), listeners);
            }
        }
        Order::Rest => match batcher.release_memory() {
            Ok(()) => metrics::counter!("muse_memory_releases_total").increment(1),
            // Work will tell whether the model is broken.
            Err(error) => warn!(%error, "memory cannot be given back"),
        },
    }
}

fn tell(event: Event, listeners: &mut Listeners, board: &Board) {
    match event {
        Event::Stepped {
            ticket,
            step,
            of,
            rows,
        } => board.write(ticket, step, of, Some(rows)),
        Event::Row {
            ticket,
            index,
            tokens,
        } => {
            if let Some(events) = listeners.get(&ticket) {
                // The channel has room for every event of its job; only a job that was dropped no longer listens.
                let _ = events.try_send(JobEvent::Row { index, tokens });
            }
        }
        Event::Done {
            ticket,
            begun_at,
            ended_at,
        } => {
            end(ticket, JobEvent::Done { begun_at, ended_at }, listeners);
        }
        Event::Failed { ticket, fault } => end(ticket, JobEvent::Failed(fault), listeners),
        Event::Overdue { ticket } => end(ticket, JobEvent::Overdue, listeners),
    }
}

/// What the board says of the job stays until its report is acknowledged.
fn end(ticket: Ticket, event: JobEvent, listeners: &mut Listeners) {
    if let Some(events) = listeners.remove(&ticket) {
        let _ = events.try_send(event);
    }
}
