//! Around every call: a span under the client's trace, its deadline, one count by method and code, and one log line at a
//! level that fits. A client's mistake is no error of ours.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::{BoxError, Layer, Service};
use tracing::{Instrument as _, Span, field};

use super::{
    deadline::Deadline,
    methods::{Known, OTHER},
};
use crate::{
    error::{code_name, correct},
    telemetry::trace_context,
};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct CallLayer {
    known: Known,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Call<S> {
    inner: S,
    known: Known,
}

impl CallLayer {
    pub(super) fn new(known: Known) -> Self {
        Self { known }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Call<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Call {
            inner,
            known: Arc::clone(&self.known),
        }
    }
}

impl<S, B> Service<http::Request<Body>> for Call<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let method = self.known.get(request.uri().path()).cloned();
        let span = span(method.as_deref(), request.headers());
        let record = Record {
            method,
            span: span.clone(),
            begun: Instant::now(),
            recorded: false,
        };
        let deadline = Deadline::from_headers(request.headers(), record.begun);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(deadline);
        }
        // Take the instance that is ready and leave the clone.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let answer = async move {
            let answer = inner.call(request);
            let Some(Deadline(moment)) = deadline else {
                return answer.await.map(|response| finish(response, record));
            };
            match tokio::time::timeout_at(moment, answer).await {
                Ok(response) => response.map(|response| finish(response, record)),
                Err(_) => {
                    let status = Status::deadline_exceeded("the time that the caller gave ran out");
                    Ok(finish(status.into_http::<Body>(), record))
                }
            }
        };
        Box::pin(answer.instrument(span))
    }
}

fn span(method: Option<&str>, headers: &http::HeaderMap) -> Span {
    let method = method.unwrap_or(OTHER);
    let span = tracing::info_span!(
        "call",
        otel.name = method,
        otel.kind = "server",
        rpc.system = "grpc",
        method,
        code = field::Empty,
    );
    trace_context::set_parent_from(&span, headers);
    span
}

/// Notes the code where the headers have it already (an error before the first message); else the body will.
fn finish<B>(response: http::Response<B>, mut record: Record) -> http::Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if let Some(status) = Status::from_header_map(response.headers()) {
        let corrected = correct(&status);
        record.done(corrected.as_ref().unwrap_or(&status));
        return match corrected {
            Some(status) => status.into_http(),
            None => response.map(Body::new),
        };
    }
    response.map(|body| {
        Body::new(Recorded {
            inner: Body::new(body),
            record,
        })
    })
}

/// One call's entry in the books, made exactly once: by its status, or by being dropped, which is a client that left.
#[derive(Debug)]
struct Record {
    method: Option<Arc<str>>,
    span: Span,
    begun: Instant,
    recorded: bool,
}

impl Record {
    fn done(&mut self, status: &Status) {
        if self.recorded {
            return;
        }
        self.recorded = true;
        let code = code_name(status.code());
        let method = self
            .method
            .clone()
            .map_or(metrics::SharedString::const_str(OTHER), Into::into);
        metrics::counter!("muse_requests_total", "method" => method, "code" => code).increment(1);
        self.span.record("code", code);
        let _in_span = self.span.enter();
        let seconds = self.begun.elapsed().as_secs_f64();
        let message = status.message();
        match status.code() {
            Code::Ok | Code::Cancelled => tracing::debug!(code, seconds, "call ended"),
            // Ours to mend.
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(code, seconds, message, "call failed");
            }
            Code::Unavailable | Code::ResourceExhausted => {
                tracing::warn!(code, seconds, message, "call turned away");
            }
            // The client's. The message may quote the request, and so stays out.
            _ => tracing::info!(code, seconds, "call refused"),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.done(&Status::cancelled("the client left"));
    }
}

/// A body that reads the status in its trailers as they pass.
struct Recorded {
    inner: Body,
    record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let span = this.record.span.clone();
        let polled = span.in_scope(|| Pin::new(&mut this.inner).poll_frame(cx));
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                    this.record.done(&status);
                }
            }
            Poll::Ready(Some(Err(status))) => this.record.done(status),
            Poll::Ready(None) => this
                .record
                .done(&Status::unknown("the answer ended without a status")),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
