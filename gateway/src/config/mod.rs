//! What an operator can set. Every limit of the gateway is a number here.

mod check;
mod defaults;

use std::path::PathBuf;

use muse_service::{
    config::{ConfigError, Drain, GrpcServer, Ops, Process, ServiceConfig, Telemetry},
    identity::Authentication,
};
use serde::{Deserialize, Serialize};

/// The gateway's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The public and the workers' gRPC port.
    pub grpc: GrpcServer,
    /// Who calls.
    pub identity: Identity,
    /// Metrics and probes.
    pub ops: Ops,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// The end of the process.
    pub drain: Drain,
    /// Where it runs.
    pub process: Process,
    /// The Redis (or Valkey) server.
    pub redis: Redis,
    /// The queue in it.
    pub queue: Queue,
    /// What a request may ask for.
    pub limits: Limits,
    /// Where workers attach.
    pub hub: Hub,
    /// Finished pictures.
    pub results: Results,
    /// The models served.
    pub models: Models,
    /// Watched jobs.
    pub watch: Watch,
    /// Streams of submissions.
    pub submit: Submit,
}

/// Who calls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    /// A header in which a proxy in front, which has checked who calls, names the tenant. Absent: everyone is `default`.
    /// It proves nothing: set it only where nobody but that proxy and the workers reaches the port.
    pub tenant_header: Option<String>,
}

