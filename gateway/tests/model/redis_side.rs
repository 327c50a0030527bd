//! The scripts in a real Redis, whose clock the test holds: the text that the gateway loads, under `clock.lua`.

use std::collections::{BTreeMap, HashMap};

use muse_gateway::queue::compose;
use redis::{AsyncConnectionConfig, Script, Value, aio::MultiplexedConnection};

use crate::{
    keys::{Held, Keys},
    shard::{Ms, Reply},
    support::{PATIENCE, redis_server::RedisServer},
};

const PREFIX: &str = "muse:{s0}:";

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../src/queue/scripts/", $name, ".lua")))),*]
    };
}

const COMMON: &str = include_str!("../../src/queue/scripts/common.lua");
const CLOCK: &str = include_str!("clock.lua");

/// The scripts of a shard.
pub const SOURCES: &[(&str, &str)] = sources![
    "submit",
    "claim",
    "beat",
    "complete",
    "fail",
    "release",
    "reap",
    "cancel",
    "purge",
    "tenant_set",
    "pause",
    "retry_dead",
    "purge_dead",
    "requeue",
    "audit",
];

/// All that a shard's keys hold, what was rung, and what goes by itself. The list `rung` is emptied.
const LOOK: &str = r"
local keys = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind, held = redis.call('TYPE', key).ok, nil
  if kind == 'hash' then held = redis.call('HGETALL', key)
  elseif kind == 'zset' then held = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then held = redis.call('SMEMBERS', key)
  elseif kind == 'list' then held = redis.call('LRANGE', key, 0, -1)
  else held = { redis.call('GET', key) } end
  keys[#keys + 1] = { key, kind, held }
end
local rung = redis.call('LRANGE', 'rung', 0, -1)
redis.call('DEL', 'rung')
return { keys, rung, redis.call('HGETALL', 'expiry') }
";

/// A change of the scripts' text, made where the test loads it.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The script's name, or `common`.
    pub script: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

/// What the gateway loads.
pub fn text(name: &str, source: &str, common: &str) -> String {
    let flags = if name == "submit" {
        "flags="
    } else {
        "flags=allow-oom"
    };
    compose(flags, common, source)
}

/// The script as the gateway loads it.
pub fn original(name: &str) -> Script {
    let (_, source) = SOURCES
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a script");
    Script::new(&text(name, source, COMMON))
}

pub struct RedisSide {
    connection: MultiplexedConnection,
    scripts: HashMap<&'static str, Script>,
    look: Script,
}

impl RedisSide {
    pub async fn new(server: &RedisServer, change: Option<Change>) -> Self {
        let mut texts: BTreeMap<&str, String> = SOURCES
            .iter()
            .map(|(name, source)| (*name, (*source).to_owned()))
            .collect();
        texts.insert("common", COMMON.to_owned());
        if let Some(change) = change {
            let text = texts.get_mut(change.script).expect("a script's name");
            let found = text.matches(change.from).count();
            assert_eq!(found, 1, "{change:?} must be there once");
            *text = text.replace(change.from, change.to);
        }
        let common = format!("{CLOCK}\n{}", texts["common"]);
        let scripts = SOURCES
            .iter()
            .map(|(name, _)| (*name, Script::new(&text(name, &texts[name], &common))));
        // A machine that is busy with other things is no difference.
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        Self {
            connection: server
                .client()
                .get_multiplexed_async_connection_with_config(&patient)
                .await
                .expect("a connection"),
            scripts: scripts.collect(),
            look: Script::new(LOOK),
        }
    }

    /// Empties it.
    pub async fn clear(&mut self) {
        let _: () = redis::cmd("FLUSHALL")
            .query_async(&mut self.connection)
            .await
            .expect("an answer");
    }

    /// Sets the clock, and lets go of what goes by itself.
    pub async fn set_clock(&mut self, now: Ms, expired: &[String]) {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg("clock").ignore();
        let (seconds, micros) = (now.div_euclid(1000), now.rem_euclid(1000) * 1000 + 7);
        pipeline
            .cmd("RPUSH")
            .arg("clock")
            .arg(seconds)
            .arg(micros)
            .ignore();
        for name in expired {
            pipeline.cmd("DEL").arg(format!("{PREFIX}{name}")).ignore();
            pipeline
                .cmd("HDEL")
                .arg("expiry")
                .arg(format!("{PREFIX}{name}"))
                .ignore();
        }
        let _: () = pipeline
            .query_async(&mut self.connection)
            .await
            .expect("an answer");
    }

    pub async fn call(&mut self, script: &'static str, arguments: &[String]) -> Reply {
        let mut call = self.scripts[script].key(format!("{PREFIX}meta"));
        for argument in arguments {
            call.arg(argument);
        }
        match call.invoke_async::<Value>(&mut self.connection).await {
            Ok(value) => reply(value),
            Err(error) => Reply::Error(error.detail().unwrap_or(&error.to_string()).to_owned()),
        }
    }

    /// All keys, and what was rung since the last look, in order of the alphabet.
    pub async fn look(&mut self) -> (Keys, Vec<String>) {
        type Seen = (Vec<(String, String, Vec<String>)>, Vec<String>, Vec<String>);
        let (keys, rung, expiry): Seen = self
            .look
            .arg(PREFIX)
            .invoke_async(&mut self.connection)
            .await
            .expect("an answer");
        let name = |key: &str| key.strip_prefix(PREFIX).expect("a key of the shard's").to_owned();
        let mut seen = Keys::default();
        for (key, kind, held) in keys {
            let pairs = held
                .iter()
                .step_by(2)
                .cloned()
                .zip(held.iter().skip(1).step_by(2));
            let held = match kind.as_str() {
                "hash" => Held::Hash(pairs.map(|(field, value)| (field, shortest(value))).collect()),
                "zset" => Held::Sorted(
                    pairs
                        .map(|(member, score)| (member, score.parse().expect("a score")))
                        .collect(),
                ),
                "set" => Held::Set(held.into_iter().collect()),
                "list" => Held::List(held),
                _ => Held::Text(shortest(held.first().expect("a text"))),
            };
            seen.keys.insert(name(&key), held);
        }
        for pair in expiry.chunks_exact(2) {
            seen.expiries
                .insert(name(&pair[0]), pair[1].parse().expect("a time"));
        }
        // One bell may ring for several jobs, a dot before each that has ended.
        let bells = |bell: &String| -> Vec<String> {
            let bell = name(bell);
            match bell.strip_prefix("ev ") {
                Some(jobs) => {
                    let mut dot = "";
                    let told = jobs.split(' ').filter_map(|word| {
                        let before = std::mem::replace(&mut dot, if word == "." { ". " } else { "" });
                        (word != ".").then(|| format!("ev {before}{word}"))
                    });
                    told.collect()
                }
                None => vec![bell],
            }
        };
        let mut rung: Vec<String> = rung.iter().flat_map(bells).collect();
        rung.sort_unstable();
        (seen, rung)
    }
}

/// A number the shortest way, anything else as it is.
fn shortest(text: &str) -> String {
    match text.parse::<f64>() {
        Ok(number) if text.contains('.') => number.to_string(),
        _ => text.to_owned(),
    }
}

fn reply(value: Value) -> Reply {
    match value {
        Value::Int(number) => Reply::Int(number),
        Value::BulkString(text) => Reply::Text(String::from_utf8_lossy(&text).into_owned()),
        Value::SimpleString(text) => Reply::Text(text),
        Value::Array(parts) => Reply::List(parts.into_iter().map(reply).collect()),
        other => Reply::Error(format!("an answer of no kind known: {other:?}")),
    }
}
