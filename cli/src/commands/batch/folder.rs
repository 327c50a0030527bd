//! The folder of the results, and what earlier runs left in it.
//!
//! `run.json` in `.muse-batch/` says which run this is: every idempotency key comes from it, so that the same line is the same
//! job however often musectl begins again. What is done is what `results.jsonl` says, and a picture is there before its
//! entry is.

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use muse_proto::v1::ImageFormat;
use serde::{Deserialize, Serialize};

use super::{
    journal,
    line::Line,
    names::{Names, hash},
};
use crate::{failure::Failure, view::words};

/// How the folder is laid out; a later version refuses another one.
const LAYOUT: u32 = 1;

/// Held by one musectl at a time.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    run: Run,
    _lock: File,
}

/// What stays the same over every run of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    layout: u32,
    id: String,
    /// The ending of the pictures' files.
    extension: String,
    /// Lines of a shard, where shards are written.
    shard_size: Option<u64>,
}

/// An entry of `results.jsonl`: a line that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ResultEntry {
    pub(super) line: u64,
    pub(super) id: String,
    pub(super) prompt: String,
    pub(super) seed: u64,
    pub(super) job_id: String,
    pub(super) digest: String,
    pub(super) files: Vec<FileEntry>,
}

/// A picture of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    /// In the folder.
    pub(super) file: String,
    /// In the shard that `file` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) member: Option<String>,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// An entry of `failures.jsonl`: a line that has no picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FailureEntry {
    pub(super) line: u64,
    /// Unknown of a line that could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    pub(super) kind: FailureKind,
    pub(super) message: String,
    /// Why the job failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) job_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
    /// Attempts of the line by `--retry-failed` before this one.
    #[serde(default)]
    pub(super) round: u32,
}

/// Why a line has no picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailureKind {
    /// It cannot be read, or its id cannot be used. Looked at again in every run.
    BadLine,
    /// The gateway refused it.
    Refused,
    /// Its job failed or was cancelled.
    Job,
}

/// What earlier runs have settled.
#[derive(Debug, Default)]
pub(super) struct Settled {
    done: Names,
    /// Hashes of id and digest: a line that is done, and has changed since, is not among them.
    exactly: std::collections::HashSet<u64>,
    failed: HashMap<u128, Failed>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    exactly: u64,
    round: u32,
}

/// What is to be done with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is known of it.
    New,
    Done,
    /// It is done, but as another line.
    Changed,
    /// It failed in this round.
    Failed(u32),
}

impl Folder {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// When another musectl has it, or it was begun with other options.
    pub(super) fn open(path: &Path, format: ImageFormat, shard_size: Option<u64>) -> Result<Self, Failure> {
        let own = path.join(OWN);
        fs::create_dir_all(&own).map_err(Failure::io(format!("cannot make {}", own.display())))?;
        let lock = lock(&own, path)?;
        let wanted = Run {
            layout: LAYOUT,
            id: uuid::Uuid::now_v7().to_string(),
            extension: words::extension(format).to_owned(),
            shard_size,
        };
        let run = match fs::read(own.join(RUN)) {
            Ok(text) => wanted.goes_on_as(&text, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut text = serde_json::to_vec(&wanted).map_err(|error| {
                    Failure::Failed(format!("cannot write {}: {error}", own.join(RUN).display()))
                })?;
                text.push(b'\n');
                write_whole(&own, RUN, &text)
                    .map_err(Failure::io(format!("cannot write {}", own.join(RUN).display())))?;
                wanted
            }
            Err(error) => {
                return Err(Failure::io(format!("cannot read {}", own.join(RUN).display()))(
                    error,
                ));
            }
        };
        let folder = Self {
            path: path.to_owned(),
            run,
            _lock: lock,
        };
        // What a crash left half-written.
        let scratch = folder.scratch();
        let swept = match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(&scratch),
        };
        swept.map_err(Failure::io(format!("cannot use {}", scratch.display())))?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where half-written files are, on the same file system.
    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join(OWN).join("scratch")
    }

    /// Where the pictures of unfinished shards are.
    pub(super) fn parts(&self) -> PathBuf {
        self.path.join(OWN).join("parts")
    }

    pub(super) fn results(&self) -> PathBuf {
        self.path.join("results.jsonl")
    }

    pub(super) fn failures(&self) -> PathBuf {
        self.path.join("failures.jsonl")
    }

    pub(super) fn run_id(&self) -> &str {
        &self.run.id
    }

    pub(super) fn extension(&self) -> &str {
        &self.run.extension
    }

    pub(super) fn shard_size(&self) -> Option<u64> {
        self.run.shard_size
    }

    /// Reads what earlier runs have settled.
    ///
    /// # Errors
    /// When a file cannot be read, or was changed by hand.
    pub(super) fn settled(&self) -> Result<Settled, Failure> {
        #[derive(Deserialize)]
        struct Known {
            id: String,
            digest: String,
        }
        let mut settled = Settled::default();
        let path = self.results();
        journal::read(&path, |entry: Known, _| {
            settled.done.insert(&entry.id);
            settled.exactly.insert(exactly(&entry.id, &entry.digest));
        })
        .map_err(unreadable(&path))?;
        let path = self.failures();
        journal::read(&path, |entry: FailureEntry, _| {
            if let (Some(id), Some(digest)) = (&entry.id, &entry.digest)
                && entry.kind != FailureKind::BadLine
            {
                let failed = Failed {
                    exactly: exactly(id, digest),
                    round: entry.round,
                };
                settled.failed.insert(hash(id), failed);
            }
        })
        .map_err(unreadable(&path))?;
        Ok(settled)
    }

    /// Rewrites `failures.jsonl`: the last entry of each line that `still` has none of its pictures. Bad lines go, as they
    /// are found again by the next reading.
    pub(super) fn compact_failures(
        &self,
        drop_bad: bool,
        still: impl Fn(&str) -> bool,
    ) -> Result<(), Failure> {
        let path = self.failures();
        let (mut last, mut entries) = (HashMap::new(), 0_u64);
        journal::read(&path, |entry: FailureEntry, _| {
            if let Some(id) = entry.id.as_deref().filter(|_| entry.kind != FailureKind::BadLine) {
                last.insert(hash(id), entries);
            }
            entries += 1;
        })
        .map_err(unreadable(&path))?;
        let (mut at, mut kept) = (0_u64, 0_u64);
        let mut output = io::BufWriter::new(
            tempfile::NamedTempFile::new_in(self.scratch()).map_err(Failure::io("cannot make a file"))?,
        );
        let mut failed = Ok(());
        journal::read(&path, |entry: FailureEntry, line| {
            let keep = match entry.id.as_deref() {
                _ if entry.kind == FailureKind::BadLine => !drop_bad,
                Some(id) => last.get(&hash(id)) == Some(&at) && still(id),
                None => true,
            };
            if keep && failed.is_ok() {
                kept += 1;
                failed = output.write_all(line);
            }
            at += 1;
        })
        .map_err(unreadable(&path))?;
        if kept == entries {
            return Ok(());
        }
        let replaced = failed
            .and_then(|()| output.into_inner().map_err(io::IntoInnerError::into_error))
            .and_then(|file| {
                file.as_file().sync_all()?;
                crate::pictures::make_readable(file.as_file())?;
                file.persist(&path).map_err(|error| error.error)
            })
            .and_then(|_| sync_folder(&self.path));
        replaced.map_err(Failure::io(format!("cannot write {}", path.display())))
    }
}

