//! What an accepted write survives: what is asked for, how the server is asked, and what it answered. Pure.

use redis::{Cmd, FromRedisValue as _, RedisResult, Value};

use super::RedisError;
use crate::config::{self, Durability};

/// What is promised of a confirmed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarantee {
    /// On the primary.
    pub durability: Durability,
    /// Replicas that have it.
    pub replicas: u32,
    /// They have it on disk.
    pub replicas_on_disk: bool,
    /// How long replicas, and the disk with [`Durability::Synced`], may take.
    pub timeout_ms: u64,
}

/// What was confirmed of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmed {
    /// On the primary, by its configuration or its answer.
    pub primary: Durability,
    /// Replicas that have it, at least; 0 when none were asked.
    pub replicas: u32,
    /// They have it on disk.
    pub replicas_on_disk: bool,
}

// === impl Guarantee ===

impl From<Durability> for Guarantee {
    /// Of the primary alone.
    fn from(durability: Durability) -> Self {
        Self {
            durability,
            replicas: 0,
            replicas_on_disk: false,
            timeout_ms: config::Queue::default().confirm_timeout_ms,
        }
    }
}

impl From<&config::Queue> for Guarantee {
    fn from(config: &config::Queue) -> Self {
        Self {
            durability: config.durability,
            replicas: config.replicas,
            replicas_on_disk: config.replicas_on_disk,
            timeout_ms: config.confirm_timeout_ms,
        }
    }
}

impl Guarantee {
    /// Whether a reply alone is not enough: something must be waited for.
    pub(super) fn waits(&self) -> bool {
        self.durability == Durability::Synced || self.replicas > 0
    }

    /// Whether the server must know WAITAOF.
    pub(super) fn needs_waitaof(&self) -> bool {
        self.durability == Durability::Synced || (self.replicas > 0 && self.replicas_on_disk)
    }

    /// What confirms every write that this connection's server has done before.
    pub(super) fn questions(&self) -> Vec<Cmd> {
        let synced = self.durability == Durability::Synced;
        let waitaof = |local: u32, replicas: u32| {
            let mut command = redis::cmd("WAITAOF");
            command.arg(local).arg(replicas).arg(self.timeout_ms);
            command
        };
        let mut questions = Vec::new();
        if self.replicas > 0 && self.replicas_on_disk {
            questions.push(waitaof(u32::from(synced), self.replicas));
        } else {
            if synced {
                questions.push(waitaof(1, 0));
            }
            if self.replicas > 0 {
                let mut command = redis::cmd("WAIT");
                command.arg(self.replicas).arg(self.timeout_ms);
                questions.push(command);
            }
        }
        questions
    }

    /// What the answers to [`Guarantee::questions`] amount to.
    ///
    /// # Errors
    /// [`RedisError::NotConfirmed`] when it is less than promised.
    pub(super) fn judge(&self, answers: Vec<Value>) -> Result<Confirmed, RedisError> {
        let (disks, replicas) = read(answers).map_err(|error| RedisError::Refused(error.to_string()))?;
        let wanted = u32::from(self.durability == Durability::Synced);
        if disks < wanted || replicas < self.replicas {
            return Err(RedisError::NotConfirmed {
                wanted: wanted + self.replicas,
                got: disks.min(wanted) + replicas.min(self.replicas),
            });
        }
        Ok(Confirmed {
            primary: self.durability,
            replicas,
            replicas_on_disk: self.replicas_on_disk && replicas > 0,
        })
    }
}

/// The primary's own disk (0 or 1), and replicas.
fn read(answers: Vec<Value>) -> RedisResult<(u32, u32)> {
    let (mut disks, mut replicas) = (0, 0);
    for answer in answers {
        match answer {
            Value::Array(_) => {
                let (local, remote): (u32, u32) = redis::from_redis_value(answer)?;
                disks = disks.max(local);
                replicas = replicas.max(remote);
            }
            answer => replicas = replicas.max(u32::from_redis_value(answer)?),
        }
    }
    Ok((disks, replicas))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarantee(durability: Durability, replicas: u32, replicas_on_disk: bool) -> Guarantee {
        Guarantee {
            durability,
            replicas,
            replicas_on_disk,
            timeout_ms: 7,
        }
    }

    fn words(guarantee: Guarantee) -> Vec<String> {
        let text = |command: &Cmd| {
            let words: Vec<String> = command
                .args_iter()
                .map(|word| match word {
                    redis::Arg::Simple(word) => String::from_utf8_lossy(word).into_owned(),
                    _ => "?".to_owned(),
                })
                .collect();
            words.join(" ")
        };
        guarantee.questions().iter().map(text).collect()
    }

    fn pair(local: i64, replicas: i64) -> Value {
        Value::Array(vec![Value::Int(local), Value::Int(replicas)])
    }

    #[test]
    fn only_what_was_promised_is_waited_for() {
        assert_eq!(words(Durability::Always.into()), [""; 0]);
        assert_eq!(words(guarantee(Durability::Always, 2, false)), ["WAIT 2 7"]);
        assert_eq!(words(guarantee(Durability::Always, 2, true)), ["WAITAOF 0 2 7"]);
        assert_eq!(words(guarantee(Durability::Synced, 0, false)), ["WAITAOF 1 0 7"]);
        assert_eq!(
            words(guarantee(Durability::Synced, 1, false)),
            ["WAITAOF 1 0 7", "WAIT 1 7"]
        );
        assert_eq!(words(guarantee(Durability::Synced, 1, true)), ["WAITAOF 1 1 7"]);
    }

    #[test]
    fn less_than_promised_is_no_confirmation() {
        let two = guarantee(Durability::Always, 2, false);
        assert_eq!(two.judge(vec![Value::Int(2)]).unwrap().replicas, 2);
        let refused = two.judge(vec![Value::Int(1)]).unwrap_err();
        assert!(
            matches!(refused, RedisError::NotConfirmed { wanted: 2, got: 1 }),
            "{refused}"
        );
        let both = guarantee(Durability::Synced, 1, false);
        assert!(both.judge(vec![pair(0, 0), Value::Int(1)]).is_err());
        assert!(both.judge(vec![pair(1, 0), Value::Int(0)]).is_err());
        let confirmed = both.judge(vec![pair(1, 0), Value::Int(1)]).unwrap();
        assert!(!confirmed.replicas_on_disk);
        let disk = guarantee(Durability::Everysec, 1, true);
        assert!(disk.judge(vec![pair(0, 1)]).unwrap().replicas_on_disk);
    }
}
