//! Eight clients of the cluster, in turns with eight clients of a Python server on the same graphs.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::json;

use crate::{
    arguments::{Arguments, Settings},
    closed_loop::{Window, closed_loop},
    cluster::{self, Client, asking},
    loops::Python,
    measure::{milliseconds, say},
    report::{Section, Table, Verdict, spread},
    stats::Series,
    workload::Order,
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/mosec_server.py");
/// Issue 5's number of clients; mosec's worker processes together have room for a batch of them.
const CLIENTS: usize = 8;
/// Issue 5's bound.
const FASTER: f64 = 1.5;
/// For loading the bundle in Python.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// For one picture.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts until then.
const ASK_AGAIN: Duration = Duration::from_millis(100);

const NOTHING: &str = "nothing was measured";

const TITLE: &str = "A Python server on the same graphs";
const TEXT: &str = "The bundle's ONNX graphs behind mosec (a Python server for models, its HTTP side and batching in Rust): `bench/python/plain_loop.py` in \
                    its worker processes, each of which takes waiting requests together; in one process with all threads, and in one for each core. The \
                    verdict is on the faster of these. Eight clients in a closed loop on each side, in turns; idle sides hold their memory and no CPU. The \
                    cluster's way is the whole of it: gRPC, a queue on disk, leases, three more processes.";

/// On the bundle, and on the one of integer products where there is one.
pub(crate) async fn measure(arguments: &Arguments, settings: &Settings) -> anyhow::Result<Vec<Section>> {
    let mut sections = vec![beside(arguments, settings, "server", "").await?];
    if let Some(arguments) = arguments.on_int8() {
        sections.push(beside(&arguments, settings, "server_int8", ", int8 bundle").await?);
    }
    Ok(sections)
}

/// `which`: said of the bundle in titles.
async fn beside(
    arguments: &Arguments,
    settings: &Settings,
    name: &str,
    which: &str,
) -> anyhow::Result<Section> {
    let title = format!("{TITLE}{which}");
    let section = |text: String, tables, verdicts| Section {
        name: name.to_owned(),
        title: title.clone(),
        text: format!("{TEXT} {text}"),
        tables,
        verdicts,
    };
    if let Some(missing) = Python::Training.missing(arguments) {
        say(&format!("{title}: not measured, {missing}"));
        return Ok(section(
            format!("**Not measured**: {missing}."),
            Vec::new(),
            Vec::new(),
        ));
    }
    say(&title);
    let mut servers = Vec::new();
    for layout in Layout::all(arguments.cores()) {
        servers.push(Server::start(arguments, layout).await?);
    }
    let cluster = cluster::start(arguments, &[]).await?;
    let client = Client::connect(&cluster).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut own = Side::new(format!("cluster, {CLIENTS} clients"));
    let mut others: Vec<Side> = servers
        .iter()
        .map(|server| Side::new(format!("mosec, {CLIENTS} clients, {}", server.layout)))
        .collect();
    for round in 0..=settings.rounds {
        // The first round fills caches.
        let counts = round > 0;
        let reached = closed_loop(asking(&client), CLIENTS, settings.server_window, &next).await?;
        own.add(reached, counts);
        for (server, side) in servers.iter().zip(&mut others) {
            let reached = closed_loop(server.asking(), CLIENTS, settings.server_window, &next).await?;
            side.add(reached, counts);
        }
    }
    cluster.stop().await;
    for server in servers {
        server.stop()?;
    }

    let mut table = Table::new(&["", "pictures/s", "p50, ms", "p99, ms"]);
    let ours = own.told(&mut table)?;
    let mut best: Option<Series> = None;
    for side in others {
        let rate = side.told(&mut table)?;
        if best.as_ref().is_none_or(|best| rate.median() > best.median()) {
            best = Some(rate);
        }
    }
    let best = best.context(NOTHING)?;
    let verdict = Verdict::at_least(
        format!("cluster / mosec on the same graphs{which}, eight clients"),
        &ours.over(&best),
        FASTER,
    );
    let text = format!(
        "{} threads in all on both sides; windows of {:.0} s.",
        arguments.cores(),
        settings.server_window.as_secs_f64()
    );
    Ok(section(text, vec![table], vec![verdict]))
}

/// How mosec is laid out over the cores.
#[derive(Clone, Copy, Debug)]
struct Layout {
    processes: usize,
    /// Of each process, inside an operator.
    threads: usize,
    /// Most requests that a process takes together.
    batch: usize,
}

/// What was measured of one side.
struct Side {
    name: String,
    rates: Vec<f64>,
    latencies: Vec<f64>,
}

/// A process of mosec's that answers.
struct Server {
    layout: Layout,
    child: Child,
    address: SocketAddr,
    client: HttpClient<HttpConnector, Full<Bytes>>,
}

// === impl Layout ===

impl Layout {
    /// All cores for one process; and divided among as many processes as there are cores, or clients where those are fewer.
    fn all(cores: usize) -> Vec<Layout> {
        let over = |processes: usize| Layout {
            processes,
            threads: cores / processes,
            batch: CLIENTS.div_ceil(processes),
        };
        let most = cores.min(CLIENTS);
        let apart = (most > 1).then(|| over(most));
        std::iter::once(over(1)).chain(apart).collect()
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Layout {
            processes,
            threads,
            batch,
        } = self;
        write!(
            formatter,
            "{processes} × {threads} threads, up to {batch} together"
        )
    }
}

// === impl Side ===

impl Side {
    fn new(name: String) -> Self {
        Side {
            name,
            rates: Vec::new(),
            latencies: Vec::new(),
        }
    }

    fn add(&mut self, window: Window, counts: bool) {
        if counts {
            self.rates.push(window.rate);
            self.latencies
                .extend(window.latencies.into_iter().map(milliseconds));
        }
    }

    /// Adds its row to `table` and returns its pictures a second.
    fn told(self, table: &mut Table) -> anyhow::Result<Series> {
        let rates = Series::new(self.rates).context(NOTHING)?;
        let latencies = Series::new(self.latencies).context(NOTHING)?;
        table.row([
            self.name,
            spread(&rates, 2),
            format!("{:.0}", latencies.median()),
            format!("{:.0}", latencies.percentile(99.0)),
        ]);
        Ok(rates)
    }
}

// === impl Server ===

impl Server {
    async fn start(arguments: &Arguments, layout: Layout) -> anyhow::Result<Self> {
        // It cannot choose a port by itself; this one was free a moment ago.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let python = Python::Training.program(arguments);
        let child = Command::new(python)
            .arg(SCRIPT)
            .args(["--address", &address.ip().to_string()])
            .args(["--port", &address.port().to_string()])
            .args(["--log-level", "warning"])
            // Milliseconds for a request with its wait; the default of 3 s is too short for a full batch on a small machine.
            .args(["--timeout", &PATIENCE.as_millis().to_string()])
            .env("MUSE_BUNDLE", &arguments.bundle)
            .env("MUSE_PROCESSES", layout.processes.to_string())
            .env("MUSE_THREADS", layout.threads.to_string())
            .env("MUSE_BATCH", layout.batch.to_string())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let mut server = Self {
            layout,
            child,
            address,
            client: HttpClient::builder(TokioExecutor::new()).build_http(),
        };
        let begun = Instant::now();
        while let Err(error) = server.ask(&Order::numbered(0)).await {
            if let Some(status) = server.child.try_wait()? {
                bail!("mosec ended with {status}; what it said is above");
            }
            if begun.elapsed() > READY_WITHIN {
                return Err(error.context(format!("mosec does not answer within {READY_WITHIN:?}")));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(server)
    }

    fn asking(&self) -> impl Fn(Order) -> BoxFuture<'static, anyhow::Result<()>> + Clone + Send + use<> {
        let (client, address) = (self.client.clone(), self.address);
        move |order| {
            let client = client.clone();
            async move { ask(&client, address, &order).await }.boxed()
        }
    }

    async fn ask(&self, order: &Order) -> anyhow::Result<()> {
        ask(&self.client, self.address, order).await
    }

    /// It ends its worker itself when it is told to end.
    fn stop(mut self) -> anyhow::Result<()> {
        self.end()?;
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            let told = Command::new("kill").arg(self.child.id().to_string()).status()?;
            if !told.success() {
                bail!("cannot end mosec");
            }
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing more can be done about it here.
        let _ = self.end();
    }
}

/// One picture.
async fn ask(
    client: &HttpClient<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    order: &Order,
) -> anyhow::Result<()> {
    let body = json!({"prompt": order.prompt, "seed": order.seed}).to_string();
    let request = http::Request::post(format!("http://{address}/inference")).body(Full::from(body))?;
    let response = client.request(request).await?;
    let status = response.status();
    let picture = response.into_body().collect().await?.to_bytes();
    if !status.is_success() || !picture.starts_with(b"\x89PNG") {
        bail!("mosec answered {status}, {} bytes", picture.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_all_cores_and_room_for_all_clients() {
        let of = |cores| -> Vec<_> {
            let layouts = Layout::all(cores).into_iter();
            layouts
                .map(|layout| (layout.processes, layout.threads, layout.batch))
                .collect()
        };
        assert_eq!(of(1), [(1, 1, 8)]);
        assert_eq!(of(2), [(1, 2, 8), (2, 1, 4)]);
        assert_eq!(of(16), [(1, 16, 8), (8, 2, 1)]);
    }
}
