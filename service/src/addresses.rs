//! Where a service listens, for people and for the process that started it.

use std::{
    fmt,
    io::{self, Write as _},
    net::SocketAddr,
};

/// The addresses that a service bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC; `None` in a service that only dials out.
    pub grpc: Option<SocketAddr>,
    /// Metrics and probes.
    pub ops: SocketAddr,
}

impl Addresses {
    /// Prints one line to stdout, such as `listening grpc=127.0.0.1:43211 ops=127.0.0.1:43212`. With port 0 configured it is
    /// the only way for a parent process to learn the ports; logs go to stderr and cannot mix with it.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn announce(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{self}")?;
        stdout.flush()
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("listening")?;
        if let Some(grpc) = self.grpc {
            write!(f, " grpc={grpc}")?;
        }
        write!(f, " ops={}", self.ops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_each_port_and_leaves_out_what_is_not_served() {
        let ops = SocketAddr::from(([127, 0, 0, 1], 2));
        let grpc = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
        assert_eq!(
            Addresses { grpc, ops }.to_string(),
            "listening grpc=127.0.0.1:1 ops=127.0.0.1:2"
        );
        assert_eq!(
            Addresses { grpc: None, ops }.to_string(),
            "listening ops=127.0.0.1:2"
        );
    }
}
