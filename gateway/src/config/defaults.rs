//! What holds where an operator says nothing.

use std::net::SocketAddr;

use muse_service::config::{Drain, GrpcServer, Ops, Process, Telemetry};

use super::{
    Config, Durability, Hub, Identity, Limits, Models, Queue, Redis, Results, Submit, Tenant, Watch,
};

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc: GrpcServer::on_port(DEFAULT_PORT),
            identity: Identity::default(),
            ops: Ops {
                listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT + 1)),
            },
            telemetry: Telemetry::default(),
            drain: Drain::default(),
            process: Process::default(),
            redis: Redis::default(),
            queue: Queue::default(),
            limits: Limits::default(),
            hub: Hub::default(),
            results: Results::default(),
            models: Models::default(),
            watch: Watch::default(),
            submit: Submit::default(),
        }
    }
}

const DEFAULT_PORT: u16 = 7700;

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            password_file: None,
            sentinels: Vec::new(),
            cluster_nodes: Vec::new(),
            service_name: "mymaster".to_owned(),
            sentinel_password_file: None,
            sentinel_check_ms: 5_000,
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: "muse".to_owned(),
            connect_timeout_ms: 2_000,
            response_timeout_ms: 2_000,
            retry_ms: 2_000,
            reconnect_delay_ms: 100,
            ping_ms: 1_000,
            startup_timeout_ms: 15_000,
            memory_share: 0.7,
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            durability: Durability::Always,
            replicas: 0,
            replicas_on_disk: false,
            confirm_timeout_ms: 2_000,
            shards: 1,
            lease_ms: 10_000,
            attempts: 4,
            crashes: 3,
            backoff_base_ms: 1_000,
            backoff_cap_ms: 60_000,
            priority_boost_ms: 60_000,
            max_waiting: 1_000_000,
            max_bytes: 0,
            rate: 0.0,
            burst: 0,
            full_retry_ms: 5_000,
            tenant: Tenant::default(),
            call_items: 64,
            call_bytes: 1024 * 1024,
            calls_in_flight: 2,
            reap_ms: 500,
            reap_batch: 100,
            keep_done_seconds: 24 * 3600,
            keep_dead_seconds: 7 * 24 * 3600,
            history: 20,
            audit_patience_ms: 60_000,
            housekeeping_ms: 2_000,
        }
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self {
            weight: 1.0,
            max_running: 0,
            max_queued: 0,
            max_bytes: 0,
            rate: 0.0,
            burst: 0,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prompt_characters: 2_000,
            negative_prompt_characters: 2_000,
            count: 16,
            steps: 256,
            guidance: 50.0,
            temperature: 10.0,
            choice_temperature: 100.0,
            top_k: 65_536,
            labels: 16,
            label_name_characters: 64,
            label_characters: 256,
            idempotency_key_characters: 128,
            min_timeout_ms: 1_000,
            max_timeout_seconds: 24 * 3600,
            default_timeout_seconds: 3600,
            page_size: 200,
            default_page_size: 50,
            page_scan: 2_000,
            dead_batch: 10_000,
            reason_characters: 256,
            control_message_bytes: 64 * 1024,
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            heartbeat_ms: 1_000,
            worker_expiry_ms: 5_000,
            hello_timeout_ms: 10_000,
            poll_ms: 1_000,
            claim_batch: 16,
            reports_in_flight: 64,
            outbox: 64,
            send_timeout_ms: 10_000,
            report_retry_ms: 250,
            drain_reports_ms: 3_000,
            message_bytes: 64 * 1024 * 1024,
        }
    }
}

impl Default for Results {
    fn default() -> Self {
        Self {
            store: "redis".to_owned(),
            endpoint: None,
            region: None,
            account: None,
            credentials_file: None,
            ca_file: None,
            insecure_allow_http: false,
            connect_timeout_ms: 2_000,
            timeout_ms: 5_000,
            retry_ms: 2_000,
            startup_timeout_ms: 15_000,
            concurrency: 8,
            picture_bytes: 32 * 1024 * 1024,
            recent_bytes: 16 * 1024 * 1024,
            backlog: 10_000,
            sweep_seconds: 6 * 3600,
            sweep_batch: 500,
            grace_seconds: 3600,
        }
    }
}

impl Default for Models {
    fn default() -> Self {
        Self {
            default: None,
            refresh_ms: 1_000,
            retry_ms: 2_000,
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            reread_ms: 5_000,
            settle_ms: 20,
            outage_ms: 30_000,
            outbox: 16,
        }
    }
}

impl Default for Submit {
    fn default() -> Self {
        Self {
            in_flight: 1024,
            accepting: 128,
            delivering: 4,
            outbox: 16,
        }
    }
}
