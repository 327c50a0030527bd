//! A Redis Cluster of real nodes: each shard's jobs are on the node that has its slot, also when the slot moves or the node
//! dies.

use std::collections::BTreeSet;

use muse_gateway::{
    Config,
    config::Durability,
    connection::{Redis, StartupError, Unfit},
    jobs::{JobId, Nonce},
    queue::{Cancellation, NewJob, Queue, Submission},
};
use muse_proto::v1::{AuditRequest, GenerationRequest, JobState, Stage, audit_response::Event};
use muse_service::Tenant;
use prost::Message as _;

use crate::{
    nodes::{Node, free_port},
    sentinel::work,
    support::{
        cluster::{self, RunningGateway},
        model,
        redis_server::RedisServer,
        scene::{get, next, submit, until_state, watch},
        soon, until,
        worker::FakeWorker,
    },
};

const SHARDS: u16 = 8;
const SLOTS: usize = 16_384;

/// Nodes that know each other; the first three have the slots.
struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(node().await);
        }
        let cluster = Self { nodes };
        for (index, node) in cluster.nodes.iter().enumerate() {
            let (first, last) = (index * SLOTS / 3, (index + 1) * SLOTS / 3 - 1);
            let epoch = (index + 1).to_string();
            let _: String = node.server.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
            let range = ["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()];
            let _: String = node.server.ask(&range).await;
        }
        for node in &cluster.nodes[1..] {
            cluster.meet(node).await;
        }
        cluster.agree().await;
        cluster
    }

    /// A replica of one of the nodes.
    async fn replicate(&mut self, index: usize) {
        let replica = node().await;
        self.meet(&replica).await;
        self.nodes.push(replica);
        self.agree().await;
        let id = self.id(index).await;
        let replica = &self.nodes[self.nodes.len() - 1];
        let _: String = replica.server.ask(&["CLUSTER", "REPLICATE", &id]).await;
        replica.follows().await;
        // The others must know it for a replica before they let it take over.
        until("all to know the replica", async || {
            for node in &self.nodes {
                let known: String = node.server.ask(&["CLUSTER", "NODES"]).await;
                if !known.contains("slave") {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    async fn meet(&self, node: &Node) {
        let [port, bus] = [node.port, node.bus].map(|port| port.to_string());
        let _: String = self.nodes[0]
            .server
            .ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
            .await;
    }

    async fn agree(&self) {
        let known = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
        for node in &self.nodes {
            until("the nodes to agree", async || {
                let info: String = node.server.ask(&["CLUSTER", "INFO"]).await;
                (info.contains("cluster_state:ok") && info.contains(&known)).then_some(())
            })
            .await;
        }
    }

    async fn id(&self, index: usize) -> String {
        self.nodes[index].server.ask(&["CLUSTER", "MYID"]).await
    }

    /// The slot of a group of keys, and the node that has it.
    async fn owner(&self, tag: &str) -> (usize, usize) {
        let key = format!("{{{tag}}}");
        let slot: usize = self.nodes[0].server.ask(&["CLUSTER", "KEYSLOT", &key]).await;
        let owner = (0..3).find(|index| ((index * SLOTS / 3)..((index + 1) * SLOTS / 3)).contains(&slot));
        (slot, owner.unwrap())
    }

    /// How many keys of this kind each node has.
    async fn keys(&self, pattern: &str) -> Vec<usize> {
        let mut counts = Vec::new();
        for node in &self.nodes {
            let keys: Vec<String> = node.server.ask(&["KEYS", pattern]).await;
            counts.push(keys.len());
        }
        counts
    }

    /// A gateway's configuration. It is told of one node that is not the owner of everything.
    fn config(&self) -> Config {
        let mut config = cluster::config(&self.nodes[0].server);
        config.redis.url = "redis://ignored:1".to_owned();
        config.redis.cluster_nodes = [2, 1]
            .map(|index: usize| format!("redis://127.0.0.1:{}", self.nodes[index].port))
            .to_vec();
        config.redis.retry_ms = 5_000;
        config.queue.durability = Durability::Everysec;
        config.queue.shards = SHARDS;
        // Whoever relies on bells that do not ring would wait in vain.
        config.watch.reread_ms = 600_000;
        config
    }

    async fn queue(&self) -> Queue {
        let config = self.config();
        let redis = Redis::open(&config.redis, &config.queue).await.unwrap();
        Queue::new(redis, &config.redis.prefix, config.queue)
    }
}

async fn node() -> Node {
    let bus = free_port();
    let port = bus.to_string();
    let settings = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-port",
        &port,
    ];
    let mut node = Node::start(None, &settings).await;
    node.bus = bus;
    node
}

fn job(queue: &Queue, tenant: &Tenant) -> NewJob {
    NewJob {
        id: JobId::new(queue.keys().shard_of(tenant)),
        tenant: tenant.clone(),
        model: "tiny".to_owned(),
        stages: vec![Stage::Base],
        rows: 1,
        boost_ms: 0,
        timeout_ms: 600_000,
        request: GenerationRequest::default().encode_to_vec(),
        traceparent: String::new(),
        idempotency: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_spread_over_the_nodes_and_everything_finds_them_there() {
    let cluster = Cluster::start().await;
    let queue = cluster.queue().await;
    queue.check_schema().await.unwrap();
    let mut ids = Vec::new();
    for number in 0..24 {
        let tenant = Tenant::new(&format!("tenant-{number}")).unwrap();
        let job = job(&queue, &tenant);
        assert_eq!(queue.submit(&job).await.unwrap(), Submission::Created(job.id));
        ids.push((job.id, tenant));
    }
    let jobs = cluster.keys("muse:*:j:*").await;
    assert_eq!(jobs.iter().sum::<usize>(), 24, "{jobs:?}");
    assert!(
        jobs.iter().all(|count| *count > 0),
        "each node has some: {jobs:?}"
    );

    let names: Vec<JobId> = ids.iter().map(|(id, _)| *id).collect();
    let found = queue.get_many(&names).await.unwrap();
    let found: Vec<String> = found.into_iter().map(|record| record.job.id).collect();
    let wanted: Vec<String> = names.iter().map(JobId::to_string).collect();
    assert_eq!(found, wanted, "in the order that was asked for");
    let tenants = queue.tenants("", 100).await.unwrap();
    assert_eq!(
        (
            tenants.len(),
            tenants.iter().map(|tenant| tenant.queued).sum::<u64>()
        ),
        (24, 24)
    );
    let (counts, _) = queue.counts().await.unwrap();
    assert_eq!(counts.values().map(|pool| pool.queued).sum::<u64>(), 24);
    let mut leased = BTreeSet::new();
    for shard in 0..SHARDS {
        let nonces: Vec<Nonce> = (0..30).map(|_| Nonce::random()).collect();
        let grants = queue
            .claim(shard, ("tiny", "base"), "nobody", 100, &nonces)
            .await
            .unwrap();
        leased.extend(grants.into_iter().map(|grant| grant.id));
    }
    assert_eq!(leased, names.iter().copied().collect());
    for (id, tenant) in &ids {
        assert_eq!(
            queue.cancel(*id, tenant.as_str()).await.unwrap(),
            Cancellation::Cancelled
        );
    }

    // A whole gateway, with doorbells, pictures and an audit.
    let gateway = RunningGateway::start_with(cluster.config()).await;
    let tiny = model("tiny", &[Stage::Base]);
    let mut worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &tiny).await;
    let mut client = gateway.generation().await;
    let job = submit(&mut client, "a cat").await;
    let mut events = watch(&mut client, &job.id, 0).await;
    worker.work_once().await;
    while next(&mut events).await.is_some() {}
    assert_eq!(get(&mut client, &job.id).await.state(), JobState::Succeeded);
    assert_eq!(cluster.keys("muse:*:img:*").await.iter().sum::<usize>(), 1);
    let audit = AuditRequest { repair: false };
    let mut events = gateway.admin().await.audit(audit).await.unwrap().into_inner();
    let mut jobs = 0;
    while let Some(event) = soon("the audit", events.message()).await.unwrap() {
        match event.event {
            Some(Event::Finding(finding)) => panic!("a healthy queue has no faults: {finding:?}"),
            Some(Event::Progress(progress)) => jobs = progress.jobs,
            _ => {}
        }
    }
    assert_eq!(jobs, 25, "it has seen every shard's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_followed_with_its_jobs() {
    let cluster = Cluster::start().await;
    let queue = cluster.queue().await;
    let tenant = Tenant::default();
    let first = job(&queue, &tenant);
    queue.submit(&first).await.unwrap();
    let tag = format!("s{}", first.id.shard());
    let (slot, owner) = cluster.owner(&tag).await;
    let other = (owner + 1) % 3;
    let (slot, target) = (slot.to_string(), cluster.id(other).await);
    let words = [
        "CLUSTER",
        "MIGRATESLOTS",
        "SLOTSRANGE",
        &slot,
        &slot,
        "NODE",
        &target,
    ];
    let _: String = cluster.nodes[owner].server.ask(&words).await;
    until("the slot to have moved", async || {
        let keys: Vec<String> = cluster.nodes[owner]
            .server
            .ask(&["KEYS", &format!("muse:{{{tag}}}:*")])
            .await;
        keys.is_empty().then_some(())
    })
    .await;

    assert!(
        queue.get(first.id).await.unwrap().is_some(),
        "it went with its slot"
    );
    let second = job(&queue, &tenant);
    assert_eq!(
        queue.submit(&second).await.unwrap(),
        Submission::Created(second.id)
    );
    let keys = cluster.keys(&format!("muse:{{{tag}}}:j:*")).await;
    assert_eq!((keys[owner], keys[other]), (0, 2), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_replaced_by_its_replica() {
    let mut cluster = Cluster::start().await;
    let gateway = RunningGateway::start_with(cluster.config()).await;
    let tiny = model("tiny", &[Stage::Base]);
    let worker = FakeWorker::attach(gateway.address, "w", Stage::Base, &tiny).await;
    let mut client = gateway.generation().await;
    let shard = cluster.queue().await.keys().shard_of(&Tenant::default());
    let (_, owner) = cluster.owner(&format!("s{shard}")).await;
    cluster.replicate(owner).await;
    let before = submit(&mut client, "a cat").await;
    until("the replica to have the job", async || {
        let keys: Vec<String> = cluster.nodes[3].server.ask(&["KEYS", "muse:*:j:*"]).await;
        (!keys.is_empty()).then_some(())
    })
    .await;
    cluster.nodes[owner].server.kill();
    until("the replica to be a primary", async || {
        let info: String = cluster.nodes[3].server.ask(&["INFO", "replication"]).await;
        info.contains("role:master").then_some(())
    })
    .await;
    let after = until("a job accepted by the new primary", || {
        let mut client = client.clone();
        async move {
            let submission = crate::support::scene::submission("a dog");
            client.submit_job(submission).await.ok()?.into_inner().job
        }
    })
    .await;
    let working = work(worker);
    for job in [&before, &after] {
        until_state(&client, &job.id, JobState::Succeeded).await;
    }
    working.abort();
}

#[tokio::test]
async fn a_cluster_and_a_single_server_are_not_taken_for_each_other() {
    let node = node().await;
    let mut config = Config::default();
    config.queue.durability = Durability::Everysec;
    config.redis.url = format!("redis://127.0.0.1:{}", node.port);
    config.redis.startup_timeout_ms = 1_000;
    let refused = Redis::open(&config.redis, &config.queue).await.err().unwrap();
    assert!(
        matches!(refused, StartupError::Unfit(Unfit::Cluster)),
        "{refused}"
    );
    assert!(refused.to_string().contains("redis.cluster_nodes"), "{refused}");

    // A node that has no slots yet, and a server that never will.
    config.redis.cluster_nodes = vec![config.redis.url.clone()];
    let refused = Redis::open(&config.redis, &config.queue)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        refused.contains("slot") && refused.contains("redis.cluster_nodes"),
        "{refused}"
    );
    let single = Node::start(None, &[]).await;
    config.redis.cluster_nodes = vec![format!("redis://127.0.0.1:{}", single.port)];
    let refused = Redis::open(&config.redis, &config.queue)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("cluster"), "{refused}");
    let socket = RedisServer::start().await;
    config.redis.url = socket.url();
    let refused = Redis::open(&config.redis, &config.queue)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("redis.url"), "{refused}");
}
