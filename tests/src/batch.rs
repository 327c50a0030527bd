//! `musectl batch` as a process that can be killed, and what it leaves behind.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use muse_proto::v1::{
    GetQueueStatusRequest, ListJobsRequest, admin_client::AdminClient, generation_client::GenerationClient,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{PATIENCE, client::channel, programs};

/// A folder of results with the prompts for it.
#[derive(Debug)]
pub struct Batch {
    endpoint: String,
    /// With `prompts.jsonl` in it.
    folder: tempfile::TempDir,
    options: Vec<String>,
}

/// An entry of `results.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub line: u64,
    pub id: String,
    pub job_id: String,
    pub seed: u64,
    pub files: Vec<FileOf>,
}

/// A picture of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FileOf {
    pub file: String,
    pub member: Option<String>,
    pub sha256: String,
}

/// An entry of `failures.jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub struct Failed {
    pub line: u64,
    pub kind: String,
    pub message: String,
    pub round: u32,
}

/// A run of musectl.
#[derive(Debug)]
pub struct Run {
    child: Child,
    log: PathBuf,
}

impl Batch {
    /// Prompts for the gateway at `endpoint`, with options of `musectl batch`.
    pub fn new(endpoint: &str, prompts: &str, options: &[&str]) -> Self {
        let batch = Self {
            endpoint: endpoint.to_owned(),
            folder: tempfile::tempdir().expect("a folder"),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        batch.write_prompts(prompts);
        batch
    }

    /// Other prompts from now on.
    pub fn write_prompts(&self, prompts: &str) {
        fs::write(self.folder.path().join("prompts.jsonl"), prompts).expect("prompts are written");
    }

    /// Where the results are.
    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Starts musectl.
    pub fn start(&self, more: &[&str]) -> Run {
        self.start_on(&self.folder.path().join("prompts.jsonl"), more, Stdio::null())
    }

    /// Starts musectl on prompts that are elsewhere; `-` is `stdin`.
    pub fn start_on(&self, prompts: &Path, more: &[&str], stdin: Stdio) -> Run {
        let log = self.folder.path().join("log");
        let stderr = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log");
        let mut command = Command::new(programs::folder().join("musectl"));
        command
            .arg("batch")
            .arg(prompts)
            .arg("--out")
            .arg(self.out())
            .args(&self.options)
            .args(more)
            .env("MUSE_ENDPOINTS", &self.endpoint)
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true);
        let child = command.spawn().expect("musectl is built");
        Run { child, log }
    }

    /// Runs musectl to its end; its exit code.
    pub async fn run(&self, more: &[&str]) -> Option<i32> {
        self.start(more).end(PATIENCE).await.code()
    }

    /// Every whole entry of `results.jsonl`, in the order in which lines were done.
    pub fn entries(&self) -> Vec<Entry> {
        whole_lines(&self.out().join("results.jsonl"))
    }

    /// Every whole entry of `failures.jsonl`.
    pub fn failures(&self) -> Vec<Failed> {
        whole_lines(&self.out().join("failures.jsonl"))
    }

    /// Entries so far, cheaply.
    pub fn done(&self) -> usize {
        let text = fs::read(self.out().join("results.jsonl")).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Waits until so many lines are done by `run`; it must not end before.
    pub async fn reach(&self, run: &mut Run, lines: usize, patience: Duration) {
        let reached = async {
            while self.done() < lines {
                if let Some(status) = run.child.try_wait().expect("a child") {
                    panic!("ended ({status}) before line {lines}:\n{}", run.said());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(patience, reached).await.is_err() {
            panic!("{} of {lines} lines are done:\n{}", self.done(), run.said());
        }
    }

    /// The digests by id, after a check that each line is there once and each file is what its entry says.
    pub fn pictures(&self) -> BTreeMap<String, Vec<String>> {
        let mut pictures = BTreeMap::new();
        for entry in self.entries() {
            let mut digests = Vec::new();
            for file in &entry.files {
                if file.member.is_none() {
                    let bytes = fs::read(self.out().join(&file.file)).expect("the picture is there");
                    assert_eq!(hex::encode(Sha256::digest(bytes)), file.sha256, "{entry:?}");
                }
                digests.push(file.sha256.clone());
            }
            let twice = pictures.insert(entry.id.clone(), digests);
            assert_eq!(twice, None, "line {} is there twice", entry.line);
        }
        pictures
    }
}

impl Run {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it ran");
    }

    /// Waits until it ends by itself.
    pub async fn end(mut self, patience: Duration) -> ExitStatus {
        match timeout(patience, self.child.wait()).await {
            Ok(status) => status.expect("a status"),
            Err(_) => panic!("musectl does not end:\n{}", self.said()),
        }
    }

    /// Its standard error and that of the runs before it.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn whole_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Vec<T> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).expect("an entry"))
        .collect()
}

/// Jobs that wait or run, in all pools.
pub async fn live_jobs(endpoint: &str) -> u64 {
    let status = AdminClient::new(channel(endpoint))
        .get_queue_status(GetQueueStatusRequest {})
        .await
        .expect("a status")
        .into_inner();
    let live = status.pools.iter();
    live.map(|pool| pool.waiting + pool.running + pool.delayed).sum()
}

/// The ids of all jobs that there are.
pub async fn all_jobs(endpoint: &str) -> Vec<String> {
    let mut client = GenerationClient::new(channel(endpoint)).max_decoding_message_size(64 * 1024 * 1024);
    let mut request = ListJobsRequest {
        page_size: 200,
        ..ListJobsRequest::default()
    };
    let mut ids = Vec::new();
    loop {
        let page = client
            .list_jobs(request.clone())
            .await
            .expect("a page")
            .into_inner();
        ids.extend(page.jobs.into_iter().map(|job| job.id));
        if page.next_page_token.is_empty() {
            return ids;
        }
        request.page_token = page.next_page_token;
    }
}
