//! The pixel thread: from a finished grid to an encoded picture, while the device thread runs the next pass.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    thread,
};

use muse_proto::{internal::v1::Picture, v1::ImageFormat};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

/// A picture to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureOrder {
    /// Which picture of its job.
    pub index: u32,
    /// `[S]` of the last stage.
    pub tokens: Vec<u32>,
    /// How it is encoded.
    pub format: ImageFormat,
    /// The job's seed, for the picture's provenance.
    pub seed: u64,
}

/// Makes pictures from tokens.
pub trait Painter: Send {
    /// Decodes and encodes one picture.
    ///
    /// # Errors
    /// What went wrong, on one line.
    fn paint(&mut self, order: &PictureOrder) -> Result<Picture, String>;
}

/// Why there is no picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PixelFault {
    /// The decoder or the encoder failed on it.
    #[error("the picture could not be made: {0}")]
    Failed(String),
    /// The thread is gone.
    #[error("the pixel thread has ended")]
    Gone,
}

type Answer = oneshot::Sender<Result<Picture, PixelFault>>;

/// Orders for the pixel thread, which ends when all of these are dropped.
#[derive(Clone)]
pub struct PixelThread {
    orders: mpsc::Sender<(PictureOrder, Span, Answer)>,
}

/// A picture on its way.
pub struct Waiting(oneshot::Receiver<Result<Picture, PixelFault>>);

impl PixelThread {
    /// Starts the thread; `queue` orders may wait. The receiver resolves when the thread has ended: with an error if it
    /// crashed.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(
        painter: impl Painter + 'static,
        queue: usize,
    ) -> std::io::Result<(PixelThread, oneshot::Receiver<()>)> {
        let (orders, received) = mpsc::channel(queue.max(1));
        let (ended, end) = oneshot::channel();
        thread::Builder::new().name("pixels".to_owned()).spawn(move || {
            work(painter, received);
            // Nobody listens when the process ends anyway.
            let _ = ended.send(());
        })?;
        Ok((PixelThread { orders }, end))
    }

    /// Orders a picture; waits while the queue is full.
    ///
    /// # Errors
    /// [`PixelFault::Gone`].
    pub async fn submit(&self, order: PictureOrder) -> Result<Waiting, PixelFault> {
        let (answer, waiting) = oneshot::channel();
        self.orders
            .send((order, Span::current(), answer))
            .await
            .map_err(|_| PixelFault::Gone)?;
        Ok(Waiting(waiting))
    }
}

impl Future for Waiting {
    type Output = Result<Picture, PixelFault>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(context));
        Poll::Ready(answer.unwrap_or(Err(PixelFault::Gone)))
    }
}

fn work(mut painter: impl Painter, mut orders: mpsc::Receiver<(PictureOrder, Span, Answer)>) {
    while let Some((order, parent, answer)) = orders.blocking_recv() {
        // A job that was dropped or released wants no picture.
        if answer.is_closed() {
            continue;
        }
        let span = tracing::info_span!(parent: &parent, "picture", index = order.index);
        let painted = span
            .in_scope(|| painter.paint(&order))
            .map_err(PixelFault::Failed);
        // Dropped meanwhile.
        let _ = answer.send(painted);
    }
}

#[cfg(test)]
mod tests {
    use muse_proto::v1::ImageInfo;

    use super::*;

    /// Fails on the picture with this index.
    struct Brush(u32);

    impl Painter for Brush {
        fn paint(&mut self, order: &PictureOrder) -> Result<Picture, String> {
            if order.index == self.0 {
                return Err("no paint".to_owned());
            }
            let info = ImageInfo {
                index: order.index,
                ..ImageInfo::default()
            };
            Ok(Picture {
                info: Some(info),
                ..Picture::default()
            })
        }
    }

    fn order(index: u32) -> PictureOrder {
        PictureOrder {
            index,
            tokens: vec![1, 2],
            format: ImageFormat::Png,
            seed: 7,
        }
    }

    #[tokio::test]
    async fn a_picture_that_fails_fails_alone() {
        let (thread, _end) = PixelThread::start(Brush(1), 1).unwrap();
        for index in 0..3 {
            let painted = thread.submit(order(index)).await.unwrap().await;
            match index {
                1 => assert_eq!(painted, Err(PixelFault::Failed("no paint".to_owned()))),
                _ => assert_eq!(painted.unwrap().info.unwrap().index, index),
            }
        }
    }

    #[tokio::test]
    async fn a_picture_that_nobody_waits_for_blocks_nothing() {
        let (thread, _end) = PixelThread::start(Brush(9), 1).unwrap();
        for index in 0..5 {
            drop(thread.submit(order(index)).await.unwrap());
        }
        assert!(thread.submit(order(5)).await.unwrap().await.is_ok());
    }
}
