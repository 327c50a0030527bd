//! A real cluster of real processes, and a client that makes pictures on it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures::{FutureExt as _, future::BoxFuture};
use muse_engine::Stage;
use muse_proto::v1::{
    GenerateRequest, GenerationRequest, Job, JobState, ListWorkersRequest, StageTiming,
    admin_client::AdminClient, generate_response::Event, generation_client::GenerationClient,
};
use musectl::cluster::{ClusterOptions, LocalCluster, Override};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::Channel;

use crate::{arguments::Arguments, workload::Order};

/// Pictures of one job must fit.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Starts a cluster with `--set` and then `own` settings.
pub(crate) async fn start(arguments: &Arguments, own: &[&str]) -> anyhow::Result<LocalCluster> {
    let mut options = ClusterOptions::new(&arguments.bundle, arguments.programs()?);
    let workers = usize::from(arguments.workers);
    (options.sizes.base_workers, options.sizes.superres_workers) = (workers, workers);
    options.overrides = arguments.overrides.clone();
    for text in own {
        options.overrides.push(text.parse::<Override>()?);
    }
    Ok(LocalCluster::start(options).await?)
}

/// A client of a cluster's first gateway.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    inner: GenerationClient<Channel>,
}

/// A picture that a cluster made.
#[derive(Debug)]
pub(crate) struct Made {
    /// From the call to the picture's last byte.
    pub(crate) latency: Duration,
    /// The last one, of a job of several.
    pub(crate) picture: Vec<u8>,
    pub(crate) phases: Phases,
    /// What each stage's worker told.
    pub(crate) timings: Vec<StageTiming>,
}

/// Where the time of a job went, as its workers tell; all stages together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Phases {
    pub(crate) wait: Duration,
    pub(crate) embed: Duration,
    pub(crate) decode: Duration,
    pub(crate) pixels: Duration,
}

impl Phases {
    pub(crate) fn total(&self) -> Duration {
        self.wait + self.embed + self.decode + self.pixels
    }

    fn of(timings: &[StageTiming]) -> Self {
        let mut phases = Self::default();
        for timing in timings {
            for (phase, told) in [
                (&mut phases.wait, &timing.wait),
                (&mut phases.embed, &timing.embed),
                (&mut phases.decode, &timing.decode),
                (&mut phases.pixels, &timing.pixels),
            ] {
                *phase += told
                    .and_then(|told| Duration::try_from(told).ok())
                    .unwrap_or_default();
            }
        }
        phases
    }
}

impl Client {
    pub(crate) async fn connect(cluster: &LocalCluster) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(cluster.endpoint())?.connect().await?;
        Ok(Self {
            inner: GenerationClient::new(channel).max_decoding_message_size(MESSAGE_BYTES),
        })
    }

    /// Submits and waits for the picture, in one stream.
    pub(crate) async fn make(&self, order: &Order) -> anyhow::Result<Made> {
        self.generate(order.request()).await
    }

    /// The same for any request.
    pub(crate) async fn generate(&self, request: GenerationRequest) -> anyhow::Result<Made> {
        let request = GenerateRequest {
            request: Some(request),
            omit_images: false,
        };
        let begun = Instant::now();
        let mut stream = self.inner.clone().generate(request).await?.into_inner();
        let (mut job, mut picture): (Option<Job>, _) = (None, None);
        while let Some(response) = stream.message().await? {
            match response.event {
                Some(Event::Job(told)) => job = Some(told),
                Some(Event::Image(image)) => picture = Some(image.data.to_vec()),
                Some(Event::Progress(_)) | None => {}
            }
        }
        let latency = begun.elapsed();
        let job = job.context("the gateway told of no job")?;
        if job.state() != JobState::Succeeded {
            bail!("job {} ended as {:?}: {:?}", job.id, job.state(), job.error);
        }
        Ok(Made {
            latency,
            picture: picture.context("the gateway sent no picture")?,
            phases: Phases::of(&job.timings),
            timings: job.timings,
        })
    }
}

/// How clients of a closed loop ask a cluster.
pub(crate) fn asking(
    client: &Client,
) -> impl Fn(Order) -> BoxFuture<'static, anyhow::Result<()>> + Clone + Send + use<> {
    let client = client.clone();
    move |order| {
        let client = client.clone();
        async move { client.make(&order).await.map(drop) }.boxed()
    }
}

