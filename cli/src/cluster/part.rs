//! A part as the cluster sees it: its state is read and orders are sent; the process itself is its [`super::keeper`]'s.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    error::ClusterError,
    log,
    state::{PartState, Running},
};

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 20;

/// A part, for those who look at it and order it about.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    log: PathBuf,
    status: watch::Receiver<Status>,
    orders: mpsc::Sender<Order>,
}

/// What a keeper tells. The counters are for those who wait: a state may have passed before they look.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) state: PartState,
    /// As it last ran.
    pub(super) running: Option<Running>,
    pub(super) starts: u64,
    pub(super) ends: u64,
}

#[derive(Debug)]
pub(super) enum Order {
    Start,
    /// SIGTERM, then SIGKILL.
    Stop,
    Signal(Signal, oneshot::Sender<bool>),
}

// === impl Part ===

impl Part {
    pub(super) fn new(
        name: String,
        log: PathBuf,
        status: watch::Receiver<Status>,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        Self {
            name,
            log,
            status,
            orders,
        }
    }

    pub(super) fn state(&self) -> PartState {
        self.status.borrow().state.clone()
    }

    /// As it last ran; its addresses stay the same.
    pub(super) fn last_running(&self) -> Option<Running> {
        self.status.borrow().running
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) async fn wait_ready(&self, limit: Duration) -> Result<(), ClusterError> {
        let mut status = self.status.clone();
        let settled = status.wait_for(|status| {
            matches!(
                status.state,
                PartState::Running(_) | PartState::Dead { .. } | PartState::Stopped
            )
        });
        match timeout(limit, settled).await {
            Err(_) => Err(ClusterError::NotReady {
                part: self.name.clone(),
                seconds: limit.as_secs(),
                log: log::tail(&self.log, TAIL_LINES),
            }),
            Ok(Ok(status)) if matches!(status.state, PartState::Running(_)) => Ok(()),
            Ok(Ok(status)) => Err(self.failed(status.state.to_string())),
            Ok(Err(_)) => Err(self.failed("is not kept any more".to_owned())),
        }
    }

    /// SIGKILL, and waits until that process is gone.
    pub(super) async fn kill(&self) -> Result<(), ClusterError> {
        let mut status = self.status.clone();
        let ends = status.borrow().ends;
        self.signal(Signal::SIGKILL).await?;
        // An error means that its keeper is gone, and the process with it.
        let _ = status.wait_for(|status| status.ends > ends).await;
        Ok(())
    }

    pub(super) async fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.orders.send(Order::Signal(signal, answer)).await.is_ok();
        if sent && answered.await.unwrap_or(false) {
            return Ok(());
        }
        Err(ClusterError::NotRunning {
            part: self.name.clone(),
            state: self.state().to_string(),
        })
    }

    pub(super) async fn stop(&self) {
        if self.orders.send(Order::Stop).await.is_ok() {
            let _ = self
                .status
                .clone()
                .wait_for(|status| status.state == PartState::Stopped)
                .await;
        }
    }

    /// Returns once the keeper has taken the order, so that a wait for readiness does not see the state before it.
    pub(super) async fn start(&self) {
        let mut status = self.status.clone();
        let (down, starts) = {
            let now = status.borrow();
            (now.state.is_down(), now.starts)
        };
        if down && self.orders.send(Order::Start).await.is_ok() {
            let _ = status.wait_for(|status| status.starts > starts).await;
        }
    }

    fn failed(&self, reason: String) -> ClusterError {
        ClusterError::PartFailed {
            part: self.name.clone(),
            reason,
            log: log::tail(&self.log, TAIL_LINES),
        }
    }
}
