//! Sets the process's subscriber up, once.

use std::{
    env,
    ffi::OsStr,
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

/// Set to anything but nothing, it asks every program for plain text: <https://no-color.org>.
const NO_COLOR: &str = "NO_COLOR";

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
    // Without a collector a span is its ids, for services that have one; nobody would read the rest.
    let exported = config.otlp_endpoint.is_some();
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer(service))
        .with_location(exported)
        .with_threads(exported)
        .with_target(exported)
        .with_tracked_inactivity(exported)
        .with_context_activation(exported)
        // Only our own: the exporter's client would trace its own exports.
        .with_filter(filter_fn(move |metadata| {
            metadata.target().starts_with("muse") && (exported || metadata.is_span())
        }));
    let registry = Registry::default().with(spans);
    let coloured = wants_colours(io::stderr().is_terminal(), env::var_os(NO_COLOR).as_deref());
    let human = || fmt::layer().with_writer(io::stderr).with_ansi(coloured);
    // A subscriber that is there already is a test's; it stays.
    let _ = match config.log_format {
        LogFormat::Human => registry.with(human().with_filter(levels)).try_init(),
        LogFormat::Json => registry
            .with(human().with_ansi(false).json().with_filter(levels))
            .try_init(),
    };
    Ok(TelemetryGuard { provider })
}

/// Colours are for people who look at a terminal: in a file or a collector they are noise.
fn wants_colours(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
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
        let ids_alone = builder
            .with_max_attributes_per_span(0)
            .with_max_events_per_span(0);
        return Ok(ids_alone.build());
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn colours_are_for_terminals_and_not_for_those_who_refuse_them() {
        assert!(wants_colours(true, None));
        assert!(wants_colours(true, Some(OsStr::new(""))), "empty counts as unset");
        assert!(!wants_colours(true, Some(OsStr::new("1"))));
        assert!(!wants_colours(false, None));
    }

    /// What is logged inside a span with fields.
    fn logged(coloured: bool) -> String {
        #[derive(Clone, Default)]
        struct Buffer(Arc<Mutex<Vec<u8>>>);

        impl io::Write for Buffer {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let buffer = Buffer::default();
        let writer = buffer.clone();
        let layer = fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(coloured);
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            let _span = tracing::info_span!("job", job_id = "7").entered();
            tracing::warn!(rows = 3, "a pass failed");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_without_colours_has_no_escapes() {
        let (plain, coloured) = (logged(false), logged(true));
        assert!(
            plain.contains("job_id=\"7\"") && plain.contains("a pass failed"),
            "{plain}"
        );
        assert!(!plain.contains('\u{1b}'), "{plain:?}");
        assert!(coloured.contains('\u{1b}'), "the test can see them: {coloured:?}");
    }
}