/// Most rows in a pass, of each stage, as the cluster's workers found it.
pub(crate) async fn row_budgets(cluster: &LocalCluster) -> anyhow::Result<BTreeMap<Stage, usize>> {
    let channel = Channel::from_shared(cluster.endpoint())?.connect().await?;
    let response = AdminClient::new(channel)
        .list_workers(ListWorkersRequest {})
        .await?;
    let workers = response.into_inner().workers;
    Ok(workers
        .iter()
        .filter_map(|worker| {
            let stage = match worker.stage() {
                muse_proto::v1::Stage::Base => Stage::Base,
                muse_proto::v1::Stage::Superres => Stage::Superres,
                muse_proto::v1::Stage::Unspecified => return None,
            };
            Some((stage, worker.row_budget as usize))
        })
        .collect())
}

/// Passes of all workers so far: how many, their seconds, and the rows in them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passes {
    pub(crate) count: f64,
    pub(crate) seconds: f64,
    pub(crate) rows: f64,
}

impl Passes {
    pub(crate) fn since(&self, earlier: &Passes) -> Passes {
        Passes {
            count: self.count - earlier.count,
            seconds: self.seconds - earlier.seconds,
            rows: self.rows - earlier.rows,
        }
    }
}

/// Reads it off the workers' metrics.
pub(crate) async fn passes(cluster: &LocalCluster) -> anyhow::Result<Passes> {
    passes_of(cluster, &[Stage::Base, Stage::Superres]).await
}

/// The same of some stages' workers.
pub(crate) async fn passes_of(cluster: &LocalCluster, stages: &[Stage]) -> anyhow::Result<Passes> {
    let mut passes = Passes::default();
    for (part, url) in cluster.ops_endpoints() {
        if !stages.iter().any(|stage| part.starts_with(&format!("{stage}-"))) {
            continue;
        }
        let text = metrics(&url)
            .await
            .with_context(|| format!("cannot read the metrics of {part}"))?;
        passes.count += sum(&text, "muse_pass_seconds_count");
        passes.seconds += sum(&text, "muse_pass_seconds_sum");
        passes.rows += sum(&text, "muse_batch_rows_sum");
    }
    Ok(passes)
}

/// How often each worker has given memory back.
pub(crate) async fn rests(cluster: &LocalCluster) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut rests = BTreeMap::new();
    for (part, url) in cluster.ops_endpoints() {
        if [Stage::Base, Stage::Superres]
            .iter()
            .any(|stage| part.starts_with(&format!("{stage}-")))
        {
            let text = metrics(&url)
                .await
                .with_context(|| format!("cannot read the metrics of {part}"))?;
            rests.insert(part, sum(&text, "muse_memory_releases_total"));
        }
    }
    Ok(rests)
}

async fn metrics(url: &str) -> anyhow::Result<String> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// The sum of a metric over all its labels; 0 where there is none yet.
fn sum(metrics: &str, name: &str) -> f64 {
    metrics
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            // `name 1` or `name{label="x"} 1`, and not `name_longer 1`.
            let value = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once('}')?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.trim().parse::<f64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_not_mixed_with_others() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE p histogram\np_sum{rows=\"2\"} 1.5\np_sum{rows=\"4\"} 2\np_sums 7\np_count 3\n";
        assert_eq!(sum(text, "p_sum"), 3.5);
        assert_eq!(sum(text, "p_count"), 3.0);
        assert_eq!(sum(text, "absent"), 0.0);
    }

    #[test]
    fn the_phases_of_all_stages_are_added() {
        let milliseconds = |nanos| {
            Some(prost_types::Duration {
                seconds: 0,
                nanos: nanos * 1_000_000,
            })
        };
        let timing = StageTiming {
            wait: milliseconds(2),
            decode: milliseconds(30),
            ..StageTiming::default()
        };
        let phases = Phases::of(&[timing.clone(), timing]);
        assert_eq!(phases.wait.as_millis(), 4);
        assert_eq!(phases.total().as_millis(), 64);
    }
}
