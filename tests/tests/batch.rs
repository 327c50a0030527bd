//! `musectl batch`: each line ends once, whoever dies in the middle.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use muse_tests::{
    PATIENCE,
    batch::{Batch, all_jobs, live_jobs},
    cluster, logs,
    noop::NoopWorkers,
    options, restart, start, tiny_bundle,
};

const IN_FLIGHT: usize = 16;

/// Lines of every kind: with and without an id, a seed, several pictures, settings of their own; and blank ones.
fn prompts(lines: u64) -> String {
    let line = |number: u64| match number % 10 {
        3 => format!(r#"{{"prompt": "a red circle", "id": "circle-{number}", "steps": 2, "sr_steps": 1}}"#),
        5 => format!(r#"{{"prompt": "a star", "seed": {number}, "steps": 3, "sr_steps": 1}}"#),
        7 => r#"{"prompt": "two squares", "count": 2, "steps": 2, "sr_steps": 2, "guidance": 0}"#.to_owned(),
        9 => "\n{\"prompt\": \"a cat\", \"negative_prompt\": \"a dog\", \"steps\": 1, \"sr_steps\": 1}"
            .to_owned(),
        _ => r#"{"prompt": "a blue heart", "steps": 1, "sr_steps": 1}"#.to_owned(),
    };
    (1..=lines).map(|number| line(number) + "\n").collect()
}

#[tokio::test]
async fn every_line_ends_once_with_its_picture_whoever_is_killed() {
    const LINES: usize = 300;
    let cluster = cluster(tiny_bundle()).await;
    let endpoint = cluster.endpoint();
    let in_flight = IN_FLIGHT.to_string();
    let options = ["--in-flight", in_flight.as_str()];
    let batch = |options: &[&str]| Batch::new(&endpoint, &prompts(LINES as u64), options);

    let undisturbed = batch(&options);
    assert_eq!(undisturbed.run(&[]).await, Some(0), "{}", logs(&cluster));
    assert_eq!(undisturbed.pictures().len(), LINES);

    let disturbed = batch(&options);
    let mut run = disturbed.start(&[]);
    disturbed.reach(&mut run, 50, PATIENCE).await;
    run.kill().await;
    let live = live_jobs(&endpoint).await;
    assert!(live <= IN_FLIGHT as u64, "{live} jobs live, more than the window");

    let mut run = disturbed.start(&[]);
    disturbed.reach(&mut run, 120, PATIENCE).await;
    restart(&cluster, "gateway-0").await;
    disturbed.reach(&mut run, 200, PATIENCE).await;
    let live = live_jobs(&endpoint).await;
    assert!(live <= IN_FLIGHT as u64, "{live} jobs live, more than the window");
    run.kill().await;
    // Torn in the middle of a line, as a crash of the machine may leave it.
    let results = disturbed.out().join("results.jsonl");
    let mut text = fs::read(&results).expect("results");
    text.extend_from_slice(br#"{"line": 299, "id": "2"#);
    fs::write(&results, text).expect("written");

    assert_eq!(disturbed.run(&[]).await, Some(0), "{}", logs(&cluster));
    assert_eq!(disturbed.pictures(), undisturbed.pictures());
    assert!(disturbed.failures().is_empty());
    let jobs = all_jobs(&endpoint).await;
    assert_eq!(
        jobs.len(),
        2 * LINES,
        "a line is one job, however often it was submitted"
    );
    let done: BTreeSet<String> = disturbed
        .entries()
        .into_iter()
        .map(|entry| entry.job_id)
        .collect();
    assert_eq!(done.len(), LINES);

    // All is done: nothing is submitted, nothing changes.
    let before = fs::read(&results).expect("results");
    assert_eq!(disturbed.run(&[]).await, Some(0));
    assert_eq!(fs::read(&results).expect("results"), before);
    assert_eq!(all_jobs(&endpoint).await.len(), 2 * LINES);
    cluster.stop().await;
}

#[tokio::test]
async fn shards_are_whole_or_not_there_and_a_mended_line_joins_its_shard() {
    let cluster = cluster(tiny_bundle()).await;
    let endpoint = cluster.endpoint();
    let options = ["--webdataset", "--shard-size", "10"];
    // More tokens than the model takes: the job fails, and no other attempt can help.
    let too_long = format!("{{\"prompt\": \"{}\"}}\n", "a red circle ".repeat(60));
    let good = prompts(40);
    let lines: Vec<&str> = good.lines().collect();
    let spoilt = {
        let mut spoilt: Vec<&str> = lines.clone();
        spoilt[4] = too_long.trim_end();
        spoilt[24] = "{\"prompt\": ";
        spoilt[25] = r#"{"prompt": "x", "id": "../x"}"#;
        spoilt.join("\n")
    };

    let whole = Batch::new(&endpoint, &good, &options);
    assert_eq!(whole.run(&[]).await, Some(0), "{}", logs(&cluster));

    let mended = Batch::new(&endpoint, &spoilt, &options);
    let mut run = mended.start(&["--in-flight", "4"]);
    mended.reach(&mut run, 15, PATIENCE).await;
    run.kill().await;
    let run = mended.start(&[]);
    assert_eq!(run.end(PATIENCE).await.code(), Some(4), "{}", logs(&cluster));
    let failed: BTreeSet<(u64, String)> = mended
        .failures()
        .into_iter()
        .map(|failed| (failed.line, failed.kind))
        .collect();
    let expected = [(5, "job"), (25, "bad_line"), (26, "bad_line")];
    assert_eq!(
        failed,
        expected.map(|(line, kind)| (line, kind.to_owned())).into()
    );
    let shard = |batch: &Batch, number: u32| {
        fs::read(batch.out().join(format!("shard-{number:06}.tar"))).expect("the shard is there")
    };
    let last = u32::try_from((lines.len() - 1) / 10).expect("few");
    assert_ne!(shard(&mended, 0), shard(&whole, 0), "a line is missing");
    assert_eq!(shard(&mended, last), shard(&whole, last));

    // Known to have failed, and not tried again unless asked to.
    let jobs = all_jobs(&endpoint).await.len();
    assert_eq!(mended.run(&[]).await, Some(4));
    assert_eq!(all_jobs(&endpoint).await.len(), jobs);
    assert_eq!(mended.run(&["--retry-failed"]).await, Some(4));
    assert_eq!(all_jobs(&endpoint).await.len(), jobs + 1, "another job");
    let round = mended.failures().into_iter().find(|failed| failed.line == 5);
    assert_eq!(round.map(|failed| failed.round), Some(1));

    // The line is mended: it is another line, and made.
    mended.write_prompts(&good);
    assert_eq!(mended.run(&[]).await, Some(0), "{}", logs(&cluster));
    assert!(mended.failures().is_empty(), "{:?}", mended.failures());
    for number in 0..=last {
        assert_eq!(shard(&mended, number), shard(&whole, number), "shard {number}");
    }
    assert_eq!(mended.pictures(), whole.pictures());
    let left = fs::read_dir(mended.out().join(".muse-batch/parts")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "parts of shards");
    cluster.stop().await;
}

#[tokio::test]
async fn strict_submits_nothing_when_a_line_is_bad_and_stdin_is_a_file_like_any_other() {
    let cluster = cluster(tiny_bundle()).await;
    let endpoint = cluster.endpoint();
    let batch = Batch::new(
        &endpoint,
        "{\"prompt\": \"x\"}\n{\"promt\": \"y\"}\n",
        &["--strict"],
    );
    let run = batch.start(&[]);
    assert_eq!(run.end(PATIENCE).await.code(), Some(2));
    assert!(all_jobs(&endpoint).await.is_empty());

    for strict in [&["--strict"][..], &[]] {
        let batch = Batch::new(&endpoint, &prompts(12), strict);
        let prompts = batch.out().with_file_name("prompts.jsonl");
        let stdin = Stdio::from(fs::File::open(prompts).expect("prompts"));
        let run = batch.start_on(Path::new("-"), &[], stdin);
        assert_eq!(run.end(PATIENCE).await.code(), Some(0), "{}", logs(&cluster));
        assert_eq!(batch.pictures().len(), 12);
    }

    // A changed line would leave a picture that its line does not tell of.
    let batch = Batch::new(&endpoint, "{\"prompt\": \"x\", \"steps\": 1}\n", &[]);
    assert_eq!(batch.run(&[]).await, Some(0));
    let before = batch.pictures();
    batch.write_prompts("{\"prompt\": \"y\", \"steps\": 1}\n");
    let run = batch.start(&[]);
    assert_eq!(run.end(PATIENCE).await.code(), Some(4));
    assert_eq!(batch.pictures(), before);
    assert_eq!(batch.failures()[0].kind, "bad_line");
    cluster.stop().await;
}

/// Settings of the heavy run.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Resident memory in KiB; none when the process is gone.
fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Resident memory of a process, looked at until it is gone or the task is aborted.
async fn watch_memory(pid: u32, samples: Arc<Mutex<Vec<u64>>>) {
    while let Some(kib) = resident(pid) {
        samples.lock().unwrap_or_else(PoisonError::into_inner).push(kib);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
#[ignore = "minutes: part of `make soak`"]
async fn a_hundred_thousand_lines_in_flat_memory_though_musectl_is_killed_twice() {
    let lines = setting("MUSE_SOAK_BATCH_LINES", 100_000);
    let bound_kib = setting("MUSE_SOAK_BATCH_RSS_MIB", 32) * 1024;
    let gateway_bound_kib = setting("MUSE_SOAK_BATCH_GATEWAY_RSS_MIB", 64) * 1024;
    let patience = Duration::from_secs(setting("MUSE_SOAK_BATCH_SECONDS", 3600));
    let mut options = options(tiny_bundle());
    (options.sizes.base_workers, options.sizes.superres_workers) = (0, 0);
    let cluster = start(options).await;
    let endpoint = cluster.endpoint();
    let _workers = NoopWorkers::start(&endpoint);
    let prompts: String = (1..=lines)
        .map(|number| format!("{{\"prompt\": \"picture number {number}\", \"id\": \"n{number}\"}}\n"))
        .collect();
    let batch = Batch::new(&endpoint, &prompts, &["--in-flight", "256"]);
    drop(prompts);

    let begun = Instant::now();
    let gateway = Arc::default();
    let gateway_watch = tokio::spawn(watch_memory(
        cluster.pid("gateway-0").expect("it runs"),
        Arc::clone(&gateway),
    ));
    for (round, until) in [lines / 3, lines * 2 / 3, lines].into_iter().enumerate() {
        let run = batch.start(&[]);
        let pid = run.pid();
        let samples = Arc::default();
        let sampler = tokio::spawn(watch_memory(pid, Arc::clone(&samples)));
        if until < lines {
            let mut run = run;
            batch
                .reach(&mut run, usize::try_from(until).expect("few"), patience)
                .await;
            run.kill().await;
        } else {
            let status = run.end(patience).await;
            assert_eq!(status.code(), Some(0), "{}", logs(&cluster));
        }
        sampler.await.expect("samples");
        let samples = samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // What it takes at its start, and what it has read of earlier runs, is not growth.
        let settled = samples.get(samples.len() / 5..).unwrap_or_default();
        let (least, most) = (settled.iter().min(), settled.iter().max());
        println!(
            "run {round}: {} lines after {:.0} s; resident {:?} to {:?} KiB over {} samples, the first {:?}",
            batch.done(),
            begun.elapsed().as_secs_f64(),
            least,
            most,
            samples.len(),
            samples.first(),
        );
        if let (Some(least), Some(most)) = (least, most) {
            assert!(
                most - least <= bound_kib,
                "memory grew from {least} to {most} KiB: {samples:?}"
            );
        }
    }
    gateway_watch.abort();
    let gateway = gateway.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let tenth = gateway.len() / 10;
    assert!(
        tenth > 0,
        "too few samples of the gateway's memory: {}",
        gateway.len()
    );
    // Its first jobs make its caches and buffers; from then on every job leaves as much as it took.
    let settled = gateway.get(tenth..).unwrap_or_default();
    let early = settled
        .iter()
        .take(tenth.max(1))
        .max()
        .copied()
        .unwrap_or_default();
    let most = settled.iter().max().copied().unwrap_or_default();
    println!(
        "gateway: resident {early} KiB early, {most} KiB at most over {} samples",
        gateway.len()
    );
    assert!(
        most <= early + gateway_bound_kib,
        "the gateway's memory grew from {early} to {most} KiB: {gateway:?}"
    );
    println!(
        "{:.0} lines a second",
        lines as f64 / begun.elapsed().as_secs_f64()
    );
    assert_eq!(batch.pictures().len() as u64, lines);
    let jobs: BTreeSet<String> = all_jobs(&endpoint).await.into_iter().collect();
    assert_eq!(jobs.len() as u64, lines, "a line is one job");
    cluster.stop().await;
}
