//! Which faults come when: drawn from a seed, and the same for the same seed. Pure.

use std::fmt;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// Something that goes wrong, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and down for a while.
    Kill { part: String, down_ms: u64 },
    /// SIGSTOP, and SIGCONT after a while.
    Stop { part: String, ms: u64 },
    /// SIGTERM: it drains.
    Terminate { part: String },
    /// An operator has a worker drained through the API.
    Drain { part: String },
    /// kill -9 of Redis, and half a command more at the end of its log: what a crash of the machine leaves.
    TornLog { down_ms: u64 },
    /// kill -9 of Redis, and what it wrote in the last while is gone: what a crash of the machine takes that syncs each
    /// second. Only for a queue that promises no more.
    CutLog { lost_ms: u64 },
    /// Redis cannot write another byte, until it is started again, or for so long where it goes on.
    DiskFull { ms: u64 },
    /// Redis' memory is nearly full.
    MemoryShort { ms: u64 },
    /// Redis' memory is full.
    MemoryFull { ms: u64 },
    /// Redis' time of day jumps by so much, and stays so.
    ClockJump { ms: i64 },
    /// Redis forgets all scripts.
    ScriptFlush,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Faults that overlap, each so many milliseconds after the one before it; with so many failpoints armed.
    Burst {
        faults: Vec<(u64, Fault)>,
        failpoints: usize,
    },
    /// One alone, and quiet until recovery can be judged.
    Lone(Fault),
}

/// The parts there are.
#[derive(Clone, Debug)]
pub struct Parts {
    pub gateways: Vec<String>,
    /// Those that start in no time.
    pub workers: Vec<String>,
    /// Those that load a model.
    pub slow_workers: Vec<String>,
}

/// What this machine lets be done to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Means {
    /// Its clock can be set.
    pub clock: bool,
    /// Its files can be kept from growing.
    pub disk: bool,
}

/// What Redis promises, which decides what may be done to its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Every write is synced.
    Always,
    /// Up to two seconds may be lost.
    Everysec,
}

/// Without an end.
#[derive(Debug)]
pub struct Schedule {
    rng: StdRng,
    parts: Parts,
    promise: Promise,
    means: Means,
    lease_ms: u64,
    /// Special faults that are still to come before each has come again.
    deck: Vec<Special>,
    lone_next: bool,
}

#[derive(Clone, Copy, Debug)]
enum Special {
    StopGateway,
    StopWorker,
    TerminateGateway,
    DrainWorker,
    KillRedis,
    StopRedis,
    TornLog,
    CutLog,
    DiskFull,
    MemoryShort,
    MemoryFull,
    ClockForward,
    ClockBack,
    ScriptFlush,
    KillSlowWorker,
}

/// Failpoints of a burst.
const FAILPOINTS: usize = 5;

impl Schedule {
    /// For these parts.
    pub fn new(seed: u64, parts: Parts, promise: Promise, means: Means, lease_ms: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            parts,
            promise,
            means,
            lease_ms,
            deck: vec![],
            lone_next: false,
        }
    }

    fn one_of(&mut self, parts: &[String]) -> String {
        parts[self.rng.random_range(0..parts.len())].clone()
    }

    fn kill(&mut self, gateways: f64) -> Fault {
        let parts = if self.rng.random_bool(gateways) {
            self.parts.gateways.clone()
        } else {
            self.parts.workers.clone()
        };
        Fault::Kill {
            part: self.one_of(&parts),
            down_ms: self.rng.random_range(50..600),
        }
    }

    fn special(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = self.fresh_deck();
            self.deck.shuffle(&mut self.rng);
        }
        let (gateways, workers) = (self.parts.gateways.clone(), self.parts.workers.clone());
        match self.deck.pop() {
            Some(Special::StopGateway) => Fault::Stop {
                part: self.one_of(&gateways),
                ms: self.rng.random_range(300..self.lease_ms + 1500),
            },
            // Long enough for its leases to run out: it comes back and finds others at its work.
            Some(Special::StopWorker) => Fault::Stop {
                part: self.one_of(&workers),
                ms: self.rng.random_range(self.lease_ms..self.lease_ms + 1500),
            },
            Some(Special::TerminateGateway) => Fault::Terminate {
                part: self.one_of(&gateways),
            },
            Some(Special::DrainWorker) => Fault::Drain {
                part: self.one_of(&workers),
            },
            Some(Special::KillSlowWorker) => {
                let slow = self.parts.slow_workers.clone();
                Fault::Kill {
                    part: self.one_of(&slow),
                    down_ms: 100,
                }
            }
            Some(Special::StopRedis) => Fault::Stop {
                part: REDIS.to_owned(),
                ms: self.rng.random_range(200..4000),
            },
            Some(Special::TornLog) => Fault::TornLog {
                down_ms: self.rng.random_range(50..500),
            },
            Some(Special::CutLog) => Fault::CutLog {
                lost_ms: self.rng.random_range(200..1000),
            },
            Some(Special::DiskFull) => Fault::DiskFull {
                ms: self.rng.random_range(500..2500),
            },
            Some(Special::MemoryShort) => Fault::MemoryShort {
                ms: self.rng.random_range(1500..3000),
            },
            Some(Special::MemoryFull) => Fault::MemoryFull {
                ms: self.rng.random_range(500..2500),
            },
            Some(Special::ClockForward) => Fault::ClockJump {
                ms: self.rng.random_range(2_000..15_000),
            },
            Some(Special::ClockBack) => Fault::ClockJump {
                ms: -self.rng.random_range(2_000..15_000),
            },
            Some(Special::ScriptFlush) => Fault::ScriptFlush,
            Some(Special::KillRedis) | None => self.kill_redis(),
        }
    }

    fn kill_redis(&mut self) -> Fault {
        Fault::Kill {
            part: REDIS.to_owned(),
            down_ms: self.rng.random_range(50..2500),
        }
    }

    fn fresh_deck(&self) -> Vec<Special> {
        let mut deck = vec![
            Special::StopGateway,
            Special::StopWorker,
            Special::TerminateGateway,
            Special::DrainWorker,
            Special::KillRedis,
            Special::StopRedis,
            Special::MemoryShort,
            Special::MemoryFull,
            Special::ScriptFlush,
        ];
        deck.push(match self.promise {
            Promise::Always => Special::TornLog,
            Promise::Everysec => Special::CutLog,
        });
        if self.means.disk {
            deck.push(Special::DiskFull);
        }
        if self.means.clock {
            deck.extend([Special::ClockForward, Special::ClockBack]);
        }
        if !self.parts.slow_workers.is_empty() {
            deck.push(Special::KillSlowWorker);
        }
        deck
    }

    fn burst(&mut self) -> Step {
        let mut faults: Vec<Fault> = (0..self.rng.random_range(2..=4))
            .map(|_| self.kill(0.4))
            .collect();
        faults.push(self.special());
        faults.push(self.special());
        faults.shuffle(&mut self.rng);
        let delayed = faults
            .into_iter()
            .map(|fault| (self.rng.random_range(0..500), fault))
            .collect();
        Step::Burst {
            faults: delayed,
            failpoints: FAILPOINTS,
        }
    }

    fn lone(&mut self) -> Step {
        Step::Lone(if self.rng.random_bool(0.65) {
            self.kill(0.0)
        } else {
            self.kill_redis()
        })
    }
}

