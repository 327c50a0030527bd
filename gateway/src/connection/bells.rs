//! Doorbells: "something changed, look". They ride on pub/sub, which loses messages, so nobody relies on one: every
//! listener also looks by itself now and then, and everything rings after a reconnection.
//!
//! What this gateway changes itself, its own listeners hear of earlier: as soon as the change is on its way over the
//! connection on which they will ask. Their question comes behind it, and travels while the change is written to disk and
//! told.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use redis::RedisResult;
use tokio::sync::{Notify, mpsc, watch};

use super::{
    Redis,
    link::{Link, wait_up},
};

/// The doorbells of one gateway; cloning is cheap.
#[derive(Clone)]
pub struct Bells(Arc<Board>);

struct Board {
    jobs: Mutex<HashMap<String, watch::Sender<Ring>>>,
    pools: Mutex<HashMap<String, Arc<Pool>>>,
    workers: Mutex<HashMap<String, mpsc::Sender<Revocation>>>,
    registry: watch::Sender<()>,
}

/// A lease to take back from a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The job.
    pub job: String,
    /// The lease's nonce, hexadecimal.
    pub nonce: String,
    /// `cancelled` or `deadline`.
    pub reason: String,
}

/// A job that is on its way: what whoever takes it can prepare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Whose embeddings it needs.
    pub texts: Vec<String>,
    /// W3C trace context, or empty.
    pub traceparent: String,
}

/// What a ring says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// It has changed.
    Changed,
    /// It may have ended, so that it should be looked at soon.
    Ended,
}

/// Rings when a job has changed.
pub struct JobBell {
    job: String,
    rings: watch::Receiver<Ring>,
    board: Weak<Board>,
}

/// Rings when there may be work for a pool: for one of those who listen, so that a job does not set all of them looking.
pub struct PoolBell(Arc<Pool>);

#[derive(Default)]
struct Pool {
    bell: Notify,
    /// Those who wait for it now.
    listeners: AtomicUsize,
    /// Jobs on their way to them, at most as many as there are listeners: the one for whom it rings takes all.
    expected: Mutex<VecDeque<Expected>>,
}

/// Somebody listens while this is there.
struct Listening<'a>(&'a Pool);

/// The revocations for one worker.
pub struct Revocations {
    worker: String,
    receiver: mpsc::Receiver<Revocation>,
    board: Weak<Board>,
}

/// A session that does not take its revocations loses them here and learns of them with its next heartbeat.
const REVOCATIONS_WAITING: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Bells ===

impl Bells {
    /// Listens on the channels of `prefixes` (each a shard's `muse:{s<N>}:`, or the registry's) until the last clone is
    /// dropped.
    pub fn listen(redis: &Redis, prefixes: Vec<String>) -> Self {
        let (registry, _) = watch::channel(());
        let board = Arc::new(Board {
            jobs: Mutex::default(),
            pools: Mutex::default(),
            workers: Mutex::default(),
            registry,
        });
        tokio::spawn(listen(redis.clone(), Arc::downgrade(&board), prefixes));
        Self(board)
    }

    /// Rings when `job` has changed.
    pub fn job(&self, job: &str) -> JobBell {
        let mut jobs = lock(&self.0.jobs);
        let rings = jobs
            .entry(job.to_owned())
            .or_insert_with(|| watch::channel(Ring::Changed).0)
            .subscribe();
        JobBell {
            job: job.to_owned(),
            rings,
            board: Arc::downgrade(&self.0),
        }
    }

    /// Rings when there may be work for the pool, `<model>:<stage>`.
    pub fn pool(&self, pool: &str) -> PoolBell {
        PoolBell(Arc::clone(
            lock(&self.0.pools).entry(pool.to_owned()).or_default(),
        ))
    }

    /// Whether anybody listens for `job` here.
    pub fn has_listener(&self, job: &str) -> bool {
        lock(&self.0.jobs).contains_key(job)
    }

    /// Work for a pool is on its way: one of this gateway's listeners may look. Where none listens nothing is kept, as the
    /// work's own bell is still to come.
    pub fn work_ahead(&self, pool: &str) {
        if let Some(pool) = lock(&self.0.pools).get(pool)
            && pool.listeners.load(Ordering::Relaxed) > 0
        {
            pool.bell.notify_one();
        }
    }

    /// What the work is that [`Bells::work_ahead`] will tell of. Where none listens nothing is kept.
    pub fn expect(&self, pool: &str, expected: impl FnOnce() -> Expected) {
        let pool = lock(&self.0.pools).get(pool).cloned();
        let Some(pool) = pool else { return };
        let listeners = pool.listeners.load(Ordering::Relaxed);
        if listeners > 0 {
            let mut all = lock(&pool.expected);
            all.push_back(expected());
            let surplus = all.len().saturating_sub(listeners);
            all.drain(..surplus);
        }
    }

