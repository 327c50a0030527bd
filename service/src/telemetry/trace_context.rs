//! W3C `traceparent`: out of a call's metadata, through the queue as a string, into the next call.

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tonic::metadata::{MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header's name, in HTTP and in gRPC metadata.
pub const TRACEPARENT: &str = "traceparent";

/// `00-<32 hex>-<16 hex>-<2 hex>` as a span context; `None` when it is malformed, or its ids are zero.
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let of_length = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let well_formed =
        of_length(version, 2) && of_length(trace, 32) && of_length(span, 16) && of_length(flags, 2);
    // Version 0 has four parts; later ones may have more, and ff is never a version.
    if !well_formed || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let context = SpanContext::new(trace, span, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

/// A span context as `traceparent`; `None` when it has no ids.
pub fn format(context: &SpanContext) -> Option<String> {
    context.is_valid().then(|| {
        let flags = (context.trace_flags() & TraceFlags::SAMPLED).to_u8();
        format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
    })
}

/// `span` as `traceparent`, to travel through a queue; `None` where telemetry is not set up.
pub fn of(span: &Span) -> Option<String> {
    format(span.context().span().span_context())
}

/// The current span as `traceparent`; see [`of`].
pub fn current() -> Option<String> {
    of(&Span::current())
}

/// Makes `span` a child of `traceparent`, before it is first entered. `false`: malformed, empty, or too late.
pub fn set_parent(span: &Span, traceparent: &str) -> bool {
    parse(traceparent).is_some_and(|parent| adopt(span, parent))
}

/// As [`set_parent`], from a call's metadata.
pub(crate) fn set_parent_from(span: &Span, headers: &http::HeaderMap) -> bool {
    headers
        .get(TRACEPARENT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|text| set_parent(span, text))
}

/// The `traceparent` that a call carries, if it is well-formed.
pub fn from_metadata(metadata: &MetadataMap) -> Option<String> {
    let text = metadata.get(TRACEPARENT)?.to_str().ok()?;
    parse(text).map(|_| text.trim().to_owned())
}

/// Adds `span` to a call's metadata, unless the caller has set one.
pub(crate) fn inject(span: &Span, metadata: &mut MetadataMap) {
    if metadata.contains_key(TRACEPARENT) {
        return;
    }
    if let Some(value) = of(span).and_then(|text| MetadataValue::try_from(text).ok()) {
        metadata.insert(TRACEPARENT, value);
    }
}

fn adopt(span: &Span, parent: SpanContext) -> bool {
    span.set_parent(Context::new().with_remote_span_context(parent))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use proptest::prelude::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const CLIENTS: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_span_keeps_the_clients_trace_and_has_an_id_of_its_own() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("job");
            assert!(set_parent(&span, CLIENTS));
            let queued = of(&span).unwrap();
            assert!(
                queued.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
                "{queued}"
            );
            assert_ne!(queued, CLIENTS);

            let worker = tracing::info_span!("stage");
            assert!(set_parent(&worker, &queued));
            let mut metadata = MetadataMap::new();
            inject(&worker, &mut metadata);
            let sent = from_metadata(&metadata).unwrap();
            assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{sent}");
        });
    }

    #[test]
    fn malformed_trace_contexts_are_refused() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_trace_context_comes_back_as_it_went(trace in 1u128.., span in 1u64.., sampled: bool) {
            let text = format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(sampled));
            prop_assert_eq!(format(&parse(&text).unwrap()), Some(text));
        }

        #[test]
        fn no_text_makes_the_parser_fail(text in ".*") {
            let _ = parse(&text);
        }
    }
}
