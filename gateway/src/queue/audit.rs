//! The audit: proves, while the queue runs, that every job is in exactly one place and the counters are right, and mends
//! what is not. A walk over all keys, a batch a call; the script says what "right" means.

use redis::Value;
use tokio::sync::mpsc;

use super::{Queue, call::foreign, scripts};
use crate::{connection::RedisError, jobs::Nonce};

/// Names that one call of the script looks at; its own limit.
const BATCH: usize = 100;

/// What is wrong with a part of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A job is not in the one place where its state belongs.
    Misplaced,
    /// An entry belongs to no job.
    Orphan,
    /// A job's record cannot be understood.
    Broken,
    /// A counter differs from a recount.
    Counter,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub fault: Fault,
    /// The job, entry, key or counter.
    pub subject: String,
    /// In words.
    pub detail: String,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Jobs.
    pub jobs: u64,
    /// Entries of sets, and keys that belong to jobs.
    pub entries: u64,
    /// Things that were wrong.
    pub findings: u64,
}

/// News of an audit.
#[derive(Clone, Debug)]
pub enum AuditEvent {
    /// Something is wrong (and mended, if that was asked for).
    Found(Finding),
    /// So far.
    Progress(Audited),
}

/// Why an audit ended early.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Another one began, or this one was held up for too long.
    #[error("another audit has begun")]
    Superseded,
    /// Nobody listens any more.
    #[error("nobody listens")]
    Abandoned,
    /// See [`RedisError`].
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// An audit of one shard.
struct Walk<'a> {
    queue: &'a Queue,
    shard: u16,
    prefix: String,
    token: String,
    repair: bool,
    events: &'a mpsc::Sender<AuditEvent>,
    sums: Audited,
}

impl Queue {
    /// Looks at every job, entry and counter, and tells what is wrong as it is found.
    ///
    /// # Errors
    /// [`AuditError`]; what was found until then is told, and mended if that was asked for.
    pub async fn audit(
        &self,
        repair: bool,
        events: &mpsc::Sender<AuditEvent>,
    ) -> Result<Audited, AuditError> {
        let mut sums = Audited::default();
        for shard in 0..self.keys.shards() {
            let mut walk = Walk {
                queue: self,
                shard,
                prefix: self.keys.shard(shard),
                token: Nonce::random().to_string(),
                repair,
                events,
                sums,
            };
            walk.run().await?;
            sums = walk.sums;
        }
        Ok(sums)
    }
}

