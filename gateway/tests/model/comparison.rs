//! Plays a sequence of steps to the model and to Redis, and compares after each call: the reply, what was rung, every key.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use proptest::{
    collection::vec,
    strategy::Strategy as _,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

use crate::{
    calls::Call,
    keys::{Held, Keys},
    redis_side::{Change, RedisSide},
    sequence::Memory,
    shard::{Ms, Reply, Shard},
    steps::{Step, step},
    support::redis_server::RedisServer,
};

/// When every sequence begins.
const BEGINNING: Ms = 1_700_000_000_000;
/// Steps of a sequence.
const LENGTH: usize = 250;

/// What was played.
#[derive(Debug, Default)]
pub struct Played {
    pub calls: usize,
    pub sequences: usize,
    /// Script and the first word of its answer, and how often.
    pub answers: BTreeMap<String, usize>,
}

/// What is to be compared.
#[derive(Debug)]
pub struct Comparison {
    /// The same gives the same sequences.
    pub seed: u64,
    /// At least so many.
    pub calls: usize,
    /// Of the scripts.
    pub change: Option<Change>,
    /// Shorter sequences that are tried when one shows a difference.
    pub shrinks: u32,
}

/// Plays random sequences.
///
/// # Errors
/// The first difference, with the shortest sequence found that shows it.
pub fn compare(comparison: &Comparison) -> Result<Played, String> {
    let seed = comparison.seed;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let server = runtime.block_on(RedisServer::start_with(&["--appendonly", "no"]));
    let redis = RefCell::new(runtime.block_on(RedisSide::new(&server, comparison.change)));
    let played = RefCell::new(Played::default());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: comparison.shrinks,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let sequences = vec(step(), 1..2 * LENGTH);
    while played.borrow().calls < comparison.calls {
        let sequence = sequences.new_tree(&mut runner).expect("a sequence");
        let outcome = runner.run_one(sequence, |steps| {
            let mut redis = redis.borrow_mut();
            runtime
                .block_on(play(&mut redis, &steps, &mut played.borrow_mut()))
                .map_err(TestCaseError::fail)
        });
        match outcome {
            Ok(_) => played.borrow_mut().sequences += 1,
            Err(TestError::Fail(difference, steps)) => {
                return Err(format!(
                    "seed {seed}: {difference}\n{} steps: {steps:#?}",
                    steps.len()
                ));
            }
            Err(TestError::Abort(why)) => return Err(why.to_string()),
        }
    }
    Ok(played.into_inner())
}

async fn play(redis: &mut RedisSide, steps: &[Step], played: &mut Played) -> Result<(), String> {
    let (mut player, mut memory) = (Player::new(redis).await, Memory::default());
    let mut called = None;
    for step in steps {
        if let Step::Pass(ms) = step {
            player.pass(*ms).await;
        }
        // Only then nothing at all may change: with time, leases get longer and clocks go on.
        let is_again = matches!(step, Step::Again(0)) && called == Some(player.now);
        for call in memory.calls(&player.shard, step) {
            let before = player.shard.keys();
            let reply = player.call(&call).await?;
            called = Some(player.now);
            played.calls += 1;
            *played.answers.entry(answer(&call, &reply)).or_default() += 1;
            let after = player.shard.keys();
            if is_again && !call.is_a_batch() && before != after {
                let more = differences(&before, &after);
                return Err(format!("{}repeated, it changes more:{more}", player.told));
            }
            if let Call::Claim(_) = &call {
                remember(&mut memory, &player.shard, &reply);
            }
            memory.calls.push(call);
        }
    }
    Ok(())
}

/// Makes each call on both sides, beginning with nothing.
pub struct Player<'a> {
    redis: &'a mut RedisSide,
    pub shard: Shard,
    now: Ms,
    /// What was done so far, for a person.
    told: String,
}

impl<'a> Player<'a> {
    pub async fn new(redis: &'a mut RedisSide) -> Self {
        redis.clear().await;
        redis.set_clock(BEGINNING, &[]).await;
        Self {
            redis,
            shard: Shard::default(),
            now: BEGINNING,
            told: String::new(),
        }
    }

