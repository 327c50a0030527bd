//! Does to a cluster what the schedule says, and puts it right again.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use muse_proto::v1::{DrainWorkerRequest, ListWorkersRequest};
use musectl::cluster::{ClusterError, PartState};
use nix::sys::signal::Signal;
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::time::sleep;

use super::{
    clients::Gateways,
    history::{Event, Log as _, now},
    proxy::Failpoint,
    schedule::{Fault, Promise, REDIS},
    server::limit_files,
    stage::{LEASE, Stage},
};

/// A part that is not up again after this is given up, and so is the run.
const PATIENCE: Duration = Duration::from_secs(120);
/// What recovery after Redis' return may take, and a little.
const REDIS_WINDOW: Duration = Duration::from_millis(5500);
/// What recovery after a worker's death may take above the lease, and a little.
const WORKER_WINDOW: Duration = Duration::from_millis(2200);
/// Redis writes what it answered within this time, also when it syncs each second and the disk is slow.
const LATEST_WRITE: Duration = Duration::from_secs(2);

/// See the module.
pub struct Injector {
    stage: Arc<Stage>,
    gateways: Gateways,
    /// One fault at a time for each part.
    busy: BTreeMap<String, tokio::sync::Mutex<()>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// Failpoints that are still to come before each has come again.
    failpoints: Mutex<(StdRng, Vec<Failpoint>)>,
    lengths: Arc<Mutex<VecDeque<Length>>>,
    sampler: tokio::task::JoinHandle<()>,
}

/// How long the log was, and when.
struct Length {
    at: u64,
    log: PathBuf,
    bytes: u64,
}

impl Injector {
    /// For a cluster; failpoints come in an order that the seed gives.
    pub fn new(stage: &Arc<Stage>, gateways: Gateways, seed: u64) -> Self {
        let busy = stage.cluster.parts().into_iter();
        let lengths = Arc::new(Mutex::new(VecDeque::new()));
        let sampler = tokio::spawn(sample_log(Arc::downgrade(stage), Arc::clone(&lengths)));
        Self {
            stage: Arc::clone(stage),
            gateways,
            busy: busy
                .map(|part| (part.to_owned(), tokio::sync::Mutex::default()))
                .collect(),
            counts: Mutex::default(),
            failpoints: Mutex::new((StdRng::seed_from_u64(seed), vec![])),
            lengths,
            sampler,
        }
    }

    /// How often each kind was done.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Faults that overlap; returns when every part is up again.
    pub async fn burst(&self, faults: &[(u64, Fault)], failpoints: usize) {
        self.arm(failpoints);
        let mut begin = Duration::ZERO;
        let all = faults.iter().map(|(delay_ms, fault)| {
            begin += Duration::from_millis(*delay_ms);
            async move {
                sleep(begin).await;
                self.inject(fault, false).await;
            }
        });
        futures::future::join_all(all.collect::<Vec<_>>()).await;
        self.settle().await;
    }

    /// One fault alone; returns when its recovery can be judged.
    pub async fn lone(&self, fault: &Fault) {
        let begun = now();
        self.inject(fault, true).await;
        let since = Duration::from_micros(now() - begun);
        if fault.part() == REDIS {
            let back = now();
            let deadline = Instant::now() + REDIS_WINDOW;
            while Instant::now() < deadline && !self.served_since(back) {
                sleep(Duration::from_millis(50)).await;
            }
        } else {
            sleep((LEASE + WORKER_WINDOW).saturating_sub(since)).await;
        }
        self.settle().await;
    }

    /// All parts are up; one that went down by itself is a breach.
    pub async fn settle(&self) {
        for part in self.stage.cluster.parts() {
            if let Ok(PartState::Dead { reason }) = self.stage.cluster.state(part) {
                let tail = self.stage.cluster.log_tail(part, 5).unwrap_or_default();
                let what = format!("{part} {reason} by itself: {tail}");
                self.stage.history.write(&Event::Wrong { what });
                self.start(part).await;
            }
            if let Err(error) = self.stage.cluster.wait_ready(part, PATIENCE).await {
                panic!("{part} does not come back: {error}");
            }
        }
    }

    /// Redis' clock as it was, and nothing armed.
    pub fn heal(&self) {
        self.stage.proxy.disarm();
        self.stage.server.shift_clock(0).expect("the clock's file");
        self.stage.history.write(&Event::Fault {
            kind: Fault::ClockJump { ms: 0 }.kind().to_owned(),
            target: REDIS.to_owned(),
            lone: false,
        });
    }

