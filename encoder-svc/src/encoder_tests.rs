//! The encoder around a stand-in for the model that says what it was asked and waits where a test wants it to.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use futures::future::join_all;
use muse_engine::Embedding;
use tokio::sync::oneshot;

use super::*;
use crate::{
    model::{Embed, texts_of_every_bucket},
    passes::{PassLimits, PassThread},
};

/// A token a character and one for the end; buckets 4, 8, 16. Counts what it is asked for.
#[derive(Default)]
struct Characters(AtomicUsize);

impl Tokenize for Characters {
    type Tokens = String;

    fn tokenize(&self, text: &str) -> Result<Tokenized<String>, TokenizeError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let tokens = text.chars().count() + 1;
        match [4, 8, 16].into_iter().find(|bucket| *bucket >= tokens) {
            Some(bucket) => Ok(Tokenized {
                tokens: text.to_owned(),
                bucket,
            }),
            None => Err(TokenizeError::TooLong { tokens, limit: 16 }),
        }
    }
}

/// Embeds a text as its bytes. Before each pass it waits for a word on `gate`, when there is one.
struct Bytes {
    passes: Arc<Mutex<Vec<Vec<String>>>>,
    gate: Option<mpsc::Receiver<()>>,
}

impl Embed for Bytes {
    type Tokens = String;

    fn embed(&mut self, texts: &[String]) -> Result<Vec<Embedding>, String> {
        self.passes.lock().unwrap().push(texts.to_vec());
        if let Some(gate) = &self.gate {
            gate.recv().unwrap();
        }
        if texts.iter().any(|text| text == "bad") {
            return Err("bad is bad".to_owned());
        }
        let embed = |text: &String| {
            let values: Vec<f32> = text.bytes().map(f32::from).chain([0.0]).collect();
            Embedding::new(values.into(), text.len() + 1, 1).ok_or_else(|| "no values".to_owned())
        };
        texts.iter().map(embed).collect()
    }
}

struct Setup {
    encoder: Arc<Encoder<Characters>>,
    passes: Arc<Mutex<Vec<Vec<String>>>>,
    warm: oneshot::Receiver<()>,
    ended: oneshot::Receiver<Result<(), String>>,
}

