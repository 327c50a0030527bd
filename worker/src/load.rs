//! From the configuration to a model that is ready: bundle, ONNX Runtime, sessions, warm-up. Blocking, and done once.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use muse_engine::{
    Bundle, ConditioningInput, Embedding, Runtime, SessionOptions, StageModel, pixels::PixelsError,
    stage::OnnxStage,
};
use muse_service::config::ConfigError;
use tracing::{info, warn};

use crate::{
    batcher::{WarmUp, curve::PassCurve, warm_up},
    config::WorkerConfig,
    painter::BundlePainter,
};

/// A model ready for leases.
pub struct Loaded<M> {
    /// The bundle it is from.
    pub bundle: Bundle,
    /// The stage's model, warm.
    pub model: M,
    /// Makes pictures; only in the last stage.
    pub painter: Option<BundlePainter>,
    /// Time of a pass at each size.
    pub curve: PassCurve,
    /// Most rows in a pass.
    pub row_budget: usize,
    /// What it runs on, as `cpu` or `cuda`.
    pub provider: String,
    /// The device in words.
    pub device: String,
}

/// Opens and warms up the configured stage.
///
/// # Errors
/// One line that names what is wrong: the bundle's file, the provider, the configured key.
pub fn load(config: &WorkerConfig) -> anyhow::Result<Loaded<OnnxStage>> {
    if config.bundle.as_os_str().is_empty() {
        return Err(ConfigError::invalid("bundle", "name the bundle's folder").into());
    }
    let begun = Instant::now();
    let bundle = Bundle::load(&config.bundle)?;
    Runtime::initialise(config.runtime.onnxruntime.as_deref())?;
    let mut model = OnnxStage::open(&bundle, config.stage, &config.runtime)?;
    let last = bundle.last_stage().stage == config.stage;
    let painter = last
        .then(|| {
            let options = SessionOptions {
                threads: config.pixels.threads,
                ..config.runtime.clone()
            };
            let painter = BundlePainter::open(&bundle, config.stage, &options, config.pixels.jpeg_quality)?;
            painter.warm_up()?;
            Ok::<_, PixelsError>(painter)
        })
        .transpose()?;
    let provider = model.provider();
    if config.runtime.providers.first() != Some(&provider) {
        warn!(wanted = ?config.runtime.providers, %provider, "the first provider cannot be had; running on a later one");
    }
    let (curve, row_budget) = measure(&mut model, &bundle, config)?;
    // Of opening the graphs, and of warm-up, which went beyond the row budget.
    model.release_memory()?;
    metrics::gauge!("muse_worker_provider", "stage" => config.stage.as_str(), "provider" => provider.as_str()).set(1.0);
    metrics::gauge!("muse_worker_row_budget", "stage" => config.stage.as_str()).set(row_budget as f64);
    info!(
        stage = %config.stage,
        model = bundle.model().name,
        digest = bundle.digest(),
        %provider,
        row_budget,
        milliseconds = begun.elapsed().as_millis(),
        "model ready"
    );
    let device = device(provider, &config.runtime);
    Ok(Loaded {
        bundle,
        model,
        painter,
        curve,
        row_budget,
        provider: provider.as_str().to_owned(),
        device,
    })
}

/// Warms the model up and finds its row budget.
fn measure<M: StageModel>(
    model: &mut M,
    bundle: &Bundle,
    config: &WorkerConfig,
) -> anyhow::Result<(PassCurve, usize)> {
    let text = bundle.text();
    let zeros = Embedding::new(
        vec![0.0; text.max_length * text.width].into(),
        text.max_length,
        text.width,
    )
    .context("the bundle's text has no length or width")?;
    let low = vec![0; bundle.base().positions()];
    let low = (config.stage == muse_engine::Stage::Superres).then_some(low.as_slice());
    let input = ConditioningInput::conditional(text, &zeros, low)?;
    let batcher = &config.batcher;
    let settings = WarmUp {
        max_rows: batcher.row_budget.unwrap_or(batcher.warm_up_max_rows),
        rounds: batcher.warm_up_passes,
        max_pass: Duration::from_millis(batcher.warm_up_max_pass_ms),
    };
    let curve = warm_up(model, &input, settings, &Instant::now)?;
    let knee = curve.knee(batcher.knee_tolerance);
    // Shards that start on the same cores disturb each other's passes, long ones more than short ones, which slip in between:
    // then the knee comes out too small. So it is not trusted below what the model knows to be a full pass.
    let full = curve.largest(model.full_rows(), settings.max_pass);
    // A guided row counts twice, so less than 2 would never run it.
    let row_budget = batcher.row_budget.or(knee.max(full)).unwrap_or(2).max(2);
    let points: Vec<String> = curve
        .points()
        .iter()
        .map(|point| format!("{}: {:.1} ms", point.rows, point.time.as_secs_f64() * 1e3))
        .collect();
    info!(
        passes = points.join(", "),
        knee,
        full,
        row_budget,
        configured = batcher.row_budget.is_some(),
        "warmed up"
    );
    Ok((curve, row_budget))
}

/// The device in words, for people.
fn device(provider: muse_engine::Provider, options: &SessionOptions) -> String {
    match provider {
        muse_engine::Provider::Cpu => {
            let threads = options.cpu_threads();
            let name = std::fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| cpu_name(&text));
            format!(
                "{} ({threads} threads)",
                name.as_deref().unwrap_or(std::env::consts::ARCH)
            )
        }
        muse_engine::Provider::OpenVino => format!("{} (OpenVINO)", options.openvino.device),
        other => format!("{other} device {}", options.device_id),
    }
}

/// The first `model name` of a `/proc/cpuinfo`.
fn cpu_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named_where_the_system_names_it() {
        let text = "processor\t: 0\nmodel name\t: Great CPU @ 3 GHz\nmodel name\t: other\n";
        assert_eq!(cpu_name(text).as_deref(), Some("Great CPU @ 3 GHz"));
        assert_eq!(cpu_name("processor : 0"), None);
    }
}
