//! One call of a script for all who want it at the same time: dispatch, clock, log and fsync are paid once. `lane.rs` has
//! who shares a call with whom; this is the call.

use std::{collections::HashSet, marker::PhantomData, pin::pin, sync::Arc, task::Poll};

use futures::poll;
use redis::{Cmd, FromRedisValue, Script};

use super::{
    call::foreign,
    gathering::Limits,
    keys::Keys,
    lane::{Calls, Lane},
};
use crate::connection::{Bells, Call, Redis, RedisError};

/// A script that takes several items a call and answers each, as if each had been called alone; cloning is cheap.
pub(super) struct Coalesced<A: FromRedisValue + Send + 'static>(Arc<Inner<A>>);

struct Inner<A: FromRedisValue + Send + 'static> {
    redis: Redis,
    name: &'static str,
    /// For each shard.
    lanes: Vec<Lane<ScriptCalls<A>>>,
}

/// What a call has for one of those who share it.
pub(super) struct Item {
    /// A command without a name.
    arguments: Cmd,
    /// What is written in the same transaction.
    writes: Vec<Cmd>,
    ahead: Option<Ahead>,
}

/// Who hears of an item as soon as it is on its way.
pub(super) struct Ahead {
    pub(super) bells: Bells,
    pub(super) what: Coming,
}

/// What an item brings.
pub(super) enum Coming {
    /// Work for a pool.
    Work(String),
    /// The end of a job.
    End(String),
}

/// The calls of a script in one shard.
struct ScriptCalls<A> {
    redis: Redis,
    key: String,
    name: &'static str,
    script: &'static Script,
    /// The arguments before those of the items; a command without a name, as items are.
    constants: Arc<Cmd>,
    answers: PhantomData<fn() -> A>,
}

// === impl Item ===

impl Item {
    pub(super) fn writing(arguments: Cmd, writes: &[Cmd]) -> Self {
        Self {
            arguments,
            writes: writes.to_vec(),
            ahead: None,
        }
    }

    pub(super) fn telling(self, ahead: Option<Ahead>) -> Self {
        Self { ahead, ..self }
    }

    fn bytes(&self) -> usize {
        std::iter::once(&self.arguments)
            .chain(&self.writes)
            .flat_map(Cmd::args_iter)
            .map(|argument| length(&argument))
            .sum()
    }
}

impl From<Cmd> for Item {
    fn from(arguments: Cmd) -> Self {
        Self::writing(arguments, &[])
    }
}

// === impl Coalesced ===

impl<A: FromRedisValue + Send + 'static> Clone for Coalesced<A> {
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
        let constants = Arc::new(constants);
        let lane = |shard| {
            let calls = ScriptCalls {
                redis: redis.clone(),
                key: keys.shard(shard) + "meta",
                name,
                script,
                constants: Arc::clone(&constants),
                answers: PhantomData,
            };
            Lane::new(calls, limits)
        };
        Self(Arc::new(Inner {
            redis: redis.clone(),
            name,
            lanes: (0..keys.shards()).map(lane).collect(),
        }))
    }

    /// Calls the script for one item. Whoever does not wait for the answer takes nothing from the others: what was not sent
    /// then is not sent any more.
    pub(super) async fn call(&self, shard: u16, item: Item) -> Result<A, RedisError> {
        let Some(lane) = self.0.lanes.get(usize::from(shard)) else {
            return Err(RedisError::Refused(format!("there is no shard {shard}")));
        };
        let bytes = item.bytes();
        let answered = lane.ask(item, bytes);
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

// === impl ScriptCalls ===

impl<A: FromRedisValue + Send + 'static> Calls for ScriptCalls<A> {
    type Item = Item;
    type Answer = A;

    fn name(&self) -> &'static str {
        self.name
    }

    async fn call(&self, items: &[&Item]) -> Result<Vec<A>, RedisError> {
        metrics::histogram!("muse_script_items", "script" => self.name).record(items.len() as f64);
        let mut call = Call::new(self.script, self.key.clone());
        call.args_of(&self.constants);
        for item in items {
            call.args_of(&item.arguments).writing(&item.writes);
        }
        let mut asked = pin!(self.redis.eval(&call));
        // With the first look it is on its way, where there is a connection. Where there is none, who asks waits as well.
        let first = poll!(asked.as_mut());
        ring(items.iter().filter_map(|item| item.ahead.as_ref()));
        let answers: Vec<A> = match first {
            Poll::Ready(answers) => answers?,
            Poll::Pending => asked.await?,
        };
        if answers.len() != items.len() {
            let told = format!("{} answers for {} items", answers.len(), items.len());
            return Err(foreign(self.name, &told));
        }
        Ok(answers)
    }
}

/// Tells those concerned. A pool once, as its doorbell does: whoever looks then and finds more than it can take passes that on.
fn ring<'a>(all: impl Iterator<Item = &'a Ahead>) {
    let mut pools = HashSet::new();
    for Ahead { bells, what } in all {
        match what {
            Coming::Work(pool) => {
                if pools.insert(pool) {
                    bells.work_ahead(pool);
                }
            }
            Coming::End(job) => bells.end_ahead(job),
        }
    }
}

fn length(argument: &redis::Arg<&[u8]>) -> usize {
    match argument {
        redis::Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    }
}
