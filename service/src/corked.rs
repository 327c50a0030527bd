//! Many small writes, made in one.
//!
//! The HTTP/2 library writes each message of 256 bytes or more to the system by itself. With many calls on one connection that
//! is most of what a call costs. A corked connection takes what is to be written into memory, and writes it when the tasks
//! that were ready have run: what all of them had to say goes out together. A single message is not kept waiting: when
//! nothing else is ready, it goes at once.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::ReusableBoxFuture;

/// Bytes of memory that a connection keeps when nothing waits.
const KEPT: usize = 4096;

/// A connection of one task that reads and writes it, as those of the HTTP/2 library do. A flush is answered before what it
/// asks for is done; the task is then woken, and does it at its next read, write or flush.
#[derive(Debug)]
pub(crate) struct Corked<T> {
    inner: T,
    /// Bytes that may wait; a write of as many goes by itself. 0: nothing waits.
    limit: usize,
    waiting: Vec<u8>,
    /// Of those, the ones that the system has taken.
    written: usize,
    flush: Flush,
    turn: Arc<Turn>,
    turn_waker: Waker,
    yielding: ReusableBoxFuture<'static, ()>,
}

/// How far a flush is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Nobody has asked for one.
    Unasked,
    /// It waits for the others.
    Asked,
    /// What waits is being written.
    Begun,
}

/// Tells that the tasks that were ready have run.
#[derive(Debug, Default)]
struct Turn {
    come: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.come.store(true, Ordering::Release);
        self.task.wake();
    }
}

// === impl Corked ===

impl<T> Corked<T> {
    /// At most `limit` bytes wait.
    pub(crate) fn new(inner: T, limit: usize) -> Self {
        let turn = Arc::new(Turn::default());
        Self {
            inner,
            limit,
            waiting: Vec::new(),
            written: 0,
            flush: Flush::Unasked,
            turn_waker: Waker::from(Arc::clone(&turn)),
            turn,
            yielding: ReusableBoxFuture::new(tokio::task::yield_now()),
        }
    }

    /// What is corked.
    pub(crate) const fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Keeps as much of `slices` as there is room for.
    fn keep(&mut self, slices: &[IoSlice<'_>]) -> usize {
        let before = self.waiting.len();
        let mut room = self.limit.saturating_sub(before);
        for slice in slices {
            let (taken, _) = slice.split_at(room.min(slice.len()));
            self.waiting.extend_from_slice(taken);
            room -= taken.len();
        }
        self.waiting.len() - before
    }
}

impl<T: AsyncWrite + Unpin> Corked<T> {
    /// Writes what waits; ready when nothing does any more.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush = Flush::Begun;
        while let Some(rest) = self.waiting.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.flush = Flush::Unasked;
        self.written = 0;
        self.waiting.clear();
        self.waiting.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }

    /// Goes on with a flush whose turn has come. Ready also when there is none.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn.come.swap(false, Ordering::Acquire) || self.flush == Flush::Begun {
            return self.poll_drain(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx))?;
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.waiting.len().saturating_add(length) > self.limit && !self.waiting.is_empty() {
            ready!(self.poll_drain(cx))?;
        }
        // Copying large ones costs more than it saves.
        if length >= self.limit {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        }
        Poll::Ready(Ok(self.keep(slices)))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A peer that reads nothing is still read.
        if let Poll::Ready(Err(error)) = self.poll_turn(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.limit > 0 || self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_turn(cx))?;
        if this.waiting.is_empty() {
            return Pin::new(&mut this.inner).poll_flush(cx);
        }
        this.turn.task.register(cx.waker());
        if this.flush == Flush::Unasked {
            this.flush = Flush::Asked;
            this.yielding.set(tokio::task::yield_now());
            let mut waker = Context::from_waker(&this.turn_waker);
            if this.yielding.poll(&mut waker).is_ready() {
                return this.poll_drain(cx);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Notes each write, and takes as many bytes of it as it is told.
    #[derive(Debug, Default)]
    struct Notes {
        writes: Vec<Vec<u8>>,
        /// For each write to come; when there is none, everything is taken. 0: not now.
        takes: VecDeque<usize>,
    }

    impl AsyncWrite for Notes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let take = self.takes.pop_front().unwrap_or(bytes.len()).min(bytes.len());
            if take == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.writes.push(bytes[..take].to_vec());
            Poll::Ready(Ok(take))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Notes {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// What a connection's task does when it is woken, until `enough` was written.
    async fn read_until(corked: &mut Corked<Notes>, enough: usize) {
        let mut byte = [0];
        std::future::poll_fn(|cx| {
            let _ = Pin::new(&mut *corked).poll_read(cx, &mut ReadBuf::new(&mut byte));
            let sum: usize = corked.inner.writes.iter().map(Vec::len).sum();
            if sum >= enough {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_written_and_flushed_before_the_task_rests_goes_out_in_one_write() {
        let mut corked = Corked::new(Notes::default(), 100);
        for part in ["one ", "two ", "three"] {
            corked.write_all(part.as_bytes()).await.unwrap();
            corked.flush().await.unwrap();
        }
        assert!(corked.inner.writes.is_empty(), "{:?}", corked.inner.writes);
        read_until(&mut corked, 13).await;
        assert_eq!(corked.inner.writes, [b"one two three"]);
        corked.write_all(b"four").await.unwrap();
        corked.flush().await.unwrap();
        read_until(&mut corked, 17).await;
        assert_eq!(corked.inner.writes[1..], [b"four"]);
    }

    #[tokio::test]
    async fn no_more_waits_than_the_limit_and_large_writes_go_by_themselves() {
        let mut corked = Corked::new(Notes::default(), 10);
        corked.write_all(b"1234567").await.unwrap();
        corked.write_all(b"8901").await.unwrap();
        corked.write_all(b"a large one").await.unwrap();
        corked.write_all(b"end").await.unwrap();
        corked.flush().await.unwrap();
        read_until(&mut corked, 25).await;
        let writes: Vec<&[u8]> = corked.inner.writes.iter().map(Vec::as_slice).collect();
        assert_eq!(writes, [&b"1234567"[..], b"8901", b"a large one", b"end"]);
    }

    #[tokio::test]
    async fn a_peer_that_takes_little_at_a_time_gets_all_of_it_in_order() {
        let notes = Notes {
            takes: VecDeque::from([2, 0, 1, 0, 0, 4]),
            ..Notes::default()
        };
        let mut corked = Corked::new(notes, 100);
        corked.write_all(b"all of it").await.unwrap();
        corked.flush().await.unwrap();
        read_until(&mut corked, 3).await;
        corked.write_all(b" in order").await.unwrap();
        corked.shutdown().await.unwrap();
        assert_eq!(corked.inner.writes.concat(), b"all of it in order");
    }

    #[tokio::test]
    async fn nothing_waits_without_a_limit() {
        let mut corked = Corked::new(Notes::default(), 0);
        corked.write_all(b"now").await.unwrap();
        assert_eq!(corked.inner.writes, [b"now"]);
        corked.flush().await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_connection_writes_what_waits() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut corked = Corked::new(near, 100);
        corked.write_all(b"the last words").await.unwrap();
        corked.shutdown().await.unwrap();
        let mut heard = String::new();
        far.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "the last words");
    }
}