    fn arm(&self, count: usize) {
        let mut failpoints = self.failpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let (rng, deck) = &mut *failpoints;
        for _ in 0..count {
            if deck.is_empty() {
                *deck = self.stage.proxy.failpoints();
                deck.shuffle(rng);
            }
            if let Some(failpoint) = deck.pop() {
                self.stage.proxy.arm(failpoint);
            }
        }
    }

    async fn inject(&self, fault: &Fault, lone: bool) {
        let part = fault.part();
        let _alone = match self.busy.get(part) {
            Some(busy) => busy.lock().await,
            None => panic!("no part is called {part}"),
        };
        *self
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(fault.kind())
            .or_default() += 1;
        let begun = now();
        self.stage.history.write(&Event::Fault {
            kind: fault.kind().to_owned(),
            target: part.to_owned(),
            lone,
        });
        match fault {
            Fault::Kill { down_ms, .. } => {
                self.kill(part).await;
                ms(*down_ms).await;
                self.start(part).await;
            }
            Fault::Stop { ms: for_ms, .. } => {
                self.signal(part, Signal::SIGSTOP).await;
                ms(*for_ms).await;
                self.signal(part, Signal::SIGCONT).await;
            }
            Fault::Terminate { .. } => {
                self.stage.cluster.stop_part(part).await.expect("it is a part");
                self.start(part).await;
            }
            Fault::Drain { .. } => self.drain(part).await,
            Fault::TornLog { down_ms } => self.tear_log(*down_ms).await,
            Fault::CutLog { lost_ms } => self.cut_log(*lost_ms).await,
            Fault::DiskFull { ms } => self.fill_disk(*ms).await,
            Fault::MemoryShort { ms: for_ms } => {
                let used = self.stage.redis.info("used_memory").await.unwrap_or(1 << 20);
                self.limit_memory(used * 100 / 85).await;
                ms(*for_ms).await;
                self.limit_memory(0).await;
            }
            Fault::MemoryFull { ms: for_ms } => {
                self.limit_memory(1).await;
                ms(*for_ms).await;
                self.limit_memory(0).await;
            }
            Fault::ClockJump { ms } => self.stage.server.shift_clock(*ms).expect("the clock's file"),
            Fault::ScriptFlush => drop(self.stage.redis.ask(&["SCRIPT", "FLUSH"]).await),
        }
        if part == REDIS {
            let ends = matches!(
                fault,
                Fault::Kill { .. } | Fault::TornLog { .. } | Fault::DiskFull { .. }
            );
            if ends && self.stage.promise == Promise::Everysec {
                // The server puts off writing, too, while the disk is busy with what it has.
                let from = begun.saturating_sub(LATEST_WRITE.as_micros() as u64);
                self.stage.history.write(&Event::Unsynced { from, to: now() });
            }
            self.stage.history.write(&Event::RedisBack { lone });
        }
    }

    async fn kill(&self, part: &str) {
        match self.stage.cluster.kill(part).await {
            Ok(()) | Err(ClusterError::NotRunning { .. }) => {}
            Err(error) => panic!("{part} cannot be killed: {error}"),
        }
    }

    async fn signal(&self, part: &str, signal: Signal) {
        match self.stage.cluster.signal(part, signal).await {
            Ok(()) | Err(ClusterError::NotRunning { .. }) => {}
            Err(error) => panic!("{part} cannot be sent {signal}: {error}"),
        }
    }

