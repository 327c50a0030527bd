//! The state of a connection to the primary, for all who use it.

use redis::{Client, aio::MultiplexedConnection};
use tokio::{sync::watch, time::Instant};

use super::RedisError;

/// The state of the connection.
#[derive(Clone)]
pub(super) enum Link {
    /// There is one.
    Up(Box<Line>),
    /// There is none.
    Down { reason: String },
}

/// A connection to the primary.
#[derive(Clone)]
pub(super) struct Line {
    /// Counts connections.
    pub(super) generation: u64,
    /// For commands.
    pub(super) connection: MultiplexedConnection,
    /// For other connections to the same server.
    pub(super) client: Client,
}

/// The connection, as soon as there is one.
pub(super) async fn wait_up(link: &mut watch::Receiver<Link>, limit: Instant) -> Result<Line, RedisError> {
    let up = link.wait_for(|link| matches!(link, Link::Up(_)));
    // What it is waited for is not looked at: it is read again below.
    let _ = tokio::time::timeout_at(limit, up).await.map(drop);
    match link.borrow().clone() {
        Link::Up(line) => Ok(*line),
        Link::Down { reason } => Err(RedisError::Unavailable(reason)),
    }
}
