//! How a part shows that it is there and ready.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// Between two questions.
pub(super) const INTERVAL: Duration = Duration::from_millis(25);
/// A part that does not answer for this long is not ready.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read; its first line decides.
const ANSWER_BYTES: u64 = 256;

/// Where a service listens, from its first line: `listening grpc=127.0.0.1:43211 ops=127.0.0.1:43212`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) grpc: Option<SocketAddr>,
    pub(super) ops: Option<SocketAddr>,
}

/// `None` for any other line.
pub(super) fn parse_listening(line: &str) -> Option<Listening> {
    let rest = line.trim().strip_prefix("listening ")?;
    let mut listening = Listening::default();
    for pair in rest.split_whitespace() {
        match pair.split_once('=')? {
            ("grpc", address) => listening.grpc = Some(address.parse().ok()?),
            ("ops", address) => listening.ops = Some(address.parse().ok()?),
            // A later release may listen on more.
            _ => {}
        }
    }
    Some(listening)
}

/// Whether a service's `/readyz` says yes.
pub(super) async fn is_ready(ops: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(ops).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        read_start(stream).await
    };
    matches!(timeout(ANSWER_LIMIT, ask).await, Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200"))
}

/// Whether a Redis server answers; while it loads its file it says so, and is not ready.
pub(super) async fn answers_ping(socket: &Path) -> bool {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(b"PING\r\nQUIT\r\n").await?;
        read_start(stream).await
    };
    matches!(timeout(ANSWER_LIMIT, ask).await, Ok(Ok(answer)) if answer.starts_with("+PONG"))
}

async fn read_start(stream: impl tokio::io::AsyncRead + Unpin) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_line_names_ports_and_other_lines_do_not() {
        let both = parse_listening("listening grpc=127.0.0.1:1 ops=[::1]:2 more=3\n").unwrap();
        assert_eq!(both.grpc, Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(both.ops, Some("[::1]:2".parse().unwrap()));
        assert_eq!(parse_listening("listening ops=127.0.0.1:2").unwrap().grpc, None);
        for other in [
            "",
            "listening",
            "ready grpc=127.0.0.1:1",
            "listening grpc=nowhere",
            "listening grpc",
        ] {
            assert_eq!(parse_listening(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn only_a_200_means_ready() {
        for (answer, ready) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 503 Not\r\n\r\n", false),
            ("", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serve = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                // All of it: closing on unread bytes would reset the connection.
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                request
            });
            assert_eq!(is_ready(address).await, ready, "{answer}");
            assert!(serve.await.unwrap().starts_with(b"GET /readyz HTTP/1.1\r\n"));
        }
    }
}