    /// Until it is up. A gateway that finds no Redis for long ends, and is started again.
    async fn start(&self, part: &str) {
        let begun = Instant::now();
        while let Err(error) = self.stage.cluster.start_part(part).await {
            assert!(begun.elapsed() < PATIENCE, "{part} does not start: {error}");
            if part == REDIS {
                // A write that the kill cut in two, which nobody was told of.
                self.repair(&error.to_string()).await;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the handbook says of a log whose end was cut off.
    async fn repair(&self, why: &str) {
        let (log, _) = self.stage.log_file().expect("a log");
        match self.stage.server.repair(&log, self.stage.folder()).await {
            Ok(_) => {}
            Err(error) => panic!("Redis does not start ({why}), and its log cannot be mended: {error}"),
        }
    }

    async fn drain(&self, part: &str) {
        let named = format!("{part}-");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let mut admin = self.gateways.admin();
            let workers = admin.list_workers(ListWorkersRequest {}).await;
            let ids = workers.map_or(vec![], |workers| workers.into_inner().workers);
            for worker in ids.iter().filter(|worker| worker.id.starts_with(&named)) {
                let worker_id = worker.id.clone();
                // Those that are gone already are not found.
                let _ = admin.drain_worker(DrainWorkerRequest { worker_id }).await;
            }
            let state = self.stage.cluster.state(part).expect("it is a part");
            if state.is_down() {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        // One that could not be told, with all that goes on, goes the other way.
        self.stage.cluster.stop_part(part).await.expect("it is a part");
        self.start(part).await;
    }

    async fn tear_log(&self, down_ms: u64) {
        self.kill(REDIS).await;
        let (path, _) = self.stage.log_file().expect("a log");
        let mut log = fs::OpenOptions::new().append(true).open(path).expect("the log");
        log.write_all(b"*3\r\n$3\r\nSET\r\n$9\r\nmuse:{s0")
            .expect("half a command");
        drop(log);
        ms(down_ms).await;
        let Err(refused) = self.stage.cluster.start_part(REDIS).await else {
            let what = "Redis takes a log with half a command at its end for whole".to_owned();
            self.stage.history.write(&Event::Wrong { what });
            return;
        };
        self.repair(&refused.to_string()).await;
        self.start(REDIS).await;
    }

    /// What was written since `lost_ms` before the kill is gone, as if the disk had never got it.
    async fn cut_log(&self, lost_ms: u64) {
        let cut_at = now().saturating_sub(lost_ms * 1000);
        self.kill(REDIS).await;
        let Some((path, length)) = self.stage.log_file() else {
            panic!("Redis has no log")
        };
        let known = {
            let lengths = self.lengths.lock().unwrap_or_else(PoisonError::into_inner);
            let mut known = lengths.iter().rev();
            known
                .find(|known| known.at <= cut_at && known.log == path)
                .map(|known| (known.at, known.bytes))
        };
        // One that was begun since then is left whole.
        let (at, kept) = known.map_or((cut_at, length), |(at, kept)| (at, kept.min(length)));
        let log = fs::OpenOptions::new().write(true).open(path).expect("the log");
        log.set_len(kept).expect("the log is cut");
        drop(log);
        self.start(REDIS).await;
        let from = at.saturating_sub(LATEST_WRITE.as_micros() as u64);
        self.stage.history.write(&Event::Unsynced { from, to: now() });
    }

    async fn fill_disk(&self, for_ms: u64) {
        let Ok(pid) = self.stage.cluster.pid(REDIS) else {
            return self.start(REDIS).await;
        };
        let (_, length) = self.stage.log_file().expect("a log");
        limit_files(pid, Some(length + 256)).await.expect("prlimit");
        ms(for_ms).await;
        // A server that syncs every write ends at the first that fails; one that syncs each second refuses writes.
        // One that is gone meanwhile has no limit to be lifted.
        let _ = limit_files(pid, None).await;
        loop {
            match self.stage.cluster.state(REDIS) {
                Ok(PartState::Running(_)) if self.writes().await => return,
                Ok(PartState::Running(_)) => ms(50).await,
                _ => return self.start(REDIS).await,
            }
        }
    }

    /// Whether Redis takes a write now.
    async fn writes(&self) -> bool {
        self.stage
            .redis
            .ask(&["SET", "probe", "x", "PX", "1"])
            .await
            .is_ok()
    }

    async fn limit_memory(&self, bytes: u64) {
        // A server that is started anew has no limit.
        let _ = self
            .stage
            .redis
            .ask(&["CONFIG", "SET", "maxmemory", &bytes.to_string()])
            .await;
    }

    /// Whether a client and a worker were served.
    fn served_since(&self, since: u64) -> bool {
        let history = &self.stage.history;
        history.has_since(since, |event| matches!(event, Event::Accepted { .. }))
            && history.has_since(since, |event| {
                matches!(event, Event::Granted { .. } | Event::Completed { .. })
            })
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.sampler.abort();
    }
}

async fn ms(ms: u64) {
    sleep(Duration::from_millis(ms)).await;
}

/// Where the log ended a moment ago: what a crash of the machine would have left of it.
async fn sample_log(stage: std::sync::Weak<Stage>, lengths: Arc<Mutex<VecDeque<Length>>>) {
    while let Some(stage) = stage.upgrade() {
        let at = now();
        if let Some((log, bytes)) = stage.log_file() {
            let mut lengths = lengths.lock().unwrap_or_else(PoisonError::into_inner);
            lengths.push_back(Length { at, log, bytes });
            while lengths.len() > 500 {
                lengths.pop_front();
            }
        }
        drop(stage);
        sleep(Duration::from_millis(20)).await;
    }
}