    /// A job's end is on its way.
    pub fn end_ahead(&self, job: &str) {
        self.0.ring_jobs([(job, Ring::Ended)]);
    }

    /// Rings when the registry of models has changed.
    pub fn registry(&self) -> watch::Receiver<()> {
        self.0.registry.subscribe()
    }

    /// The leases to take back from `worker`. A later call for the same worker replaces an earlier one.
    pub fn revocations(&self, worker: &str) -> Revocations {
        let (sender, receiver) = mpsc::channel(REVOCATIONS_WAITING);
        lock(&self.0.workers).insert(worker.to_owned(), sender);
        Revocations {
            worker: worker.to_owned(),
            receiver,
            board: Arc::downgrade(&self.0),
        }
    }
}

// === impl Board ===

impl Board {
    fn ring(&self, channel: &str, payload: &str) {
        match channel {
            "ev" => self.ring_jobs(rings(payload)),
            "work" => {
                if let Some(pool) = lock(&self.pools).get(payload) {
                    pool.bell.notify_one();
                }
            }
            "rev" => {
                let mut words = payload.split(' ').map(str::to_owned);
                if let (Some(worker), Some(job), Some(nonce), Some(reason)) =
                    (words.next(), words.next(), words.next(), words.next())
                    && let Some(sender) = lock(&self.workers).get(&worker)
                {
                    let _ = sender.try_send(Revocation { job, nonce, reason });
                }
            }
            "reg" => {
                self.registry.send_replace(());
            }
            _ => {}
        }
    }

    fn ring_jobs<'a>(&self, rings: impl IntoIterator<Item = (&'a str, Ring)>) {
        let jobs = lock(&self.jobs);
        for (id, ring) in rings {
            if let Some(bell) = jobs.get(id) {
                ring.sound(bell);
            }
        }
    }

    fn ring_all(&self) {
        // Whatever was missed.
        lock(&self.jobs).values().for_each(|bell| Ring::Ended.sound(bell));
        for pool in lock(&self.pools).values() {
            pool.bell.notify_waiters();
            // And for whoever listens next.
            pool.bell.notify_one();
        }
        self.registry.send_replace(());
    }
}

// === impl Ring ===

impl Ring {
    /// One that says that the job may have ended is not drowned by those after it.
    fn sound(self, bell: &watch::Sender<Ring>) {
        bell.send_modify(|ring| {
            if self == Self::Ended {
                *ring = self;
            }
        });
    }
}

/// The jobs of a message, with a dot before each that has ended.
fn rings(payload: &str) -> impl Iterator<Item = (&str, Ring)> {
    let mut ring = Ring::Changed;
    payload.split(' ').filter_map(move |word| {
        if word == "." {
            ring = Ring::Ended;
            return None;
        }
        Some((word, std::mem::replace(&mut ring, Ring::Changed)))
    })
}

// === impl PoolBell ===

impl PoolBell {
    /// Returns when it rings for this listener. One that cannot look after all passes it on.
    pub async fn rung(&self) {
        let _listening = Listening::to(&self.0);
        self.0.bell.notified().await;
    }

    /// The jobs known to be on their way when it rang; nobody else is told of them.
    pub fn expected(&self) -> VecDeque<Expected> {
        std::mem::take(&mut *lock(&self.0.expected))
    }

    /// Rings for another one, or for whoever listens next.
    pub fn pass_on(&self) {
        self.0.bell.notify_one();
    }
}

// === impl Listening ===

