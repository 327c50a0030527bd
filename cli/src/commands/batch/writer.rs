//! Puts results on disk, on a thread of its own. What comes together is written together: the pictures first, each under a
//! temporary name until it is whole, then their new names, then their entries in `results.jsonl`. So an entry's pictures
//! are there whatever crashes, and a picture without an entry is fetched and written once more.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

use muse_proto::v1::Image;
use tokio::sync::mpsc;

use super::{
    folder::{FailureEntry, FileEntry, Folder, ResultEntry, sync_folder},
    journal::Journal,
    shards::{self, Sample, parts_of},
    window::Finished,
};
use crate::{failure::Failure, pictures};

/// Results written together; also how many may wait with their pictures in memory.
pub(super) const GROUP: usize = 32;
/// Threads that write and sync a group's pictures.
const HANDS: usize = 8;

/// What is to be written.
#[derive(Debug)]
pub(super) enum Order {
    Result(Box<Finished>),
    Failure(Box<FailureEntry>),
    Shard(shards::Settled),
}

/// What has been written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The pictures of a line.
    Result {
        line: u64,
        id: String,
        /// Of its samples, where shards are written.
        stems: Vec<String>,
        failed_before: bool,
    },
    /// A line that has none.
    Failure {
        line: u64,
    },
    Shard,
}

/// Starts the thread. It ends when the orders do, or with the first error.
pub(super) fn start(
    folder: &Folder,
    orders: mpsc::Receiver<Order>,
    done: mpsc::Sender<Result<Done, Failure>>,
) -> Result<thread::JoinHandle<()>, Failure> {
    let open =
        |path: PathBuf| Journal::open(&path).map_err(Failure::io(format!("cannot write {}", path.display())));
    let mut writer = Writer {
        folder: folder.path().to_owned(),
        scratch: folder.scratch(),
        parts: folder.parts(),
        extension: folder.extension().to_owned(),
        shard_size: folder.shard_size(),
        results: open(folder.results())?,
        failures: open(folder.failures())?,
    };
    thread::Builder::new()
        .name("batch-writer".to_owned())
        .spawn(move || {
            if let Err(failure) = writer.run(orders, &done) {
                let _ = done.blocking_send(Err(failure));
            }
        })
        .map_err(Failure::io("cannot start a thread"))
}

struct Writer {
    folder: PathBuf,
    scratch: PathBuf,
    parts: PathBuf,
    extension: String,
    shard_size: Option<u64>,
    results: Journal,
    failures: Journal,
}

/// A file on its way: written under `temporary`, then named.
struct Pending<'a> {
    temporary: PathBuf,
    target: PathBuf,
    data: std::borrow::Cow<'a, [u8]>,
}

// === impl Writer ===

