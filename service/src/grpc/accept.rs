//! Connections: how many, how long one may stay silent at first, and how all of them end.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::corked::Corked;

/// Bytes that begin every HTTP/2 connection.
const PREFACE: usize = 24;

/// After the system refused a connection (no file descriptors left), wait instead of asking again at once.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// See [`crate::config::GrpcServer`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) handshake: Duration,
    pub(super) write_buffer: usize,
}

/// A TCP connection that has to begin to speak in time, counts against the limit while it lives, and breaks when `cut`.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Corked<TcpStream>,
    handshake: Option<Pin<Box<Sleep>>>,
    received: usize,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    is_cut: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// The connections of `listener`; one over the limit is closed at once, so that a client goes elsewhere.
pub(super) fn incoming(
    listener: TcpListener,
    limits: Limits,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    stream::unfold(
        (listener, permits, cut),
        move |(listener, permits, cut)| async move {
            let connection = next(&listener, &permits, limits, &cut).await;
            Some((Ok(connection), (listener, permits, cut)))
        },
    )
}

async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    limits: Limits,
    cut: &CancellationToken,
) -> Connection {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(AFTER_REFUSAL).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            metrics::counter!("muse_connections_refused_total").increment(1);
            continue;
        };
        // A socket that is already gone fails here and again at its first read; there it is handled.
        let _ = stream.set_nodelay(true);
        return Connection {
            stream: Corked::new(stream, limits.write_buffer),
            handshake: Some(Box::pin(tokio::time::sleep(limits.handshake))),
            received: 0,
            cut: Box::pin(cut.clone().cancelled_owned()),
            is_cut: cut.clone(),
            _permit: permit,
        };
    }
}

// === impl Connection ===

impl Connection {
    fn check_cut(&self) -> io::Result<()> {
        if self.is_cut.is_cancelled() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server has shut down",
            ));
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(self.check_cut());
        }
        if let Some(handshake) = &mut self.handshake
            && handshake.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 in time")));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if self.handshake.is_some() {
            self.received += buffer.filled().len() - before;
            if self.received >= PREFACE {
                self.handshake = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check_cut()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_cut()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.get_ref().connect_info()
    }
}