/// What Redis is called among the cluster's parts.
pub const REDIS: &str = "valkey";

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.lone_next = !self.lone_next;
        Some(if self.lone_next { self.burst() } else { self.lone() })
    }
}

// === impl Fault ===

impl Fault {
    /// Its kind, for a table.
    pub fn kind(&self) -> &'static str {
        let of = |part: &str, names: [&'static str; 3]| match part {
            REDIS => names[2],
            part if part.starts_with("gateway") => names[0],
            _ => names[1],
        };
        match self {
            Self::Kill { part, .. } => of(part, ["kill gateway", "kill worker", "kill redis"]),
            Self::Stop { part, .. } => of(part, ["stop gateway", "stop worker", "stop redis"]),
            Self::Terminate { .. } => "terminate gateway",
            Self::Drain { .. } => "drain worker",
            Self::TornLog { .. } => "torn log",
            Self::CutLog { .. } => "cut log",
            Self::DiskFull { .. } => "disk full",
            Self::MemoryShort { .. } => "memory short",
            Self::MemoryFull { .. } => "memory full",
            Self::ClockJump { .. } => "clock jump",
            Self::ScriptFlush => "script flush",
        }
    }

    /// What it is done to.
    pub fn part(&self) -> &str {
        match self {
            Self::Kill { part, .. }
            | Self::Stop { part, .. }
            | Self::Terminate { part }
            | Self::Drain { part } => part,
            _ => REDIS,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind())?;
        match self {
            Self::Kill { part, down_ms } => write!(f, " {part}, down for {down_ms} ms"),
            Self::Stop { part, ms } => write!(f, " {part} for {ms} ms"),
            Self::Terminate { part } | Self::Drain { part } => write!(f, " {part}"),
            Self::TornLog { down_ms } => write!(f, ", down for {down_ms} ms"),
            Self::CutLog { lost_ms } => write!(f, " by {lost_ms} ms"),
            Self::DiskFull { ms } | Self::MemoryShort { ms } | Self::MemoryFull { ms } => {
                write!(f, " for {ms} ms")
            }
            Self::ClockJump { ms } => write!(f, " by {ms} ms"),
            Self::ScriptFlush => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn schedule(seed: u64) -> Schedule {
        let names = |kind: &str| (0..2).map(|index| format!("{kind}-{index}")).collect();
        let parts = Parts {
            gateways: names("gateway"),
            workers: names("noop-base"),
            slow_workers: names("base"),
        };
        let means = Means {
            clock: true,
            disk: true,
        };
        Schedule::new(seed, parts, Promise::Always, means, 2000)
    }

    #[test]
    fn a_seed_gives_one_schedule() {
        let steps = |seed| schedule(seed).take(50).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_kind_comes_within_a_few_steps_and_losses_that_were_not_promised_never() {
        let mut kinds = BTreeSet::new();
        for step in schedule(3).take(20) {
            match step {
                Step::Burst { faults, .. } => kinds.extend(faults.iter().map(|(_, fault)| fault.kind())),
                Step::Lone(fault) => {
                    kinds.insert(fault.kind());
                }
            }
        }
        let expected = [
            "kill gateway",
            "kill worker",
            "kill redis",
            "stop gateway",
            "stop worker",
            "stop redis",
            "terminate gateway",
            "drain worker",
            "torn log",
            "disk full",
            "memory short",
            "memory full",
            "clock jump",
            "script flush",
        ];
        assert_eq!(kinds, expected.into_iter().collect());
    }
}
