//! Whether the comparison would notice: rules of the scripts are switched off in the text that the test loads, one at a
//! time, and each time a difference must be found. Only here: the gateway's own text has no such switch.

use crate::{
    comparison::{Comparison, compare},
    redis_side::Change,
};

/// Calls within which a difference must be found.
const CALLS: usize = 40_000;

/// The change, and a text that stands once in the script, and what is put there.
type Mutation = (&'static str, &'static str, &'static str, &'static str);

fn all_are_noticed(mutations: &[Mutation]) {
    let unnoticed: Vec<&str> = mutations
        .iter()
        .filter(|mutation| !is_noticed(mutation))
        .map(|(what, ..)| *what)
        .collect();
    assert_eq!(
        unnoticed,
        Vec::<&str>::new(),
        "these are switched off and nobody notices"
    );
}

fn is_noticed((what, script, from, to): &Mutation) -> bool {
    let comparison = Comparison {
        seed: 7,
        calls: CALLS,
        change: Some(Change { script, from, to }),
        // That there is a difference is enough.
        shrinks: 0,
    };
    match compare(&comparison) {
        Ok(_) => false,
        Err(difference) => {
            let is_difference = [
                "the model answers",
                "the model rings",
                "the keys differ",
                "changes more",
            ]
            .iter()
            .any(|kind| difference.contains(kind));
            assert!(
                is_difference,
                "{what}: another failure than a difference: {difference}"
            );
            true
        }
    }
}

#[test]
fn what_a_tenant_or_an_audit_leaves_behind_is_noticed() {
    all_are_noticed(&[
        (
            "a forgotten tenant stays ahead",
            "common",
            "redis.call('HDEL', P .. 'vt:' .. model .. ':' .. stage, tenant)",
            "",
        ),
        (
            "a recount outlives its audit",
            "common",
            "redis.call('PEXPIRE', P .. 'recount', math.max(1, redis.call('PTTL', P .. 'audit')))",
            "",
        ),
    ]);
}

#[test]
fn without_the_nonce_check_the_comparison_fails() {
    all_are_noticed(&[
        (
            "any nonce completes a running job",
            "complete",
            "local holds = job.state == 'running' and job.nonce == nonce",
            "local holds = job.state == 'running'",
        ),
        (
            "any nonce fails a running job",
            "fail",
            "if job.state ~= 'running' or job.nonce ~= nonce then",
            "if job.state ~= 'running' then",
        ),
        (
            "any nonce releases a running job",
            "release",
            "(job.state ~= 'running' or job.nonce ~= nonce)",
            "job.state ~= 'running'",
        ),
        (
            "any nonce renews a running job's lease",
            "beat",
            "elseif job.state == 'running' and job.nonce == nonce then",
            "elseif job.state == 'running' then",
        ),
        (
            "a lost lease finishes a job that was taken over and given back",
            "claim",
            "redis.call('HDEL', P .. 'j:' .. id, 'prev')",
            "",
        ),
    ]);
}

#[test]
fn without_idempotency_the_comparison_fails() {
    all_are_noticed(&[
        (
            "a key is not looked up",
            "submit",
            "  if known then",
            "  if false then",
        ),
        (
            "another request passes under a known key",
            "submit",
            "known_hash == ARGV[i + 10] and 'existed' or 'conflict'",
            "'existed'",
        ),
        (
            "a job is written again",
            "submit",
            "if redis.call('EXISTS', P .. 'j:' .. id) == 1 then return reply('created', id) end",
            "",
        ),
        (
            "a claim whose reply was lost takes other jobs",
            "claim",
            "if last and string.match(last, '^%S+') == ARGV[FIRST] then",
            "if false then",
        ),
        (
            "a result is not known to be there",
            "complete",
            "if by_nonce == nonce then",
            "if false then",
        ),
        (
            "a failure counts twice",
            "fail",
            "if redis.call('HGET', P .. 'j:' .. id, 'failed') == nonce then",
            "if false then",
        ),
        (
            "a retry has no token",
            "retry_dead",
            "if job and redis.call('HGET', P .. 'j:' .. id, 'retried') == token then",
            "if false then",
        ),
        (
            "an audit that begins twice forgets what it counted",
            "audit",
            "if act == 'begin' and auditing() ~= token then",
            "if act == 'begin' then",
        ),
        (
            "a forgotten job's key stays",
            "common",
            "if v[2] then redis.call('DEL'",
            "if false then redis.call('DEL'",
        ),
    ]);
}

