//! A service that can't serve says so in one line, and stops.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it saw by panicking"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use muse_tests::{
    programs::{Ended, onnxruntime, run_to_end},
    tiny_bundle,
};
use tempfile::TempDir;

/// A copy of the tiny bundle that a test may spoil.
fn spoilable() -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let bundle = folder.path().join("bundle");
    fs::create_dir(&bundle).expect("a folder");
    for entry in fs::read_dir(tiny_bundle()).expect("the tiny bundle") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), bundle.join(entry.file_name())).expect("a copy");
    }
    (folder, bundle)
}

fn edit(bundle: &Path, from: &str, to: &str) {
    let path = bundle.join("bundle.toml");
    let text = fs::read_to_string(&path).expect("the manifest");
    assert!(text.contains(from), "{from} is not in the manifest:\n{text}");
    fs::write(path, text.replacen(from, to, 1)).expect("written");
}

async fn start_worker(bundle: &Path, providers: &str) -> Ended {
    let onnxruntime = onnxruntime();
    let bundle = bundle.to_string_lossy();
    let environment = [
        ("MUSE__BUNDLE", bundle.as_ref()),
        ("MUSE__STAGE", "base"),
        ("MUSE__RUNTIME__ONNXRUNTIME", onnxruntime.as_str()),
        ("MUSE__RUNTIME__PROVIDERS", providers),
        ("MUSE__OPS__LISTEN", "127.0.0.1:0"),
    ];
    run_to_end::<&str>("muse-worker", &[], &environment).await
}

fn assert_one_line(ended: &Ended, parts: &[&str]) {
    let lines: Vec<&str> = ended
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert_eq!(lines.len(), 1, "one line, not {}:\n{}", lines.len(), ended.stderr);
    for part in parts {
        assert!(lines[0].contains(part), "the line names {part:?}: {}", lines[0]);
    }
}

#[tokio::test]
async fn a_flipped_byte_is_named_with_its_file() {
    let (_folder, bundle) = spoilable();
    let path = bundle.join("base_step.onnx");
    let mut bytes = fs::read(&path).expect("the graph");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("written");
    assert_one_line(&start_worker(&bundle, "cpu").await, &["base_step.onnx"]);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let (_folder, bundle) = spoilable();
    fs::remove_file(bundle.join("base_condition.onnx")).expect("removed");
    assert_one_line(&start_worker(&bundle, "cpu").await, &["base_condition.onnx"]);
}

#[tokio::test]
async fn a_wrong_shape_is_named_with_the_graph() {
    let (_folder, bundle) = spoilable();
    edit(&bundle, "grid = [4, 6]", "grid = [5, 6]");
    assert_one_line(&start_worker(&bundle, "cpu").await, &["base_step.onnx", "tokens"]);
}

#[tokio::test]
async fn a_wrong_tensor_name_is_named() {
    let (_folder, bundle) = spoilable();
    let text = fs::read_to_string(bundle.join("bundle.toml")).expect("the manifest");
    let listed = text.lines().find(|line| line.starts_with("conditioning"));
    match listed {
        Some(line) => edit(&bundle, line, "conditioning = [\"no_such_tensor\"]"),
        None => edit(&bundle, "step = ", "conditioning = [\"no_such_tensor\"]\nstep = "),
    }
    assert_one_line(&start_worker(&bundle, "cpu").await, &["base_", "no_such_tensor"]);
}

#[tokio::test]
async fn a_vocabulary_that_does_not_fit_is_named() {
    let (_folder, bundle) = spoilable();
    let text = fs::read_to_string(bundle.join("bundle.toml")).expect("the manifest");
    let line = text
        .lines()
        .find(|line| line.starts_with("vocab_size"))
        .expect("the text's vocabulary");
    edit(&bundle, line, "vocab_size = 7");
    assert_one_line(&start_worker(&bundle, "cpu").await, &["tokenizer.json", "vocab"]);
}

#[tokio::test]
async fn a_provider_that_cannot_be_had_stops_start_up_and_says_what_to_do() {
    let ended = start_worker(&tiny_bundle(), "cuda").await;
    assert_one_line(&ended, &["cuda", "providers"]);
}

#[tokio::test]
async fn an_unknown_setting_is_refused_by_name() {
    let ended = run_to_end("muse-gateway", &["--check"], &[("MUSE__QUEUE__LEESE_MS", "5")]).await;
    assert_one_line(&ended, &["MUSE__QUEUE__LEESE_MS"]);
}

#[tokio::test]
async fn cpus_that_are_not_there_are_refused_by_number() {
    let ended = run_to_end::<&str>("muse-encoder", &[], &[("MUSE__PROCESS__CPUS", "0,8000-8001")]).await;
    assert_one_line(&ended, &["process.cpus", "8000-8001"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let ended = run_to_end::<&str>("muse-gateway", &[], &[("MUSE__PROCESS__CPUS", "node0")]).await;
    assert_one_line(&ended, &["MUSE__PROCESS__CPUS", "node:0"]);
}

#[tokio::test]
async fn check_prints_the_configuration_that_would_run() {
    for program in ["muse-gateway", "muse-encoder", "muse-worker"] {
        let ended = run_to_end(program, &["--check"], &[("MUSE__TELEMETRY__LOG_FORMAT", "json")]).await;
        assert_eq!(ended.code, Some(0), "{program}: {ended:?}");
        let printed: toml::Table = ended
            .stdout
            .parse()
            .unwrap_or_else(|error| panic!("{program}: {error}\n{ended:?}"));
        assert_eq!(
            printed["telemetry"]["log_format"].as_str(),
            Some("json"),
            "{program}"
        );
    }
}

#[tokio::test]
async fn a_service_without_authentication_binds_loopback_only() {
    let ended = run_to_end::<&str>("muse-gateway", &[], &[("MUSE__GRPC__LISTEN", "0.0.0.0:0")]).await;
    assert_one_line(&ended, &["0.0.0.0", "insecure_allow_remote"]);
}