/// The folder's own folder.
const OWN: &str = ".muse-batch";
const RUN: &str = "run.json";

impl Run {
    /// The run that `text` tells of, if this one may go on with it.
    fn goes_on_as(&self, text: &[u8], path: &Path) -> Result<Self, Failure> {
        let begun: Self = serde_json::from_slice(text).map_err(|error| {
            Failure::Failed(format!(
                "{} is not one that this musectl wrote: {error}",
                path.join(OWN).join(RUN).display()
            ))
        })?;
        let same = Self {
            id: begun.id.clone(),
            ..self.clone()
        };
        if same == begun {
            return Ok(begun);
        }
        let shards = begun
            .shard_size
            .map_or(String::new(), |size| format!(" --webdataset --shard-size {size}"));
        Err(Failure::Usage(format!(
            "{} was begun with --format {}{shards}: say the same again, or name another folder",
            path.display(),
            begun.extension
        )))
    }
}

impl Settled {
    pub(super) fn standing(&self, line: &Line) -> Standing {
        let exactly = exactly(&line.id, &line.digest);
        if self.done.contains(&line.id) {
            return if self.exactly.contains(&exactly) {
                Standing::Done
            } else {
                Standing::Changed
            };
        }
        match self.failed.get(&hash(&line.id)) {
            // A line that was mended is a new one.
            Some(failed) if failed.exactly == exactly => Standing::Failed(failed.round),
            _ => Standing::New,
        }
    }

    /// Whether a line of this id failed, this one or what it was before.
    pub(super) fn has_failed(&self, id: &str) -> bool {
        self.failed.contains_key(&hash(id))
    }

    pub(super) fn is_done(&self, id: &str) -> bool {
        self.done.contains(id)
    }
}

fn exactly(id: &str, digest: &str) -> u64 {
    // Half of the hash is enough to tell one line from its own changed self.
    hash(&format!("{id}\n{digest}")) as u64
}

fn lock(own: &Path, path: &Path) -> Result<File, Failure> {
    let what = format!("cannot lock {}", own.display());
    let file = File::create(own.join("lock")).map_err(Failure::io(what.clone()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::Failed(format!(
            "another musectl works on {}",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(Failure::io(what)(error)),
    }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    Failure::io(format!("cannot read {}", path.display()))
}

/// A file that is there whole, through a crash of the machine too, or not at all.
pub(super) fn write_whole(folder: &Path, name: &str, data: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(data)?;
    crate::pictures::make_readable(file.as_file())?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name)).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// New names in a folder are on disk after this.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
