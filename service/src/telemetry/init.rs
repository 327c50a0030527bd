//! Sets the process's subscriber up, once.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider},
};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::filter_fn, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::config::{ConfigError, LogFormat, Telemetry};

/// An export that takes longer is given up.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// ONNX Runtime logs what it also returns as errors, which are told once, by whoever asked. `ort=info` among the configured
/// levels makes it speak.
const QUIET: &str = "ort=off";

/// Holds the exporter; [`TelemetryGuard::flush`] sends what is left.
#[derive(Debug)]
#[must_use = "spans that were not sent are lost when it is dropped without a flush"]
pub struct TelemetryGuard {
    provider: SdkTracerProvider,
}

/// Starts logs and traces for the process; needs a tokio runtime when traces are exported. In a process that has a
/// subscriber already (a test), that one stays.
///
/// # Errors
/// [`ConfigError::Invalid`] for a level, ratio or endpoint that is none.
pub fn init(service: &'static str, config: &Telemetry) -> Result<TelemetryGuard, ConfigError> {
    let levels = EnvFilter::try_new(format!("{QUIET},{}", config.log_level))
        .map_err(|error| ConfigError::invalid("telemetry.log_level", error.to_string()))?;
    let provider = provider(service, config)?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(service))
        // Only our own: the exporter's client would trace its own exports.
        .with_filter(filter_fn(|metadata| metadata.target().starts_with("muse")));
    let registry = Registry::default().with(spans);
    let human = || {
        fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
    };
    // A subscriber that is there already is a test's; it stays.
    let _ = match config.log_format {
        LogFormat::Human => registry.with(human().with_filter(levels)).try_init(),
        LogFormat::Json => registry.with(human().json().with_filter(levels)).try_init(),
    };
    Ok(TelemetryGuard { provider })
}

fn provider(service: &'static str, config: &Telemetry) -> Result<SdkTracerProvider, ConfigError> {
    if !(0.0..=1.0).contains(&config.trace_ratio) {
        let reason = format!("must be between 0 and 1, not {}", config.trace_ratio);
        return Err(ConfigError::invalid("telemetry.trace_ratio", reason));
    }
    // A client that decided about its trace is followed.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_ratio)));
    let resource = Resource::builder().with_service_name(service).build();
    let builder = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_resource(resource);
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(builder.build());
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| ConfigError::invalid("telemetry.otlp_endpoint", format!("{endpoint:?}: {error}")))?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(config.trace_queue.max(1))
        .build();
    let processor = BatchSpanProcessor::builder(exporter)
        .with_batch_config(batches)
        .build();
    Ok(builder.with_span_processor(processor).build())
}

impl TelemetryGuard {
    /// Sends the spans that wait, within 5 s. Blocks: call it outside of async code, while the runtime still lives.
    pub fn flush(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
