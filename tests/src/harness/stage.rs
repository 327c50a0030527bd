//! The cluster that faults are done to: gateways behind the proxy, no-op workers, real ones beside them if asked.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use musectl::cluster::{LocalCluster, OtherWorkers, Override, Programs, RestartPolicy, Sizes};
use tempfile::TempDir;

use super::{
    history::History,
    proxy::Proxy,
    schedule::{Parts, Promise, REDIS},
    server::{Direct, Wrapped},
};
use crate::{metrics, programs, start, tiny_bundle};

/// The header in which clients say whose they are, as a proxy in front would.
pub const TENANT_HEADER: &str = "x-muse-tenant";
/// Of every lease.
pub const LEASE: Duration = Duration::from_millis(2000);
/// Jobs that may wait in a pool.
pub const MAX_WAITING: u64 = 2000;
/// A part that does not start for so long never will.
const START: Duration = Duration::from_secs(90);
/// Jobs of a no-op worker at once.
const ROWS: i64 = 4;
const NOOP_BASE: usize = 3;
const NOOP_SUPERRES: usize = 3;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub promise: Promise,
    pub gateways: usize,
    /// Workers that compute, one of each stage, and an encoder.
    pub real: bool,
}

/// A running cluster, and all ways to it.
#[derive(Debug)]
pub struct Stage {
    pub cluster: LocalCluster,
    pub proxy: Proxy,
    pub history: History,
    pub server: Wrapped,
    pub redis: Direct,
    pub promise: Promise,
    folder: TempDir,
}

impl Stage {
    /// Starts everything.
    pub async fn start(wish: Wish) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("muse-faults-")
            .tempdir()
            .expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let history = History::default();
        let proxy = Proxy::listen(&path("proxy.sock"), history.clone()).expect("a socket");
        let programs = Programs::beside(&programs::folder()).expect("the services are built");
        let server = Wrapped::around(&programs.redis_server, folder.path())
            .await
            .expect("a wrapper");

        let mut options = crate::options(tiny_bundle());
        options.restart = RestartPolicy::Never;
        options.limits.start = START;
        options.limits.stop = Duration::from_secs(15);
        options.directory = Some(path("cluster"));
        options.redis_socket = Some(path("redis.sock"));
        options.programs.redis_server = server.program.clone();
        let real = usize::from(wish.real);
        options.sizes = Sizes {
            gateways: wish.gateways,
            encoders: real,
            base_workers: real,
            superres_workers: real,
        };
        options.other_workers = [("base", NOOP_BASE), ("superres", NOOP_SUPERRES)]
            .map(|(stage, count)| noop_workers(stage, count, &path("workers.jsonl")))
            .into();
        options
            .overrides
            .extend(overrides(wish.promise, &path("proxy.sock")));
        proxy.lead_to(&path("redis.sock"));
        let redis = Direct::new(path("redis.sock"));
        let stage = Self {
            cluster: start(options).await,
            proxy,
            history,
            server,
            redis,
            promise: wish.promise,
            folder,
        };
        if wish.promise == Promise::Everysec {
            stage.sync_each_second().await;
        }
        stage
    }

    /// The parts by what they are.
    pub fn parts(&self) -> Parts {
        let all = self.cluster.parts();
        let of = |prefix: &[&str]| {
            all.iter()
                .filter(|name| prefix.iter().any(|prefix| name.starts_with(prefix)))
                .map(|name| (*name).to_owned())
                .collect()
        };
        Parts {
            gateways: of(&["gateway-"]),
            workers: of(&["noop-"]),
            slow_workers: of(&["base-", "superres-"]),
        }
    }

    /// For scratch files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file that Redis appends to, and its length.
    pub fn log_file(&self) -> Option<(PathBuf, u64)> {
        let entries = fs::read_dir(self.log_folder()).ok()?;
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_string_lossy().into_owned();
                // appendonly.aof.<n>.incr.aof
                let number: u64 = name.strip_suffix(".incr.aof")?.rsplit('.').next()?.parse().ok()?;
                let length = fs::metadata(&path).ok()?.len();
                Some((number, path, length))
            })
            .max()
            .map(|(_, path, length)| (path, length))
    }

    /// A figure summed over all gateways' metrics.
    pub async fn metric(&self, name: &str) -> f64 {
        metrics::sum(&self.cluster, "gateway-", name).await
    }

    /// Takes the workers' own records into the history.
    pub fn collect(&self) {
        self.history.read(&self.folder.path().join("workers.jsonl"));
    }

    fn log_folder(&self) -> PathBuf {
        self.cluster.directory().join("valkey/appendonlydir")
    }

    /// The cluster's own configuration syncs always.
    async fn sync_each_second(&self) {
        let path = self.cluster.directory().join("configuration/valkey.conf");
        let text = fs::read_to_string(&path).expect("the server's configuration");
        let changed = text.replace("appendfsync always", "appendfsync everysec");
        assert_ne!(changed, text, "{text}");
        fs::write(&path, changed).expect("written");
        self.cluster.kill(REDIS).await.expect("it ran");
        self.cluster.start_part(REDIS).await.expect("it starts");
    }
}

fn noop_workers(stage: &str, count: usize, history: &Path) -> OtherWorkers {
    let mut settings = toml::Table::new();
    settings.insert("rows".to_owned(), ROWS.into());
    settings.insert("history".to_owned(), history.to_string_lossy().as_ref().into());
    OtherWorkers {
        name: format!("noop-{stage}"),
        program: programs::folder().join("muse-noop-worker"),
        stage: stage.to_owned(),
        count,
        settings,
    }
}

fn overrides(promise: Promise, proxy: &Path) -> Vec<Override> {
    let durability = match promise {
        Promise::Always => "always",
        Promise::Everysec => "everysec",
    };
    [
        format!("gateway.redis.url=\"unix://{}\"", proxy.display()),
        format!("gateway.queue.durability={durability}"),
        format!("gateway.queue.lease_ms={}", LEASE.as_millis()),
        format!("gateway.queue.max_waiting={MAX_WAITING}"),
        format!("gateway.identity.tenant_header={TENANT_HEADER}"),
        "gateway.redis.ping_ms=300".to_owned(),
        "gateway.hub.heartbeat_ms=300".to_owned(),
        "gateway.queue.full_retry_ms=500".to_owned(),
        "gateway.queue.backoff_base_ms=50".to_owned(),
        "gateway.queue.backoff_cap_ms=300".to_owned(),
        // Workers are killed so often here that a plain job may meet many: that it ends as poison has tests of its own.
        "gateway.queue.crashes=1000".to_owned(),
        "gateway.drain.timeout_seconds=2".to_owned(),
        "worker.drain.timeout_seconds=2".to_owned(),
        "gateway.watch.reread_ms=1000".to_owned(),
    ]
    .iter()
    .map(|text| text.parse().expect("an override"))
    .collect()
}