impl Writer {
    fn run(
        &mut self,
        mut orders: mpsc::Receiver<Order>,
        done: &mpsc::Sender<Result<Done, Failure>>,
    ) -> Result<(), Failure> {
        while let Some(first) = orders.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(next) = orders.try_recv()
            {
                group.push(next);
            }
            let (mut finished, mut failed, mut settled) = (Vec::new(), Vec::new(), Vec::new());
            for order in group {
                match order {
                    Order::Result(result) => finished.push(*result),
                    Order::Failure(entry) => failed.push(*entry),
                    Order::Shard(shard) => settled.push(shard),
                }
            }
            let results = self.write_results(&finished)?;
            self.failures
                .append(&failed)
                .map_err(cannot_write(self.failures.path()))?;
            // A shard's lines were told to be done before it was ordered, so its parts are all there.
            for shard in &settled {
                shards::seal(&self.folder, &self.parts, &self.scratch, &self.extension, shard)
                    .map_err(cannot_write(&self.folder.join(shards::file_name(shard.number))))?;
            }
            let failures = failed.into_iter().map(|entry| Done::Failure { line: entry.line });
            let shards = settled.iter().map(|_| Done::Shard);
            for told in results.into_iter().chain(failures).chain(shards) {
                // Nobody listens after an interruption; what is written counts all the same.
                let _ = done.blocking_send(Ok(told));
            }
        }
        Ok(())
    }

    fn write_results(&mut self, finished: &[Finished]) -> Result<Vec<Done>, Failure> {
        let (mut pending, mut entries, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for result in finished {
            for image in &result.images {
                pictures::check(image)?;
            }
            let entry = self.entry(result);
            let place = self
                .place(result.line.number)
                .map_err(cannot_write(&self.parts))?;
            for (index, (image, file)) in (0_u32..).zip(result.images.iter().zip(&entry.files)) {
                let stem = result.line.stem(index);
                let mut file_of = |ending: &str, data| {
                    let name = format!("{stem}.{ending}");
                    pending.push(Pending {
                        temporary: self
                            .scratch
                            .join(format!("{}-{index}.{ending}", result.line.number)),
                        target: place.join(name),
                        data,
                    });
                };
                file_of(&self.extension, (&image.data[..]).into());
                if self.shard_size.is_some() {
                    let sample = Sample {
                        id: &entry.id,
                        line: entry.line,
                        index,
                        prompt: &entry.prompt,
                        seed: entry.seed,
                        sha256: &file.sha256,
                    };
                    let text = serde_json::to_vec(&sample)
                        .map_err(|error| Failure::Failed(format!("cannot write JSON: {error}")))?;
                    file_of("json", text.into());
                }
            }
            told.push(Done::Result {
                line: entry.line,
                id: entry.id.clone(),
                stems: match self.shard_size {
                    Some(_) => shards::stems(&result.line),
                    None => Vec::new(),
                },
                failed_before: result.failed_before,
            });
            entries.push(entry);
        }
        put(&pending)?;
        self.results
            .append(&entries)
            .map_err(cannot_write(self.results.path()))?;
        Ok(told)
    }

    fn entry(&self, result: &Finished) -> ResultEntry {
        let line = &result.line;
        let files = (0_u32..).zip(&result.images).map(|(index, image)| {
            let name = format!("{}.{}", line.stem(index), self.extension);
            let (file, member) = match self.shard_of(line.number) {
                Some(shard) => (shards::file_name(shard), Some(name)),
                None => (name, None),
            };
            FileEntry {
                file,
                member,
                bytes: image.data.len() as u64,
                sha256: sha256(image),
            }
        });
        ResultEntry {
            line: line.number,
            id: line.id.clone(),
            prompt: line.prompt().to_owned(),
            seed: line.request.seed.unwrap_or_default(),
            job_id: result.job_id.clone(),
            digest: line.digest.clone(),
            files: files.collect(),
        }
    }

    /// The folder of a line's files.
    fn place(&self, line: u64) -> io::Result<PathBuf> {
        let Some(shard) = self.shard_of(line) else {
            return Ok(self.folder.clone());
        };
        let place = parts_of(&self.parts, shard);
        fs::create_dir_all(&place)?;
        Ok(place)
    }

    fn shard_of(&self, line: u64) -> Option<u64> {
        self.shard_size.map(|size| line.saturating_sub(1) / size)
    }
}

fn sha256(image: &Image) -> String {
    image
        .info
        .as_ref()
        .map(|info| info.sha256.to_ascii_lowercase())
        .unwrap_or_default()
}

/// Writes files, and puts them and their names on disk.
fn put(pending: &[Pending<'_>]) -> Result<(), Failure> {
    if pending.is_empty() {
        return Ok(());
    }
    // A disk syncs several files at once in hardly more time than one.
    let written: Vec<Result<(), Failure>> = thread::scope(|scope| {
        let hands: Vec<_> = pending
            .chunks(pending.len().div_ceil(HANDS))
            .map(|chunk| scope.spawn(move || chunk.iter().try_for_each(Pending::write)))
            .collect();
        hands
            .into_iter()
            .map(|hand| {
                hand.join()
                    .unwrap_or_else(|_| Err(Failure::Failed("a thread that writes died".to_owned())))
            })
            .collect()
    });
    written.into_iter().collect::<Result<(), Failure>>()?;
    let mut folders: Vec<&Path> = Vec::new();
    for file in pending {
        fs::rename(&file.temporary, &file.target).map_err(cannot_write(&file.target))?;
        folders.extend(file.target.parent());
    }
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        sync_folder(folder).map_err(cannot_write(folder))?;
    }
    Ok(())
}

impl Pending<'_> {
    fn write(&self) -> Result<(), Failure> {
        let write = || {
            let mut file = fs::File::create(&self.temporary)?;
            file.write_all(&self.data)?;
            file.sync_data()
        };
        write().map_err(cannot_write(&self.target))
    }
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
    Failure::io(format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