#[test]
fn without_the_lease_clock_the_comparison_fails() {
    all_are_noticed(&[
        (
            "an outage or a jump of the clock expires leases",
            "common",
            "math.max(0, math.min(passed, LONGEST_TICK))",
            "passed",
        ),
        (
            "every lease is out at once",
            "reap",
            "P .. 'lease', '-inf', clock,",
            "P .. 'lease', '-inf', '+inf',",
        ),
        (
            "no lease is ever out",
            "reap",
            "P .. 'lease', '-inf', clock,",
            "P .. 'lease', '-inf', '-inf',",
        ),
        (
            "a heartbeat renews nothing",
            "beat",
            "    redis.call('ZADD', P .. 'lease', expires, id)\n    if job.acked",
            "    if job.acked",
        ),
    ]);
}

#[test]
fn without_any_other_rule_the_comparison_fails() {
    all_are_noticed(&[
        (
            "a cap is not kept",
            "claim",
            "if own[3] or (most > 0 and",
            "if own[3] or (most < 0 and",
        ),
        (
            "a paused tenant is served",
            "claim",
            "elseif own[3] or (most > 0",
            "elseif (most > 0",
        ),
        (
            "a paused pool is served",
            "claim",
            " or redis.call('HEXISTS', P .. 'paused', pool) == 1",
            "",
        ),
        (
            "weights do not count",
            "claim",
            "rows / tonumber(own[1] or weight)",
            "rows",
        ),
        (
            "a tenant that was away has credit",
            "common",
            "math.max(own, pool_time(pool))",
            "own",
        ),
        (
            "a job that ended frees no place",
            "common",
            "    admit(job.tenant)\n",
            "",
        ),
        (
            "a lost lease that lived is a crash",
            "beat",
            ",\n      forgive(job))",
            ")",
        ),
        (
            "an unacknowledged lease is a crash",
            "reap",
            "if job.acked ~= job.nonce and unacked < budget",
            "if false",
        ),
        (
            "a deadline is not looked at",
            "claim",
            "elseif tonumber(job.deadline) <= NOW then",
            "elseif false then",
        ),
        (
            "nobody is told of work",
            "common",
            "  redis.call('PUBLISH', P .. 'work', pool)\n",
            "",
        ),
        (
            "jobs of one call do not count against its limits",
            "submit",
            "  waiting[pool], own.jobs, own.bytes = waiting[pool] + 1, own.jobs + 1, own.bytes + bytes\n",
            "",
        ),
        (
            "a rate is paid once for all jobs of a call",
            "submit",
            "number(dues[key] or redis.call('GET', P .. key))",
            "number(redis.call('GET', P .. key) and nil)",
        ),
        (
            "nobody is told of changes",
            "common",
            "if #changed > 0 then redis.call('PUBLISH'",
            "if false then redis.call('PUBLISH'",
        ),
        (
            "an end is told as any change",
            "common",
            "job.ends and '. ' .. job.id or job.id",
            "job.id",
        ),
        ("a result frees no place", "complete", "admit(tenant)", ""),
        (
            "a result's bytes are not given back",
            "complete",
            "by[#charged] = -number(job.bytes)",
            "by[#charged] = 0",
        ),
        ("nobody is told to stop", "cancel", "revoke(job, 'cancelled')", ""),
        (
            "bytes are not given back",
            "common",
            "  charge(job, -number(job.bytes))\n",
            "",
        ),
        (
            "a submission's rate is not paid",
            "submit",
            "pass('rate:' .. tenant, own_due)",
            "",
        ),
        (
            "an audit counts a job twice",
            "common",
            "if seen_by(job) == audit then return false end",
            "",
        ),
    ]);
}
