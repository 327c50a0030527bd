//! When a shard rests.

use tokio::sync::watch;

/// Calls `rest` each time that the shard had jobs, and then none for as long as `pause` takes. Ends when nobody counts jobs in
/// `held` any more, or nobody can rest.
pub(super) async fn when_idle<Pause, Rest, Gone>(
    mut held: watch::Receiver<usize>,
    pause: impl Fn() -> Pause,
    rest: impl Fn() -> Rest,
) where
    Pause: Future<Output = ()>,
    Rest: Future<Output = Result<(), Gone>>,
{
    while held.changed().await.is_ok() {
        loop {
            if held.wait_for(|jobs| *jobs == 0).await.is_err() {
                return;
            }
            tokio::select! {
                // A job came, and may be gone again.
                changed = held.changed() => if changed.is_err() {
                    return;
                },
                () = pause() => break,
            }
        }
        if rest().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        sync::{mpsc, oneshot},
        task::JoinHandle,
    };

    use super::*;

    /// A shard that counts jobs, and pauses that end when the test says so.
    struct Resting {
        held: watch::Sender<usize>,
        pauses: mpsc::Receiver<oneshot::Sender<()>>,
        rests: mpsc::Receiver<()>,
        task: JoinHandle<()>,
    }

    impl Resting {
        fn start() -> Self {
            let (held, watched) = watch::channel(0);
            let (begun, pauses) = mpsc::channel(4);
            let (rested, rests) = mpsc::channel(4);
            let pause = move || {
                let (end, ended) = oneshot::channel();
                begun.try_send(end).unwrap();
                // One that is dropped never ends.
                async move {
                    match ended.await {
                        Ok(()) => {}
                        Err(_) => std::future::pending().await,
                    }
                }
            };
            let rest = move || std::future::ready(rested.try_send(()));
            Resting {
                held,
                pauses,
                rests,
                task: tokio::spawn(when_idle(watched, pause, rest)),
            }
        }

        /// The pause that begins next.
        async fn pause(&mut self) -> oneshot::Sender<()> {
            self.pauses.recv().await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_shard_rests_once_after_its_last_job_and_not_between_two() {
        let mut shard = Resting::start();
        shard.held.send_replace(1);
        shard.held.send_replace(0);
        let cut_short = shard.pause().await;
        // Another job, gone before anyone looked.
        shard.held.send_replace(1);
        shard.held.send_replace(0);
        let whole = shard.pause().await;
        assert!(cut_short.is_closed(), "a pause goes on though a job came in it");
        assert!(shard.rests.is_empty(), "it rested between two jobs");
        whole.send(()).unwrap();
        shard.rests.recv().await.unwrap();

        // It rests again after further jobs alone, when the last of them is gone.
        shard.held.send_replace(2);
        shard.held.send_replace(1);
        shard.held.send_replace(0);
        shard.pause().await.send(()).unwrap();
        shard.rests.recv().await.unwrap();
        drop(shard.held);
        shard.task.await.unwrap();
        assert!(shard.rests.recv().await.is_none() && shard.pauses.recv().await.is_none());
    }

    #[tokio::test]
    async fn it_ends_with_who_rests() {
        let mut shard = Resting::start();
        shard.held.send_replace(1);
        shard.held.send_replace(0);
        shard.rests.close();
        shard.pause().await.send(()).unwrap();
        shard.task.await.unwrap();
    }
}
