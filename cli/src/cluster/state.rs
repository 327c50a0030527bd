//! What a part does, as others see it.

use std::{fmt, net::SocketAddr, time::Duration};

/// A part that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// Where it serves gRPC.
    pub grpc: Option<SocketAddr>,
    /// Where it serves metrics and probes.
    pub ops: Option<SocketAddr>,
}

/// What a part does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartState {
    /// Not ready yet.
    Starting,
    /// Ready.
    Running(Running),
    /// It died and is started again after the delay.
    Restarting {
        /// How it died.
        reason: String,
        /// Until the next attempt.
        delay: Duration,
    },
    /// It died and stays down.
    Dead {
        /// How it died.
        reason: String,
    },
    /// It was asked to stop.
    Stopped,
}

/// A part changed its state.
#[derive(Clone, Debug)]
pub struct PartEvent {
    /// Its name.
    pub part: String,
    /// The new state.
    pub state: PartState,
}

impl PartState {
    /// No process is there.
    pub const fn is_down(&self) -> bool {
        matches!(self, Self::Restarting { .. } | Self::Dead { .. } | Self::Stopped)
    }
}

impl fmt::Display for PartState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("is starting"),
            Self::Running(running) => write!(f, "runs as process {}", running.pid),
            Self::Restarting { reason, delay } => {
                write!(f, "{reason}; starting it again in {:.1} s", delay.as_secs_f64())
            }
            Self::Dead { reason } => f.write_str(reason),
            Self::Stopped => f.write_str("was stopped"),
        }
    }
}