/// The connection to Redis.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://user@host:port/db`, `rediss://…` for TLS, or `unix:///path`. Without a password: see `password_file`. With
    /// `sentinels`, its host and port are not used; its scheme, user and database hold for the server that they name.
    pub url: String,
    /// A file with the password alone; whitespace around it is dropped.
    pub password_file: Option<PathBuf>,
    /// Sentinels that know the primary, as `redis://user@host:26379` or `rediss://…`; empty: it is at `url`.
    pub sentinels: Vec<String>,
    /// Nodes of a Redis Cluster, as `redis://host:port` or `rediss://…`; some are enough, any of them knows the others. Of `url`
    /// then only the scheme and the user count. Empty: no cluster.
    pub cluster_nodes: Vec<String>,
    /// What the Sentinels call the primary.
    pub service_name: String,
    /// A file with the Sentinels' password alone, where they have one.
    pub sentinel_password_file: Option<PathBuf>,
    /// While all is well, the Sentinels are asked this often whether another server is the primary now.
    pub sentinel_check_ms: u64,
    /// The certificates (PEM) that servers and Sentinels are trusted by; absent: the machine's own.
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate (PEM), where the servers want one; with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file` (PEM).
    pub key_file: Option<PathBuf>,
    /// What every key begins with; several clusters can share a server.
    pub prefix: String,
    /// For a new connection, its checks included.
    pub connect_timeout_ms: u64,
    /// A command unanswered for this long breaks the connection; a new one is made.
    pub response_timeout_ms: u64,
    /// A call waits this long for a broken connection to be replaced before it fails with UNAVAILABLE.
    pub retry_ms: u64,
    /// Between attempts to connect.
    pub reconnect_delay_ms: u64,
    /// The connections are pinged, and the memory is read, this often.
    pub ping_ms: u64,
    /// At start the gateway waits this long for the server to answer.
    pub startup_timeout_ms: u64,
    /// Submissions are refused once this share of the server's maxmemory is used, so that completions always fit.
    /// No effect on a server without maxmemory.
    pub memory_share: f64,
}

/// What an accepted job survives; checked against the server at every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Accepted means on disk: `appendonly yes`, `appendfsync always`.
    Always,
    /// Accepted means on disk, and what follows may lose a second: `appendonly yes`, `appendfsync everysec` is enough. An
    /// acceptance waits for the next write to the disk, up to a second (WAITAOF). Redis 7.2 or later.
    Synced,
    /// A crash of the server may lose the last second: `appendonly yes`, `appendfsync everysec` or `always`.
    Everysec,
    /// A restart of the server may lose everything. For tests.
    None,
    /// The server does not tell (a managed one that refuses CONFIG): the operator vouches for it.
    Unverified,
}

/// The queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Queue {
    /// What an accepted job must survive on the primary.
    pub durability: Durability,
    /// Replicas that must have a job before it is accepted (WAIT). The primary must have as many at start.
    pub replicas: u32,
    /// They must have it on disk (WAITAOF). Redis 7.2 or later, and `appendonly yes` on the replicas.
    pub replicas_on_disk: bool,
    /// What `durability = "synced"` and `replicas` wait for must come within this time, or the client is told that the job
    /// is not confirmed.
    pub confirm_timeout_ms: u64,
    /// Key groups that tenants are spread over, each on one node of a Redis Cluster; more than 1 only helps there. Raising it leaves earlier jobs
    /// where they are, lowering it hides those of the shards that went.
    pub shards: u16,
    /// A lease that is not renewed for this long is given to another worker.
    pub lease_ms: u64,
    /// Attempts of a stage, the first included, before a job fails.
    pub attempts: u32,
    /// Workers that may be lost with a job before it is dead as poison.
    pub crashes: u32,
    /// Full-jitter backoff: the delay before attempt n+1 is uniform in 0 ..= min(cap, base * 2^(n-1)).
    pub backoff_base_ms: u64,
    /// See `backoff_base_ms`.
    pub backoff_cap_ms: u64,
    /// How much earlier than it arrived a job of high priority is taken to have arrived; of low priority, later.
    pub priority_boost_ms: u64,
    /// Jobs that may wait in a pool; more are refused with UNAVAILABLE. This and the next three hold for each shard.
    pub max_waiting: u64,
    /// Bytes that the requests and tokens of live jobs may take up; 0: no limit.
    pub max_bytes: u64,
    /// Submissions a second; 0: no limit.
    pub rate: f64,
    /// Submissions at once when none came lately; 0: those of a second.
    pub burst: u64,
    /// What a refused client is told to wait, where the limit itself does not say it.
    pub full_retry_ms: u64,
    /// What a tenant gets that has no settings of its own.
    pub tenant: Tenant,
    /// Submissions, and results, that wait at the same time share calls of their scripts: at most so many a call, 1 to 100.
    pub call_items: usize,
    /// Bytes of a call's submissions or results, about, so that no call keeps the server for long; a larger one goes alone.
    pub call_bytes: usize,
    /// Such calls of a script under way at once, for each shard. While as many are, the next ones gather.
    pub calls_in_flight: usize,
    /// Expired leases, delays and deadlines are looked for this often.
    pub reap_ms: u64,
    /// Jobs moved by one call of the reaper, 1 to 100.
    pub reap_batch: u32,
    /// Succeeded and cancelled jobs are kept this long.
    pub keep_done_seconds: u64,
    /// Failed jobs are kept this long for an operator.
    pub keep_dead_seconds: u64,
    /// Failures of a job that are kept for an operator; the latest.
    pub history: u32,
    /// An audit that makes no step for this long counts as given up.
    pub audit_patience_ms: u64,
    /// Old jobs are looked for, and the queue's metrics are renewed, this often.
    pub housekeeping_ms: u64,
}

/// What a tenant gets that has no settings of its own (`musectl tenant set`). 0 in a limit: no limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenant {
    /// Share of the work, against the other tenants' weights.
    pub weight: f64,
    /// Jobs leased at once, all pools together.
    pub max_running: u64,
    /// Jobs queued or delayed at once.
    pub max_queued: u64,
    /// Bytes that the requests and tokens of its live jobs may take up.
    pub max_bytes: u64,
    /// Submissions a second.
    pub rate: f64,
    /// Submissions at once when none came lately; 0: those of a second.
    pub burst: u64,
}

/// Limits of a request, checked before anything is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Characters of a prompt.
    pub prompt_characters: usize,
    /// Characters of a negative prompt.
    pub negative_prompt_characters: usize,
    /// Pictures of a job.
    pub count: u32,
    /// Steps of a stage.
    pub steps: u32,
    /// The paper's t.
    pub guidance: f32,
    /// Of the tokens' distribution.
    pub temperature: f32,
    /// Of the confidence noise.
    pub choice_temperature: f32,
    /// Tokens kept by the top-k filter.
    pub top_k: u32,
    /// Labels of a job.
    pub labels: usize,
    /// Characters of a label's name.
    pub label_name_characters: usize,
    /// Characters of a label's text.
    pub label_characters: usize,
    /// Characters of an idempotency key.
    pub idempotency_key_characters: usize,
    /// The shortest timeout a request may set.
    pub min_timeout_ms: u64,
    /// The longest timeout a request may set.
    pub max_timeout_seconds: u64,
    /// The timeout of a request that sets none.
    pub default_timeout_seconds: u64,
    /// Jobs on a page of ListJobs, at most.
    pub page_size: u32,
    /// Jobs on a page when the request is silent.
    pub default_page_size: u32,
    /// Jobs that one ListJobs call looks at when it filters by state.
    pub page_scan: u32,
    /// Dead jobs that one call retries or forgets at most.
    pub dead_batch: u32,
    /// Characters of the reason for a pause.
    pub reason_characters: usize,
    /// Bytes of a request of the public services.
    pub control_message_bytes: usize,
}

/// Where workers attach.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hub {
    /// Workers send a heartbeat this often; well below `queue.lease_ms`.
    pub heartbeat_ms: u64,
    /// A worker silent for this long is not counted any more.
    pub worker_expiry_ms: u64,
    /// A worker must say who it is within this time.
    pub hello_timeout_ms: u64,
    /// Without a doorbell, work is looked for this often.
    pub poll_ms: u64,
    /// Leases taken by one call, 1 to 100.
    pub claim_batch: u32,
    /// Reports of one worker handled at once; more wait in the stream.
    pub reports_in_flight: usize,
    /// Messages to one worker that may wait to be sent.
    pub outbox: usize,
    /// A worker that does not read for this long is dropped.
    pub send_timeout_ms: u64,
    /// Reports that Redis could not take are tried again after this long.
    pub report_retry_ms: u64,
    /// At a drain, reports in progress have this long to be acknowledged.
    pub drain_reports_ms: u64,
    /// Bytes of a worker's message; the pictures of a whole job must fit.
    pub message_bytes: usize,
}

/// Finished pictures.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Results {
    /// Where they are kept: `redis`, `file:///folder` (that every gateway sees), `s3://bucket/prefix`, `gs://bucket/prefix`
    /// or `az://container/prefix`. All gateways of a cluster must say the same, and no other cluster.
    pub store: String,
    /// The bucket's address where it is not the cloud's own, such as `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// The bucket's region, of S3. Absent: from `AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// The storage account, of Azure. Absent: from `AZURE_STORAGE_ACCOUNT_NAME`.
    pub account: Option<String>,
    /// Credentials: of S3 a file in the format of `~/.aws/credentials`, of Google the JSON of a service account, of Azure the
    /// account's key alone. Absent: from the environment and the machine, as each cloud's own tools find them.
    pub credentials_file: Option<PathBuf>,
    /// The certificates (PEM) that the bucket's server is trusted by; absent: the machine's own.
    pub ca_file: Option<PathBuf>,
    /// Without TLS only loopback is spoken to, unless this says that the network itself is trusted.
    pub insecure_allow_http: bool,
    /// For a new connection to the bucket's server.
    pub connect_timeout_ms: u64,
    /// One picture must be written, read or deleted within this time; at most half of `queue.lease_ms`, because a report
    /// that waits may hold up a worker's heartbeats.
    pub timeout_ms: u64,
    /// While the store does not take pictures, workers and clients are told to come again after this long.
    pub retry_ms: u64,
    /// At start the gateway waits this long for the store to answer.
    pub startup_timeout_ms: u64,
    /// Pictures of one job written at once, and jobs whose pictures are deleted at once.
    pub concurrency: usize,
    /// Bytes of one picture; a larger one fails its job.
    pub picture_bytes: usize,
    /// Bytes of pictures kept in memory for those who watch their jobs over the gateway that the worker reported to; the
    /// others, and who comes later, read the store. 0: all read it.
    pub recent_bytes: usize,
    /// Forgotten jobs whose pictures wait to be deleted; those of more are left to the sweep.
    pub backlog: usize,
    /// The store is searched for pictures that no job refers to this often; 0: never.
    pub sweep_seconds: u64,
    /// Objects looked at in each round of a sweep (a round: `queue.housekeeping_ms`).
    pub sweep_batch: usize,
    /// Added to `queue.keep_done_seconds`: pictures outlive the job that names them, never the other way round.
    pub grace_seconds: u64,
}

