//! Clients that ask for the next picture as soon as they have one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use tokio::sync::watch;

use crate::workload::Order;

/// What clients saw in a window.
pub(crate) struct Window {
    /// Pictures a second, until the last one in the window.
    pub(crate) rate: f64,
    pub(crate) latencies: Vec<Duration>,
}

/// `clients` that ask without a pause. The first pictures, as many as there are clients, are not counted: until then the cluster
/// fills up.
///
/// # Errors
/// The first client's that failed.
pub(crate) async fn closed_loop<Ask, Asking>(
    ask: Ask,
    clients: usize,
    window: Duration,
    next: &Arc<AtomicUsize>,
) -> anyhow::Result<Window>
where
    Ask: Fn(Order) -> Asking + Clone + Send + 'static,
    Asking: Future<Output = anyhow::Result<()>> + Send,
{
    let stop = Arc::new(AtomicBool::new(false));
    let (finished, mut seen) = watch::channel(0_usize);
    let finished = Arc::new(finished);
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let (ask, next) = (ask.clone(), Arc::clone(next));
            let (stop, finished) = (Arc::clone(&stop), Arc::clone(&finished));
            tokio::spawn(async move {
                let mut made = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let order = Order::numbered(next.fetch_add(1, Ordering::Relaxed));
                    let begun = Instant::now();
                    ask(order).await?;
                    made.push((Instant::now(), begun.elapsed()));
                    finished.send_modify(|count| *count += 1);
                }
                anyhow::Ok(made)
            })
        })
        .collect();
    let counted = async {
        // Never fails: this function holds a sender.
        let _ = seen.wait_for(|count| *count >= clients).await;
        let begun = Instant::now();
        tokio::time::sleep(window).await;
        begun
    };
    let mut all = std::pin::pin!(try_join_all(tasks));
    let begun = tokio::select! {
        begun = counted => begun,
        // Only a client that failed ends early.
        ended = &mut all => {
            for made in ended? {
                made?;
            }
            anyhow::bail!("the clients ended before the window did");
        }
    };
    let ended = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let mut made = Vec::new();
    for client in all.await? {
        made.extend(client?);
    }
    made.retain(|(at, _)| (begun..ended).contains(at));
    // From picture to picture: where a server makes eight at a time, the window's end cuts through the time of a batch.
    let rate = match made.iter().map(|(at, _)| *at).max() {
        Some(last) => made.len() as f64 / last.duration_since(begun).as_secs_f64(),
        None => 0.0,
    };
    Ok(Window {
        rate,
        latencies: made.into_iter().map(|(_, latency)| latency).collect(),
    })
}
