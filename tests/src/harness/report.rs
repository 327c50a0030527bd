//! A run in words and tables: docs/reliability.md.

use std::{fmt::Write as _, fs, process::Command};

use musectl::cluster::REDIS_SERVER_VARIABLE;

use super::{checker::INVARIANTS, fairness::WEIGHTS, run::Outcome, schedule::Promise};
use crate::repository;

/// The report of some runs that were started by `command`.
pub fn markdown(outcomes: &[Outcome], command: &str) -> String {
    let mut text = HEAD.to_owned();
    let _ = writeln!(text, "```sh\n{command}\n```\n");
    let _ = writeln!(text, "| | |\n|---|---|");
    for (name, value) in machine() {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    for outcome in outcomes {
        one(&mut text, outcome);
    }
    text + FOOT
}

fn one(text: &mut String, outcome: &Outcome) {
    let plan = &outcome.plan;
    let title = match plan.wish.promise {
        Promise::Always => "Every write synced",
        Promise::Everysec => "Synced each second",
    };
    let _ = writeln!(text, "\n## {title}: seed {}\n", plan.seed);
    let _ = writeln!(text, "| | |\n|---|---|");
    let rows = [
        ("ran for", format!("{:.0} s", outcome.took.as_secs_f64())),
        (
            "jobs accepted",
            outcome.verdict.ends.values().sum::<u64>().to_string(),
        ),
        ("kill -9 of gateways and workers", outcome.kills().to_string()),
        ("kill -9 of Redis", outcome.redis_kills().to_string()),
        (
            "connections cut before or after a script",
            outcome.cuts.values().sum::<u64>().to_string(),
        ),
        ("audits in quiet", outcome.audits.to_string()),
        ("records in the history", outcome.records.to_string()),
        (
            "late results turned away and told to differ",
            outcome.verdict.disagreements.to_string(),
        ),
        (
            "results that count and whose acceptance nobody lived to see",
            outcome.verdict.unseen.to_string(),
        ),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    if plan.wish.promise == Promise::Everysec {
        let forgiven = outcome.verdict.forgiven;
        let _ = writeln!(
            text,
            "| accepted jobs that went with what was cut off the log | {forgiven} |"
        );
    }
    invariants(text, outcome);
    recoveries(text, outcome);
    shares(text, outcome);
    tables(text, outcome);
}

fn invariants(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(text, "\n| invariant | breaches |\n|---|---|");
    for invariant in INVARIANTS {
        let _ = writeln!(
            text,
            "| {} | {} |",
            words(&format!("{invariant:?}")),
            outcome.verdict.count(invariant)
        );
    }
    for missed in outcome.missed() {
        let _ = writeln!(text, "\nNot reached: {missed}.");
    }
    if !outcome.verdict.violations.is_empty() {
        let _ = writeln!(text, "\n```\n{}```", outcome.verdict);
    }
}

fn recoveries(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(
        text,
        "\n| recovery, ms | samples | p50 | p90 | p99 | most | bound |\n|---|---|---|---|---|---|---|"
    );
    let recoveries = &outcome.verdict.recoveries;
    let rows = [
        (
            "a lost worker's job is with another, or has ended",
            &recoveries.worker,
            "4,000: the lease of 2,000 and 2,000",
        ),
        (
            "after Redis' return a client and a worker are served",
            &recoveries.redis,
            "5,000",
        ),
    ];
    for (what, samples, bound) in rows {
        let mut sorted = samples.clone();
        sorted.sort_unstable();
        let at = |share: f64| match sorted.len() {
            0 => "–".to_owned(),
            count => sorted[((count as f64 * share).ceil() as usize).clamp(1, count) - 1].to_string(),
        };
        let _ = writeln!(
            text,
            "| {what} | {} | {} | {} | {} | {} | {bound} |",
            sorted.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
    }
}

fn shares(text: &mut String, outcome: &Outcome) {
    if outcome.verdict.shares.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n| saturated window | tenant's weight | leases | share | due |\n|---|---|---|---|---|"
    );
    let sum: f64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    for (number, window) in outcome.verdict.shares.iter().enumerate() {
        let total: u64 = window.iter().map(|(_, _, count)| count).sum();
        for (_, weight, count) in window {
            let _ = writeln!(
                text,
                "| {} | {weight} | {count} | {:.3} | {:.3} |",
                number + 1,
                *count as f64 / total.max(1) as f64,
                weight / sum
            );
        }
    }
}

fn tables(text: &mut String, outcome: &Outcome) {
    let _ = writeln!(text, "\n| fault | times |\n|---|---|");
    for (kind, count) in &outcome.faults {
        let _ = writeln!(text, "| {kind} | {count} |");
    }
    if !outcome.means.disk {
        let _ = writeln!(text, "\nNo full disks: there was no prlimit.");
    }
    if !outcome.means.clock {
        let _ = writeln!(
            text,
            "\nNo clock jumps: there was no C compiler to build the shim with."
        );
    }
    let _ = writeln!(
        text,
        "\n| script | cut before it ran | cut after it ran |\n|---|---|---|"
    );
    let scripts: std::collections::BTreeSet<&str> = outcome
        .cuts
        .keys()
        .map(|failpoint| failpoint.script.as_str())
        .collect();
    for script in scripts {
        let times = |after| {
            let cuts = outcome.cuts.iter();
            cuts.filter(|(failpoint, _)| failpoint.script == script && failpoint.after == after)
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        let _ = writeln!(text, "| {script} | {} | {} |", times(false), times(true));
    }
    let _ = writeln!(text, "\n| jobs | ended as | |\n|---|---|---|");
    for ((kind, state), count) in &outcome.verdict.ends {
        let state = state.trim_start_matches("JOB_STATE_").to_lowercase();
        let _ = writeln!(text, "| {} | {state} | {count} |", words(&format!("{kind:?}")));
    }
}

/// `NothingIsLost` → `nothing is lost`.
fn words(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn machine() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_once(':')
            .map_or("unknown", |(_, value)| value.trim())
            .to_owned()
    };
    let says = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(repository())
            .output();
        output.map_or("unknown".to_owned(), |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
    };
    let server = std::env::var(REDIS_SERVER_VARIABLE).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        (
            "commit",
            says("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        ),
        ("written", says("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("the queue's server", says(&server, &["--version"])),
        ("compiler, profile dev", says("rustc", &["--version"])),
        (
            "machine",
            format!(
                "{cores} cores, {}, {} of memory",
                field(&read("/proc/cpuinfo"), "model name"),
                field(&read("/proc/meminfo"), "MemTotal")
            ),
        ),
        (
            "load averages at the end",
            read("/proc/loadavg").trim().to_owned(),
        ),
    ]
}

const HEAD: &str = "# Reliability

What a run of the fault harness found, written by the run itself. Real gateways, workers and a real server of the queue are killed,
stopped and starved, by a schedule that its seed gives; clients and an operator go on all the same; what everyone saw, and what went
over the wire to Redis, is taken down and judged at the end. How to read it, and to run one: [operations.md](operations.md#proof).

";

const FOOT: &str = "
## How each fault is made

| fault | how |
|---|---|
| kill, stop, terminate | SIGKILL; SIGSTOP, then SIGCONT; SIGTERM |
| cut before or after a script | a proxy between gateways and Redis that reads RESP closes the connection instead of sending the call on, or instead of passing its reply on |
| torn log | SIGKILL, and half a command more at the end of the append-only file: the server has to refuse it (`aof-load-truncated no`), and is mended with `valkey-check-aof --fix` as operations.md says; nothing may be lost |
| cut log | (synced each second only) SIGKILL, and the file cut to the length that it had up to a second before; only what was written since 2 s before that may be lost |
| disk full | RLIMIT_FSIZE of the running server, by `prlimit`, a little above the log's length; a server that syncs every write ends at the first that fails, and is started again |
| memory short, full | `maxmemory` so that 85 % is used; 1 byte |
| clock jump | a preloaded shim shifts the server's time of day by up to 15 s, forwards and back |
| script flush | `SCRIPT FLUSH` |

A failover by Sentinel is a test of its own, in `make test`: [gateway/tests/failover](../gateway/tests/failover).
";
