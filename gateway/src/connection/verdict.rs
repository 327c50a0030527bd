//! What an error says about the connection and the server. Pure.

use redis::{ErrorKind, ServerErrorKind};

/// What to do about an error.
pub(super) enum Verdict {
    /// The connection, or the server's role, is in doubt.
    Broken,
    /// The right server, which cannot take it just now.
    Unable,
    OutOfMemory,
    Refused,
}

/// See the module.
pub(super) fn classify(error: &redis::RedisError) -> Verdict {
    // What a transaction was aborted for, or a script stopped at, is inside: the error itself only says that it was.
    let inside = error.clone().into_server_errors();
    let says = |code: &str| {
        let mut errors = inside.iter().flat_map(|errors| errors.iter());
        errors.any(|(_, error)| {
            error.code() == code || error.details().is_some_and(|details| details.contains(code))
        })
    };
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            // The slot has another owner, who is looked up for the next connection.
            | ServerErrorKind::Moved,
        ) => Verdict::Broken,
        // A script that was forgotten again, by SCRIPT FLUSH or a restart, between its loading and its call. A slot that is
        // on its way.
        ErrorKind::Server(
            ServerErrorKind::TryAgain | ServerErrorKind::NoScript | ServerErrorKind::Ask,
        ) => Verdict::Unable,
        // An answer that was understood, and is not the one that belongs to the question.
        ErrorKind::UnexpectedReturnType => Verdict::Refused,
        // A write inside a script, or anything inside a transaction.
        _ if ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN"]
            .into_iter()
            .any(says) =>
        {
            Verdict::Broken
        }
        _ if says("OOM") => Verdict::OutOfMemory,
        // A full disk: the server takes writes again as soon as it can save. And min-replicas-to-write.
        _ if ["MISCONF", "NOREPLICAS", "TRYAGAIN"].into_iter().any(says) => Verdict::Unable,
        // A slot that moved while a script ran.
        _ if says("non local key") => Verdict::Broken,
        _ if error.is_io_error() || error.is_timeout() || error.is_connection_dropped() => Verdict::Broken,
        _ if error.is_unrecoverable_error() => Verdict::Broken,
        _ => Verdict::Refused,
    }
}

/// Whether the server does not know the script, by itself or in a transaction.
pub(super) fn is_unknown_script(error: &redis::RedisError) -> bool {
    let inside = error.clone().into_server_errors();
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        || inside
            .iter()
            .flat_map(|errors| errors.iter())
            .any(|(_, error)| error.code() == "NOSCRIPT")
}

#[cfg(test)]
mod tests {
    use redis::{Client, make_extension_error};
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;

    /// What a transaction gives at a server that answers each of its commands so.
    async fn transaction_refused_with(refusal: &'static str) -> redis::RedisError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (from, mut to) = stream.into_split();
            let mut lines = BufReader::new(from).lines();
            let mut in_transaction = false;
            // *<words>, and for each word its length and itself.
            while let Some(count) = lines.next_line().await.unwrap() {
                let mut words = vec![];
                for _ in 0..count.trim_start_matches('*').parse().unwrap() {
                    lines.next_line().await.unwrap();
                    words.push(lines.next_line().await.unwrap().unwrap());
                }
                let answer = match words[0].as_str() {
                    "EXEC" => "-EXECABORT Transaction discarded because of previous errors.",
                    _ if in_transaction => refusal,
                    _ => "+OK",
                };
                in_transaction |= words[0] == "MULTI";
                to.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
            }
        });
        let client = Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut set = redis::pipe();
        set.atomic().set("key", "value");
        set.query_async::<()>(&mut connection).await.unwrap_err()
    }

    #[test]
    fn a_server_in_doubt_is_told_from_a_call_that_is_wrong() {
        let loading = (ErrorKind::Server(ServerErrorKind::BusyLoading), "LOADING").into();
        assert!(matches!(classify(&loading), Verdict::Broken));
        let again = (ErrorKind::Server(ServerErrorKind::TryAgain), "TRYAGAIN").into();
        assert!(matches!(classify(&again), Verdict::Unable));
        let forgotten = (ErrorKind::Server(ServerErrorKind::NoScript), "NOSCRIPT").into();
        assert!(matches!(classify(&forgotten), Verdict::Unable));
        let full = make_extension_error("OOM".to_owned(), Some("command not allowed".to_owned()));
        assert!(matches!(classify(&full), Verdict::OutOfMemory));
        let disk = make_extension_error(
            "MISCONF".to_owned(),
            Some("Errors writing to the AOF file".to_owned()),
        );
        assert!(matches!(classify(&disk), Verdict::Unable));
        let wrong = make_extension_error("WRONGTYPE".to_owned(), None);
        assert!(matches!(classify(&wrong), Verdict::Refused));
    }

    /// As pictures are stored: a report that is refused for good is thrown away by its worker.
    #[tokio::test]
    async fn what_a_transaction_was_aborted_for_decides() {
        let verdict = |refusal| async move { classify(&transaction_refused_with(refusal).await) };
        let loading = verdict("-LOADING Valkey is loading the dataset in memory").await;
        assert!(matches!(loading, Verdict::Broken));
        let replica = verdict("-READONLY You can't write against a read only replica.").await;
        assert!(matches!(replica, Verdict::Broken));
        let full = verdict("-OOM command not allowed when used memory > 'maxmemory'.").await;
        assert!(matches!(full, Verdict::OutOfMemory));
        let disk = verdict("-MISCONF Errors writing to the AOF file: No space left on device").await;
        assert!(matches!(disk, Verdict::Unable));
        let wrong = verdict("-ERR unknown command 'HSTE'").await;
        assert!(matches!(wrong, Verdict::Refused));
    }
}