    /// Time passes; a negative one sets the clock back.
    pub async fn pass(&mut self, ms: Ms) {
        self.now += ms;
        let expiring = |shard: &Shard| shard.keys().expiries.into_keys().collect::<BTreeSet<String>>();
        let before = expiring(&self.shard);
        self.shard.expire(self.now);
        let expired: Vec<String> = before.difference(&expiring(&self.shard)).cloned().collect();
        self.redis.set_clock(self.now, &expired).await;
        let _ = writeln!(self.told, "{:>8} ms", self.now - BEGINNING);
    }

    /// # Errors
    /// What differs after it, with all that led there.
    pub async fn call(&mut self, call: &Call) -> Result<Reply, String> {
        let expected = self.shard.call(self.now, call);
        let actual = self.redis.call(call.script(), &call.arguments()).await;
        let _ = writeln!(
            self.told,
            "{} {:?} -> {actual:?}",
            call.script(),
            call.arguments()
        );
        if !agree(&expected, &actual) {
            return Err(format!("{}the model answers {expected:?}", self.told));
        }
        let (keys, rung) = self.redis.look().await;
        check(&mut self.shard, &keys, &rung).map_err(|difference| format!("{}{difference}", self.told))?;
        Ok(actual)
    }
}

fn check(shard: &mut Shard, keys: &Keys, rung: &[String]) -> Result<(), String> {
    shard.check_lines()?;
    let mut keys = keys.clone();
    let expected = shard.keys();
    // An empty `prev` is none.
    for (key, held) in &mut keys.keys {
        if let (true, Held::Hash(fields)) = (key.starts_with("j:"), held)
            && fields.get("prev").is_some_and(String::is_empty)
        {
            fields.remove("prev");
        }
    }
    if keys != expected {
        return Err(format!("the keys differ:{}", differences(&expected, &keys)));
    }
    shard.rung.sort_unstable();
    if shard.rung != rung {
        return Err(format!("the model rings {:?}, the script {rung:?}", shard.rung));
    }
    Ok(())
}

/// A script's own error is in its words; only that it is one must agree.
fn agree(expected: &Reply, actual: &Reply) -> bool {
    match (expected, actual) {
        (Reply::Error(expected), Reply::Error(actual)) => actual.contains(expected),
        _ => expected == actual,
    }
}

fn answer(call: &Call, reply: &Reply) -> String {
    let word = match reply {
        Reply::Error(_) => "refused".to_owned(),
        Reply::Text(word) if call.script() == "pause" => if word.is_empty() { "" } else { "was" }.to_owned(),
        Reply::Text(word) => word.clone(),
        // That of the first of several.
        Reply::List(parts) if ["submit", "complete"].contains(&call.script()) => match parts.first() {
            Some(Reply::List(first)) => match first.first() {
                Some(Reply::Text(word)) => word.clone(),
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        },
        Reply::List(parts) => match parts.first() {
            Some(Reply::Text(word)) if call.script() != "audit" => word.clone(),
            Some(_) => "some".to_owned(),
            None => "none".to_owned(),
        },
        Reply::Int(number) => number.to_string(),
    };
    format!("{} {word}", call.script())
}

fn remember(memory: &mut Memory, shard: &Shard, grants: &Reply) {
    let Reply::List(grants) = grants else { return };
    for grant in grants {
        let Reply::List(parts) = grant else { continue };
        if let [Reply::Text(id), Reply::Text(nonce), ..] = &parts[..] {
            let stage = shard
                .jobs
                .get(id)
                .map(|job| job.stage.clone())
                .unwrap_or_default();
            let lease = (id.clone(), nonce.clone(), stage);
            if !memory.leases.contains(&lease) {
                memory.leases.push(lease);
            }
        }
    }
}

fn differences(expected: &Keys, actual: &Keys) -> String {
    let mut text = String::new();
    let names: BTreeSet<&String> = expected.keys.keys().chain(actual.keys.keys()).collect();
    for name in names {
        let (model, redis) = (expected.keys.get(name), actual.keys.get(name));
        if model != redis {
            let _ = write!(text, "\n  {name}\n    model {model:?}\n    Redis {redis:?}");
        }
    }
    if expected.expiries != actual.expiries {
        let _ = write!(
            text,
            "\n  times of expiry\n    model {:?}\n    Redis {:?}",
            expected.expiries, actual.expiries
        );
    }
    text
}
