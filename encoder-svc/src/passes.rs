//! The thread that owns the model. It takes prompts from a channel, lets [`crate::batch`] put passes together, and answers
//! each prompt. Prompts whose caller has left are skipped.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use muse_engine::Embedding;
use tokio::sync::oneshot;

use crate::{
    admission::{Admission, Permit},
    batch::{Batch, Queue},
    error::EmbedError,
    model::{Embed, Tokenized},
};

/// What callers hold. When the last one is dropped, the thread finishes what waits and ends.
#[derive(Debug)]
pub(crate) struct Passes<T> {
    prompts: SyncSender<Prompt<T>>,
}

/// What the service holds.
#[derive(Debug)]
pub(crate) struct PassThread {
    /// Sent once to begin; dropped, the thread ends without having touched the model.
    pub(crate) begin: oneshot::Sender<()>,
    /// Fires once warm, or is dropped when warm-up failed.
    pub(crate) warm: oneshot::Receiver<()>,
    /// Why the thread ended; dropped unsaid when it panicked.
    pub(crate) ended: oneshot::Receiver<Result<(), String>>,
}

/// How passes are put together; see [`crate::config::Batch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassLimits {
    pub(crate) max_tokens: usize,
    pub(crate) max_wait: Duration,
    /// Prompts in the channel; admission lets no more through.
    pub(crate) max_prompts: usize,
}

#[derive(Debug)]
struct Prompt<T> {
    text: Tokenized<T>,
    reply: oneshot::Sender<Result<Embedding, EmbedError>>,
    // Held until the answer is there.
    permit: Permit,
}

// === impl Passes ===

impl<T> Clone for Passes<T> {
    fn clone(&self) -> Self {
        Self {
            prompts: self.prompts.clone(),
        }
    }
}

impl<T: Send + 'static> Passes<T> {
    /// Starts the thread: told to begin, it warms the model up on `warm_up`, then serves.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start<M: Embed<Tokens = T>>(
        model: M,
        warm_up: Vec<Tokenized<T>>,
        limits: PassLimits,
        admission: Admission,
    ) -> std::io::Result<(Self, PassThread)>
    where
        T: Clone,
    {
        let (prompts, arriving) = sync_channel(limits.max_prompts.max(1));
        let (begin, told) = oneshot::channel();
        let (warm_sender, warm) = oneshot::channel();
        let (end_sender, ended) = oneshot::channel();
        thread::Builder::new().name("passes".to_owned()).spawn(move || {
            if told.blocking_recv().is_err() {
                return;
            }
            let mut thread = Thread {
                model,
                queue: Queue::new(limits.max_tokens),
                limits,
                admission,
            };
            let result = thread.warm_up(&warm_up).map(|()| {
                // Nobody may be waiting for it.
                let _ = warm_sender.send(());
                thread.serve(&arriving);
            });
            let _ = end_sender.send(result);
        })?;
        Ok((Self { prompts }, PassThread { begin, warm, ended }))
    }

    /// The embedding of one text. Dropping the future takes the text out of the queue, unless its pass is running.
    pub(crate) async fn embed(&self, text: Tokenized<T>, permit: Permit) -> Result<Embedding, EmbedError> {
        let (reply, answer) = oneshot::channel();
        match self.prompts.try_send(Prompt { text, reply, permit }) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(_)) => return Err(EmbedError::Stopped),
            Err(TrySendError::Full(_)) => {
                return Err(EmbedError::Model(
                    "its channel is smaller than the admission limit".to_owned(),
                ));
            }
        }
        answer.await.unwrap_or(Err(EmbedError::Stopped))
    }
}

struct Thread<M: Embed> {
    model: M,
    queue: Queue<Prompt<M::Tokens>>,
    limits: PassLimits,
    admission: Admission,
}

// === impl Thread ===

impl<M: Embed> Thread<M> {
    /// Runs every bucket alone and the longest one full as well, so that the first callers do not pay for it, and the speed is
    /// known. There may be a bucket for each length: a full pass of every one would take seconds.
    fn warm_up(&mut self, texts: &[Tokenized<M::Tokens>]) -> Result<(), String>
    where
        M::Tokens: Clone,
    {
        let full = texts.last().map(|longest| {
            let prompts = (self.limits.max_tokens / longest.bucket.max(1)).max(1);
            (longest, prompts)
        });
        for (text, prompts) in texts.iter().map(|text| (text, 1)).chain(full) {
            let texts = vec![text.tokens.clone(); prompts];
            let begun = Instant::now();
            self.model.embed(&texts)?;
            self.admission.observe(text.bucket * prompts, begun.elapsed());
        }
        Ok(())
    }

    /// Until every [`Passes`] is dropped and nothing waits.
    fn serve(&mut self, arriving: &Receiver<Prompt<M::Tokens>>) {
        loop {
            if self.queue.is_empty() {
                match arriving.recv() {
                    Ok(prompt) => self.push(prompt),
                    Err(_) => return,
                }
                // A first prompt after a pause: a short wait lets its companions in. Under load nothing waits.
                self.gather_until(arriving, Instant::now() + self.limits.max_wait);
            }
            while let Ok(prompt) = arriving.try_recv() {
                self.push(prompt);
            }
            if let Some(batch) = self.queue.next() {
                self.run(batch);
            }
        }
    }

    fn push(&mut self, prompt: Prompt<M::Tokens>) {
        self.queue.push(prompt.text.bucket, prompt);
    }

    fn gather_until(&mut self, arriving: &Receiver<Prompt<M::Tokens>>, until: Instant) {
        while !self.queue.next_is_full() {
            match arriving.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(prompt) => self.push(prompt),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn run(&mut self, mut batch: Batch<Prompt<M::Tokens>>) {
        batch.prompts.retain(|prompt| !prompt.reply.is_closed());
        if batch.prompts.is_empty() {
            return;
        }
        let tokens = batch.tokens();
        let (texts, replies): (Vec<_>, Vec<_>) = batch
            .prompts
            .into_iter()
            .map(|prompt| (prompt.text.tokens, (prompt.reply, prompt.permit)))
            .unzip();
        metrics::histogram!("muse_embed_batch_tokens").record(tokens as f64);
        let begun = Instant::now();
        let mut answers = self.pass(&texts);
        self.admission.observe(tokens, begun.elapsed());
        metrics::histogram!("muse_embed_pass_seconds").record(begun.elapsed().as_secs_f64());
        // A failing pass is run again text by text, so that only the culprit fails.
        if texts.len() > 1 && answers.iter().any(Result::is_err) {
            tracing::warn!(texts = texts.len(), "a pass failed; trying its texts one by one");
            answers = texts.chunks(1).flat_map(|text| self.pass(text)).collect();
        }
        for ((reply, permit), answer) in replies.into_iter().zip(answers) {
            drop(permit);
            // The caller may have left during the pass.
            let _ = reply.send(answer);
        }
    }

    /// As many answers as texts.
    fn pass(&mut self, texts: &[M::Tokens]) -> Vec<Result<Embedding, EmbedError>> {
        let failed = |reason: String| {
            texts
                .iter()
                .map(|_| Err(EmbedError::Model(reason.clone())))
                .collect()
        };
        match self.model.embed(texts) {
            Ok(embeddings) if embeddings.len() == texts.len() => embeddings.into_iter().map(Ok).collect(),
            Ok(embeddings) => failed(format!(
                "it gave {} embeddings for {} texts",
                embeddings.len(),
                texts.len()
            )),
            Err(reason) => failed(reason),
        }
    }
}