/// The models served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Models {
    /// What a request without a model means. Absent: the only one there is.
    pub default: Option<String>,
    /// The registry's copy in memory is renewed when it is older than this.
    pub refresh_ms: u64,
    /// What a client is told to wait while no worker has attached yet.
    pub retry_ms: u64,
}

/// Watched jobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// Without a doorbell, a watched job is read again this often.
    pub reread_ms: u64,
    /// Changes of a watched job within this time are told as one, its end at once; 0: each as soon as it is seen.
    pub settle_ms: u64,
    /// A watch outlives an outage of Redis of this length.
    pub outage_ms: u64,
    /// Events of one watch that may wait to be sent.
    pub outbox: usize,
}

/// Streams of submissions, SubmitJobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Submit {
    /// Items of one stream in progress: being accepted, or followed to their job's end. More stay unread.
    pub in_flight: u32,
    /// Of those, items being accepted at once: so many scripts in flight share one fsync of the server's.
    pub accepting: usize,
    /// Of those, jobs whose pictures are being sent at once.
    pub delivering: usize,
    /// Answers of one stream that may wait to be sent, each with a picture at most.
    pub outbox: usize,
}

// === impl Identity ===

impl Identity {
    /// How callers are told apart.
    ///
    /// # Errors
    /// When the header's name is none.
    pub fn authentication(&self) -> Result<Authentication, ConfigError> {
        let Some(name) = &self.tenant_header else {
            return Ok(Authentication::None);
        };
        let header = name.parse().map_err(|_| {
            ConfigError::invalid("identity.tenant_header", format!("{name:?} is no header's name"))
        })?;
        Ok(Authentication::Proxied(header))
    }
}

// === impl Config ===

impl ServiceConfig for Config {
    fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn drain(&self) -> &Drain {
        &self.drain
    }

    fn process(&self) -> &Process {
        &self.process
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check::all(self)
    }
}