impl Walk<'_> {
    async fn run(&mut self) -> Result<(), AuditError> {
        self.step("begin", &[]).await?;
        let mut cursor = 0_u64;
        loop {
            let (next, keys) = self.scan(cursor, "*").await?;
            self.look(&keys).await?;
            self.tell(AuditEvent::Progress(self.sums)).await?;
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        self.counters().await?;
        self.step("end", &[]).await
    }

    /// A step through the shard's keys whose names match; the cursor is 0 at the end.
    async fn scan(&self, cursor: u64, names: &str) -> Result<(u64, Vec<String>), AuditError> {
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(glob(&self.prefix) + names);
        command.arg("COUNT").arg(BATCH * 5);
        Ok(self.queue.redis.query(&command).await?)
    }

    async fn look(&mut self, keys: &[String]) -> Result<(), AuditError> {
        let names: Vec<&str> = keys
            .iter()
            .filter_map(|key| key.strip_prefix(self.prefix.as_str()))
            .collect();
        let jobs: Vec<String> = names
            .iter()
            .filter_map(|name| name.strip_prefix("j:"))
            .map(str::to_owned)
            .collect();
        for chunk in jobs.chunks(BATCH) {
            self.step("jobs", chunk).await?;
        }
        self.sums.jobs += jobs.len() as u64;
        let is_owned = |name: &&&str| name.starts_with("idem:") || name.starts_with("hist:");
        let owned: Vec<String> = names
            .iter()
            .filter(is_owned)
            .map(|name| (*name).to_owned())
            .collect();
        for chunk in owned.chunks(BATCH) {
            self.step("keys", chunk).await?;
        }
        self.sums.entries += owned.len() as u64;
        for name in names {
            let is_sorted = ["q:", "wait:", "act:", "jobs:"]
                .iter()
                .any(|kind| name.starts_with(kind))
                || ["lease", "delay", "deadline", "done", "dead", "tenants"].contains(&name);
            if is_sorted {
                self.entries(name, "ZSCAN").await?;
            } else if name.starts_with("held:") {
                self.entries(name, "SSCAN").await?;
            }
        }
        Ok(())
    }

    async fn entries(&mut self, name: &str, scan: &str) -> Result<(), AuditError> {
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd(scan);
            command
                .arg(format!("{}{name}", self.prefix))
                .arg(cursor)
                .arg("COUNT")
                .arg(BATCH);
            let (next, found): (u64, Vec<String>) = self.queue.redis.query(&command).await?;
            // A sorted set's members come with their scores.
            let width = if scan == "ZSCAN" { 2 } else { 1 };
            let members: Vec<&String> = found.iter().step_by(width).collect();
            for chunk in members.chunks(BATCH - 1) {
                let names: Vec<String> = std::iter::once(name.to_owned())
                    .chain(chunk.iter().map(|member| (*member).clone()))
                    .collect();
                self.step("entries", &names).await?;
            }
            self.sums.entries += members.len() as u64;
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// Compares the counters with what the walk counted.
    async fn counters(&mut self) -> Result<(), AuditError> {
        let mut names = self.fields("recount", "").await?;
        names.extend(self.fields("cnt", "cnt:").await?);
        let mut cursor = 0_u64;
        loop {
            let (next, keys) = self.scan(cursor, "use:*").await?;
            for key in keys
                .iter()
                .filter_map(|key| key.strip_prefix(self.prefix.as_str()))
            {
                names.extend(self.fields(key, &format!("{key}:")).await?);
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        names.sort_unstable();
        names.dedup();
        for chunk in names.chunks(BATCH) {
            self.step("counters", chunk).await?;
        }
        Ok(())
    }

    async fn fields(&self, key: &str, before: &str) -> Result<Vec<String>, AuditError> {
        let mut command = redis::cmd("HKEYS");
        command.arg(format!("{}{key}", self.prefix));
        let fields: Vec<String> = self.queue.redis.query(&command).await?;
        Ok(fields
            .into_iter()
            .map(|field| format!("{before}{field}"))
            .collect())
    }

    async fn step(&mut self, act: &str, names: &[String]) -> Result<(), AuditError> {
        let mut call = self.queue.on(&scripts::AUDIT, self.shard);
        call.arg(&self.token)
            .arg(act)
            .arg(u8::from(self.repair))
            .arg(self.queue.config.lease_ms)
            .arg(self.queue.config.audit_patience_ms)
            .arg(names);
        let found = match self.queue.redis.eval::<Value>(&call).await? {
            Value::Array(found) => found,
            Value::BulkString(word) if word == b"superseded" => return Err(AuditError::Superseded),
            other => return Err(foreign("audit", &format!("{other:?}")).into()),
        };
        for entry in found {
            let (kind, subject, detail): (String, String, String) =
                redis::from_redis_value(entry).map_err(|error| foreign("audit", &error.to_string()))?;
            let fault = match kind.as_str() {
                "misplaced" => Fault::Misplaced,
                "orphan" => Fault::Orphan,
                "broken" => Fault::Broken,
                "counter" => Fault::Counter,
                other => return Err(foreign("audit", other).into()),
            };
            self.sums.findings += 1;
            self.tell(AuditEvent::Found(Finding {
                fault,
                subject,
                detail,
            }))
            .await?;
        }
        Ok(())
    }

    async fn tell(&self, event: AuditEvent) -> Result<(), AuditError> {
        self.events.send(event).await.map_err(|_| AuditError::Abandoned)
    }
}

/// A prefix as a pattern that matches itself alone.
fn glob(prefix: &str) -> String {
    let escape = |character: char| match character {
        '*' | '?' | '[' | ']' | '\\' => format!("\\{character}"),
        plain => plain.to_string(),
    };
    prefix.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_matches_itself_alone() {
        assert_eq!(glob("muse:{s0}:"), "muse:{s0}:");
        assert_eq!(glob("a*[b]?"), "a\\*\\[b\\]\\?");
    }
}