impl<'a> Listening<'a> {
    fn to(pool: &'a Pool) -> Self {
        pool.listeners.fetch_add(1, Ordering::Relaxed);
        Self(pool)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl JobBell ===

impl JobBell {
    /// Returns when the job may have changed since the last call.
    pub async fn rung(&mut self) -> Ring {
        if self.rings.changed().await.is_err() {
            // The board is gone with its gateway; the listener's own clock goes on.
            std::future::pending::<()>().await;
        }
        *self.rings.borrow_and_update()
    }

    /// Returns when the job may have ended since the last call.
    pub async fn ended(&mut self) {
        while self.rung().await != Ring::Ended {}
    }
}

impl Drop for JobBell {
    fn drop(&mut self) {
        if let Some(board) = self.board.upgrade() {
            let mut jobs = lock(&board.jobs);
            // This one is still counted.
            if jobs.get(&self.job).is_some_and(|bell| bell.receiver_count() <= 1) {
                jobs.remove(&self.job);
            }
        }
    }
}

// === impl Revocations ===

impl Revocations {
    /// The next one; waits for ever when this listener was replaced.
    pub async fn next(&mut self) -> Revocation {
        match self.receiver.recv().await {
            Some(revocation) => revocation,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Revocations {
    fn drop(&mut self) {
        self.receiver.close();
        if let Some(board) = self.board.upgrade() {
            let mut workers = lock(&board.workers);
            if workers.get(&self.worker).is_some_and(mpsc::Sender::is_closed) {
                workers.remove(&self.worker);
            }
        }
    }
}

async fn listen(redis: Redis, board: Weak<Board>, prefixes: Vec<String>) {
    let delay = redis.reconnect_delay();
    while board.strong_count() > 0 {
        if let Err(error) = listen_once(&redis, &board, &prefixes).await {
            tracing::debug!(%error, "the doorbells' connection ended");
        }
        tokio::time::sleep(delay).await;
    }
}

async fn listen_once(redis: &Redis, board: &Weak<Board>, prefixes: &[String]) -> RedisResult<()> {
    let limit = Duration::from_millis(redis.config().connect_timeout_ms);
    let timed_out = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let mut links = redis.links();
    let Ok(line) = wait_up(&mut links, tokio::time::Instant::now() + limit).await else {
        return Ok(());
    };
    let connection = tokio::time::timeout(limit, line.client.get_async_pubsub())
        .await
        .map_err(timed_out)??;
    let (mut sink, mut messages) = connection.split();
    for prefix in prefixes {
        for channel in ["ev", "work", "rev", "reg"] {
            let subscribed = sink.subscribe(format!("{prefix}{channel}"));
            tokio::time::timeout(limit, subscribed)
                .await
                .map_err(timed_out)??;
        }
    }
    if let Some(board) = board.upgrade() {
        board.ring_all();
    }
    let response = Duration::from_millis(redis.config().response_timeout_ms);
    let mut pings = tokio::time::interval(Duration::from_millis(redis.config().ping_ms));
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return Ok(()) };
                let Some(board) = board.upgrade() else { return Ok(()) };
                let channel = message.get_channel_name().rsplit(':').next().unwrap_or("").to_owned();
                if let Ok(payload) = std::str::from_utf8(message.get_payload_bytes()) {
                    board.ring(&channel, payload);
                }
            }
            // The commands have moved, perhaps to another server: so do the bells.
            () = moved(&mut links, line.generation) => return Ok(()),
            _ = pings.tick() => {
                if board.strong_count() == 0 {
                    return Ok(());
                }
                tokio::time::timeout(response, sink.ping::<redis::Value>()).await.map_err(timed_out)??;
            }
        }
    }
}

/// Returns when there is another connection than `generation`.
async fn moved(links: &mut watch::Receiver<Link>, generation: u64) {
    let other = |link: &Link| matches!(link, Link::Up(line) if line.generation != generation);
    let _ = links.wait_for(other).await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[test]
    fn a_dot_stands_before_a_job_that_has_ended_and_for_no_other() {
        let told: Vec<_> = rings("a . b c . d").collect();
        let expected = [
            ("a", Ring::Changed),
            ("b", Ring::Ended),
            ("c", Ring::Changed),
            ("d", Ring::Ended),
        ];
        assert_eq!(told, expected);
        assert_eq!(rings(".").count(), 0);
    }

    #[tokio::test]
    async fn jobs_on_their_way_are_told_to_one_who_listens_and_kept_for_nobody_else() {
        let bells = Bells(Arc::new(Board {
            jobs: Mutex::default(),
            pools: Mutex::default(),
            workers: Mutex::default(),
            registry: watch::channel(()).0,
        }));
        let expect = |text: &str| {
            bells.expect("a", || Expected {
                texts: vec![text.to_owned()],
                ..Expected::default()
            });
        };
        let bell = bells.pool("a");
        expect("while nobody listens");
        let mut listening = pin!(bell.rung());
        assert!(poll!(listening.as_mut()).is_pending());
        // No more than there are listeners.
        expect("first");
        expect("second");
        bells.work_ahead("a");
        assert!(poll!(listening.as_mut()).is_ready());
        let told: Vec<_> = bell.expected().into_iter().flat_map(|job| job.texts).collect();
        assert_eq!(told, ["second"]);
        assert!(bell.expected().is_empty());
    }

    #[tokio::test]
    async fn an_end_is_not_drowned_by_the_rings_after_it() {
        let (bell, rings) = watch::channel(Ring::Changed);
        let mut listener = JobBell {
            job: "a".to_owned(),
            rings,
            board: Weak::new(),
        };
        Ring::Changed.sound(&bell);
        assert_eq!(listener.rung().await, Ring::Changed);
        for ring in [Ring::Changed, Ring::Ended, Ring::Changed] {
            ring.sound(&bell);
        }
        assert_eq!(listener.rung().await, Ring::Ended);
    }
}