fn encoder(gate: Option<mpsc::Receiver<()>>, max_queued_tokens: usize) -> Setup {
    let passes = Arc::new(Mutex::new(Vec::new()));
    let model = Bytes {
        passes: Arc::clone(&passes),
        gate,
    };
    let admission = Admission::new(max_queued_tokens);
    let limits = PassLimits {
        max_tokens: 16,
        max_wait: Duration::from_millis(2),
        max_prompts: 100,
    };
    let (handle, thread) = Passes::start(model, Vec::new(), limits, admission.clone()).unwrap();
    let PassThread { begin, warm, ended } = thread;
    begin.send(()).unwrap();
    let encoder = Encoder {
        tokenizer: Arc::default(),
        cache: EmbeddingCache::new("digest", 1 << 20),
        admission,
        passes: handle,
        limits: RequestLimits {
            max_texts: 8,
            max_text_bytes: 100,
            ..RequestLimits::default()
        },
    };
    Setup {
        encoder: Arc::new(encoder),
        passes,
        warm,
        ended,
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Waits until `condition` holds; the test's runner has the time limit.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn texts_come_back_in_order_and_share_passes_only_within_a_bucket() {
    let Setup { encoder, passes, .. } = encoder(None, 1000);
    let asked = texts(&["a", "longer", "b", "c", "also me", "d", "e"]);
    let answers = encoder.embed(&asked).await.unwrap();
    for (text, (stored, _)) in asked.iter().zip(&answers) {
        assert_eq!(stored.tokens as usize, text.len() + 1);
        assert_eq!(stored.data[..4], f32::from(text.as_bytes()[0]).to_le_bytes());
    }
    let passes = passes.lock().unwrap().clone();
    assert_eq!(
        passes.iter().map(Vec::len).sum::<usize>(),
        asked.len(),
        "{passes:?}"
    );
    for pass in &passes {
        let bucket = |text: &String| Characters::default().tokenize(text).unwrap().bucket;
        assert!(
            pass.iter().all(|text| bucket(text) == bucket(&pass[0])),
            "{passes:?}"
        );
        assert!(pass.len() * bucket(&pass[0]) <= 16, "{passes:?}");
    }
}

#[tokio::test]
async fn equal_texts_at_the_same_time_run_once_and_later_ones_not_at_all() {
    let (open, gate) = mpsc::channel();
    let Setup { encoder, passes, .. } = encoder(Some(gate), 1000);
    let same = texts(&["red"]);
    let all = join_all((0..5).map(|_| encoder.embed(&same)));
    let opening = async {
        until(|| !passes.lock().unwrap().is_empty()).await;
        open.send(()).unwrap();
    };
    let (answers, ()) = futures::join!(all, opening);
    let outcomes: Vec<Outcome> = answers.into_iter().map(|answer| answer.unwrap()[0].1).collect();
    assert_eq!(
        outcomes
            .iter()
            .filter(|outcome| **outcome == Outcome::Miss)
            .count(),
        1,
        "{outcomes:?}"
    );
    assert_eq!(encoder.embed(&same).await.unwrap()[0].1, Outcome::Hit);
    assert_eq!(passes.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_kept_is_answered_without_tokens_beside_what_is_not() {
    let Setup { encoder, passes, .. } = encoder(None, 1000);
    encoder.embed(&texts(&["red"])).await.unwrap();
    let asked = texts(&["red", "blue", "red"]);
    let answers = encoder.embed(&asked).await.unwrap();
    let outcomes: Vec<Outcome> = answers.iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(outcomes, [Outcome::Hit, Outcome::Miss, Outcome::Hit]);
    assert_eq!(answers[0], answers[2]);
    assert_eq!(answers[1].0.data[..4], f32::from(b'b').to_le_bytes());
    assert_eq!(*passes.lock().unwrap(), [["red"], ["blue"]]);
    assert_eq!(encoder.tokenizer.0.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn over_the_limit_a_text_is_refused_at_once_and_taken_again_later() {
    let (open, gate) = mpsc::channel();
    let Setup { encoder, passes, .. } = encoder(Some(gate), 20);
    let first = tokio::spawn({
        let encoder = Arc::clone(&encoder);
        async move { encoder.embed(&texts(&["fifteen letters"])).await }
    });
    until(|| !passes.lock().unwrap().is_empty()).await;
    let refused = encoder.embed(&texts(&["another"])).await.unwrap_err();
    assert!(
        matches!(refused, EmbedError::Full(refused) if refused.queued == 16),
        "{refused:?}"
    );
    let status = tonic::Status::from(muse_service::Error::from(refused));
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    let details = tonic_types::StatusExt::get_error_details(&status);
    assert!(
        details.retry_info().is_some() && details.quota_failure().is_some(),
        "{details:?}"
    );

    open.send(()).unwrap();
    open.send(()).unwrap();
    first.await.unwrap().unwrap();
    encoder.embed(&texts(&["another"])).await.unwrap();
    assert_eq!(encoder.admission.queued(), 0);
}

#[tokio::test]
async fn a_text_whose_caller_left_is_not_run_and_gives_its_place_back() {
    let (open, gate) = mpsc::channel();
    let Setup { encoder, passes, .. } = encoder(Some(gate), 1000);
    let ask = |text: &'static str| {
        let encoder = Arc::clone(&encoder);
        tokio::spawn(async move { encoder.embed(&texts(&[text])).await })
    };
    let running = ask("now");
    until(|| !passes.lock().unwrap().is_empty()).await;
    let left = ask("gone");
    until(|| encoder.admission.queued() == 8 + 4).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    let stays = ask("stay");
    until(|| encoder.admission.queued() == 8 + 4 + 8).await;
    open.send(()).unwrap();
    open.send(()).unwrap();
    running.await.unwrap().unwrap();
    stays.await.unwrap().unwrap();
    assert!(
        !passes.lock().unwrap().iter().flatten().any(|text| text == "gone"),
        "{passes:?}"
    );
    assert_eq!(encoder.admission.queued(), 0);
}

#[tokio::test]
async fn only_the_culprit_of_a_failing_pass_fails() {
    let Setup { encoder, passes, .. } = encoder(None, 1000);
    let (good, bad, fine) = (texts(&["ok"]), texts(&["bad"]), texts(&["yes"]));
    let (good, bad, fine) = futures::join!(encoder.embed(&good), encoder.embed(&bad), encoder.embed(&fine));
    let seen = passes.lock().unwrap().clone();
    assert!(good.is_ok() && fine.is_ok(), "{good:?} {fine:?} {seen:?}");
    assert!(matches!(bad, Err(EmbedError::Model(_))), "{bad:?}");
}

#[tokio::test]
async fn every_bad_text_is_named_with_its_count_and_the_limit() {
    let Setup { encoder, passes, .. } = encoder(None, 1000);
    let faults = |asked: Vec<String>| {
        let encoder = Arc::clone(&encoder);
        async move {
            match encoder.embed(&asked).await {
                Err(EmbedError::Request(faults)) => faults,
                other => panic!("{other:?}"),
            }
        }
    };
    let long = faults(texts(&["good", &"x".repeat(20), &"y".repeat(101)])).await;
    assert_eq!(long.len(), 2);
    assert_eq!(long[0].field, "texts[1]");
    assert!(
        long[0].description.contains("21 tokens") && long[0].description.contains("16"),
        "{long:?}"
    );
    assert_eq!(long[1].field, "texts[2]");
    assert!(long[1].description.contains("101 bytes"), "{long:?}");
    assert_eq!(faults(Vec::new()).await[0].field, "texts");
    assert_eq!(faults(texts(&["a"; 9])).await[0].field, "texts");
    assert!(
        passes.lock().unwrap().is_empty(),
        "nothing of a refused request runs"
    );
}

#[tokio::test]
async fn the_thread_ends_when_nobody_can_ask_any_more() {
    let Setup {
        encoder, warm, ended, ..
    } = encoder(None, 1000);
    warm.await.unwrap();
    encoder.embed(&texts(&["last"])).await.unwrap();
    drop(encoder);
    assert_eq!(ended.await.unwrap(), Ok(()));
}

#[test]
fn warm_up_reaches_every_bucket() {
    let buckets: Vec<usize> = texts_of_every_bucket(&Characters::default())
        .iter()
        .map(|text| text.bucket)
        .collect();
    assert_eq!(buckets, [4, 8, 16]);
}
