use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;

use super::*;
use crate::{harness::resp::command, repository};

/// A client of the proxy, and a server behind it that answers as Redis does and remembers what came.
struct Scene {
    proxy: Proxy,
    client: UnixStream,
    served: Arc<Mutex<Vec<String>>>,
    history: History,
    hash: String,
    _folder: TempDir,
}

/// A grant's answer: one job completed.
const COMPLETED: &str = "*1\r\n*4\r\n$8\r\naccepted\r\n$9\r\nsucceeded\r\n:5\r\n$0\r\n\r\n";

async fn answer(listener: UnixListener, served: Arc<Mutex<Vec<String>>>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = BytesMut::new();
    let mut queued = None;
    loop {
        while let Some((_, value)) = resp::take(&mut buffer).unwrap() {
            let name = value.at(0).to_ascii_uppercase();
            locked(&served).push(name.clone());
            let own = match name.as_str() {
                "HSET" => ":1\r\n".to_owned(),
                "EVALSHA" => COMPLETED.to_owned(),
                _ => "+OK\r\n".to_owned(),
            };
            let reply = match (name.as_str(), &mut queued) {
                ("MULTI", queued) => {
                    *queued = Some(vec![]);
                    own
                }
                ("EXEC", queued) => {
                    let all: Vec<String> = queued.take().unwrap_or_default();
                    format!("*{}\r\n{}", all.len(), all.concat())
                }
                (_, Some(queued)) => {
                    queued.push(own);
                    "+QUEUED\r\n".to_owned()
                }
                (_, None) => own,
            };
            stream.write_all(reply.as_bytes()).await.unwrap();
        }
        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

impl Scene {
    async fn set() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (front, behind) = (folder.path().join("front"), folder.path().join("behind"));
        let served = Arc::default();
        tokio::spawn(answer(UnixListener::bind(&behind).unwrap(), Arc::clone(&served)));
        let history = History::default();
        let proxy = Proxy::listen(&front, history.clone()).unwrap();
        proxy.lead_to(&behind);
        let mut client = UnixStream::connect(&front).await.unwrap();
        let text = repository().join("gateway/src/queue/scripts/complete.lua");
        let text = std::fs::read_to_string(text).unwrap();
        let hash = redis::Script::new(&text).get_hash().to_owned();
        client
            .write_all(&command(&["SCRIPT", "LOAD", &text]))
            .await
            .unwrap();
        assert_eq!(next(&mut client).await.as_deref(), Some("OK"));
        Self {
            proxy,
            client,
            served,
            history,
            hash,
            _folder: folder,
        }
    }

    /// A completion in a transaction; what the client hears of it until the connection ends or all is said.
    async fn complete(&mut self) -> Vec<String> {
        let arguments = [
            "job", "nonce", "superres", "pictures", "list", "timing", "1", "digest",
        ];
        let call: Vec<&str> = ["EVALSHA", &self.hash, "1", "key"]
            .into_iter()
            .chain(arguments)
            .collect();
        for words in [&["MULTI"][..], &["HSET", "img", "0", "picture"], &call, &["EXEC"]] {
            // The connection may be cut already.
            let _ = self.client.write_all(&command(words)).await;
        }
        let mut heard = vec![];
        for _ in 0..4 {
            let Some(text) = next(&mut self.client).await else {
                break;
            };
            heard.push(text);
        }
        heard
    }

    fn completions(&self) -> usize {
        let completed =
            |event: &Event| matches!(event, Event::Completed { outcome, .. } if outcome == "accepted");
        self.history
            .records()
            .iter()
            .filter(|record| completed(&record.event))
            .count()
    }
}

/// The next reply's text; `None` at the end.
async fn next(client: &mut UnixStream) -> Option<String> {
    let mut buffer = BytesMut::new();
    let read = async {
        loop {
            // One reply at a time, so that nothing of the one behind it is lost.
            match client.read_u8().await {
                Ok(byte) => buffer.extend_from_slice(&[byte]),
                Err(_) => return None,
            }
            if let Some((_, value)) = resp::take(&mut buffer).unwrap() {
                return Some(value.text());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap()
}

#[tokio::test]
async fn a_script_in_a_transaction_is_answered_at_its_end() {
    let mut scene = Scene::set().await;
    assert_eq!(scene.complete().await, ["OK", "QUEUED", "QUEUED", ""]);
    assert_eq!(scene.completions(), 1);
}

#[tokio::test]
async fn cut_after_a_script_in_a_transaction_it_has_run_and_nobody_hears_of_it() {
    let mut scene = Scene::set().await;
    let failpoint = Failpoint {
        script: "complete".to_owned(),
        after: true,
    };
    scene.proxy.arm(failpoint.clone());
    assert_eq!(scene.complete().await, ["OK", "QUEUED", "QUEUED"]);
    assert_eq!(scene.completions(), 1);
    assert_eq!(scene.proxy.cuts().get(&failpoint), Some(&1));
}

#[tokio::test]
async fn cut_before_a_script_in_a_transaction_nothing_of_it_runs() {
    let mut scene = Scene::set().await;
    let failpoint = Failpoint {
        script: "complete".to_owned(),
        after: false,
    };
    scene.proxy.arm(failpoint.clone());
    let heard = scene.complete().await;
    assert!(heard.len() <= 2, "{heard:?}");
    assert_eq!(scene.completions(), 0);
    let served = locked(&scene.served).clone();
    assert!(!served.contains(&"EXEC".to_owned()), "{served:?}");
    assert_eq!(scene.proxy.cuts().get(&failpoint), Some(&1));
}
