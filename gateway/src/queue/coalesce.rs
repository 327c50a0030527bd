//! One call of a script for all who want it at the same time: dispatch, clock, log and fsync are paid once. The first goes
//! at once; whoever comes while calls are under way shares the next one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redis::{Cmd, FromRedisValue, Script};
use tokio::sync::oneshot;

use super::{
    gathering::{Gathering, Limits},
    keys::Keys,
    write::foreign,
};
use crate::connection::{Call, Redis, RedisError};

/// A script that takes several items a call and answers each, as if each had been called alone; cloning is cheap.
pub(super) struct Coalesced<A>(Arc<Inner<A>>);

struct Inner<A> {
    redis: Redis,
    keys: Keys,
    name: &'static str,
    script: &'static Script,
    /// The arguments before those of the items; a command without a name, as items are.
    constants: Cmd,
    /// For each shard.
    lanes: Vec<Mutex<Gathering<Asked<A>>>>,
}

struct Asked<A> {
    item: Cmd,
    answer: oneshot::Sender<Result<A, RedisError>>,
}

impl<A> Clone for Coalesced<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: FromRedisValue + Send + 'static> Coalesced<A> {
    pub(super) fn new(
        (redis, keys): (&Redis, &Keys),
        (name, script): (&'static str, &'static Script),
        constants: Cmd,
        limits: Limits,
    ) -> Self {
        let lanes = (0..keys.shards()).map(|_| Mutex::new(Gathering::new(limits)));
        Self(Arc::new(Inner {
            redis: redis.clone(),
            keys: keys.clone(),
            name,
            script,
            constants,
            lanes: lanes.collect(),
        }))
    }

    /// Calls the script for one item. Whoever does not wait for the answer takes nothing from the others: what was not sent
    /// then is not sent any more.
    pub(super) async fn call(&self, shard: u16, item: Cmd) -> Result<A, RedisError> {
        let Some(lane) = self.0.lanes.get(usize::from(shard)) else {
            return Err(RedisError::Refused(format!("there is no shard {shard}")));
        };
        let (answer, answered) = oneshot::channel();
        let bytes = item.args_iter().map(|argument| length(&argument)).sum();
        if lock(lane).push(Asked { item, answer }, bytes) {
            // By itself: whoever came first may leave.
            tokio::spawn(Arc::clone(&self.0).run(shard));
        }
        // As long as a call of one's own would take at most, however long those before it take.
        let limit = self.0.redis.longest_call();
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(RedisError::Unavailable("the gateway is stopping".to_owned())),
            Err(_) => Err(RedisError::Unavailable(format!(
                "script {} was not answered in {} ms",
                self.0.name,
                limit.as_millis()
            ))),
        }
    }
}

impl<A: FromRedisValue + Send + 'static> Inner<A> {
    async fn run(self: Arc<Self>, shard: u16) {
        let Some(lane) = self.lanes.get(usize::from(shard)) else {
            return;
        };
        loop {
            // Those who are ready now get in too.
            tokio::task::yield_now().await;
            let next = lock(lane).next(|asked| !asked.answer.is_closed());
            let Some(asked) = next else { return };
            let items: Vec<&Cmd> = asked.iter().map(|asked| &asked.item).collect();
            match self.call(shard, &items).await {
                Ok(answers) => {
                    for (asked, answer) in asked.into_iter().zip(answers) {
                        // Whoever left needs no answer.
                        let _ = asked.answer.send(Ok(answer));
                    }
                }
                // One item's fault is not the others': scripts can be repeated.
                Err(RedisError::Refused(_)) if items.len() > 1 => {
                    for asked in asked {
                        let alone = self.call(shard, &[&asked.item]).await;
                        let answer = alone.and_then(|answers| {
                            let first = answers.into_iter().next();
                            first.ok_or_else(|| foreign(self.name, "nothing"))
                        });
                        let _ = asked.answer.send(answer);
                    }
                }
                Err(error) => {
                    for asked in asked {
                        let _ = asked.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// An answer for each item, in order.
    async fn call(&self, shard: u16, items: &[&Cmd]) -> Result<Vec<A>, RedisError> {
        metrics::histogram!("muse_script_items", "script" => self.name).record(items.len() as f64);
        let mut call = Call::new(self.script, self.keys.shard(shard) + "meta");
        call.args_of(&self.constants);
        for item in items {
            call.args_of(item);
        }
        let answers: Vec<A> = self.redis.eval(&call).await?;
        if answers.len() != items.len() {
            let told = format!("{} answers for {} items", answers.len(), items.len());
            return Err(foreign(self.name, &told));
        }
        Ok(answers)
    }
}

fn length(argument: &redis::Arg<&[u8]>) -> usize {
    match argument {
        redis::Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
