//! Deletes pictures that nobody refers to: those of leases that never committed, and those that should have gone with their
//! job. One gateway at a time walks the whole store, a bounded part in each round.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, stream::BoxStream};
use object_store::{ObjectMeta, path::Path};

use super::{ObjectResults, ResultsError, objects::owner_of_folder, ownership};
use crate::{
    config,
    connection::RedisError,
    jobs::{JobId, Nonce},
    queue::{Holder, Queue},
};

/// See the module.
pub(super) struct Sweeper {
    objects: Arc<ObjectResults>,
    queue: Queue,
    keep: Duration,
    grace: Duration,
    every: Duration,
    batch: usize,
}

/// A sweep in progress; apart, because a listing cannot be shared.
pub(super) struct Walk {
    listing: BoxStream<'static, object_store::Result<ObjectMeta>>,
    seen: u64,
    deleted: u64,
}

/// What becomes of a job's pictures under one nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// They are referred to, or may still be.
    Keep,
    /// Nothing refers to them, and nothing will.
    Delete,
}

/// `age` since they were written; `keep`: for how long a job is known after it has ended, with `grace`, a margin for clocks that
/// differ and for an end that a failover takes back.
fn fate(holder: Holder, nonce: Nonce, age: Duration, (keep, grace): (Duration, Duration)) -> Fate {
    let is_orphan = match holder {
        // Its job ended at most `keep` ago, or a write outlived the job itself.
        Holder::Unknown => age > keep,
        // The lease may still be finished, late.
        Holder::Live => false,
        // A nonce that was not committed by the end is refused from then on, also in a second life.
        Holder::Ended { pictures } => pictures != Some(nonce) && age > grace,
    };
    if is_orphan { Fate::Delete } else { Fate::Keep }
}

impl Sweeper {
    /// Sweeps `objects` for jobs of `queue`, whose pictures are wanted for `keep` after the job has ended.
    pub(super) fn new(
        objects: Arc<ObjectResults>,
        queue: Queue,
        keep: Duration,
        config: &config::Results,
    ) -> Self {
        Self {
            objects,
            queue,
            keep,
            grace: Duration::from_secs(config.grace_seconds),
            every: Duration::from_secs(config.sweep_seconds),
            batch: config.sweep_batch,
        }
    }

    /// Looks at the next part of the walk in progress, or begins where a sweep is due and no other gateway has it.
    ///
    /// # Errors
    /// [`ResultsError`]; the sweep then begins again, here or elsewhere.
    pub(super) async fn round(&self, progress: &mut Option<Walk>) -> Result<(), ResultsError> {
        let mut walk = match progress.take() {
            Some(walk) => walk,
            None if self.is_turn().await? => {
                if !self.owns_store().await {
                    self.give_up().await;
                    return Ok(());
                }
                self.begin().await
            }
            None => return Ok(()),
        };
        match self.step(&mut walk).await {
            Ok(true) => *progress = Some(walk),
            Ok(false) => {
                metrics::counter!("muse_results_sweeps_total").increment(1);
                let (seen, deleted) = (walk.seen, walk.deleted);
                tracing::info!(seen, deleted, "swept the store of pictures");
            }
            Err(error) => {
                self.give_up().await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether this gateway sweeps now: one does in each interval. That is all that the key is for; two sweeps at once would
    /// do no harm.
    async fn is_turn(&self) -> Result<bool, RedisError> {
        if self.every.is_zero() {
            return Ok(false);
        }
        let mut command = redis::cmd("SET");
        command.arg(self.key()).arg(1).arg("NX").arg("PX");
        command.arg(u64::try_from(self.every.as_millis()).unwrap_or(u64::MAX));
        let taken: Option<String> = self.queue.redis().query(&command).await?;
        Ok(taken.is_some())
    }

    /// The store may have been given to another cluster, or its volume have gone, since this gateway started.
    async fn owns_store(&self) -> bool {
        match ownership::holds(&self.objects, &self.queue, self.objects.limit()).await {
            Ok(true) => true,
            Ok(false) => {
                tracing::error!("the store of pictures does not carry this cluster's mark: nothing is swept");
                false
            }
            Err(error) => {
                tracing::warn!(%error, "whose the store of pictures is cannot be told now: nothing is swept");
                false
            }
        }
    }

    async fn give_up(&self) {
        let mut command = redis::cmd("UNLINK");
        command.arg(self.key());
        if let Err(error) = self.queue.redis().query::<u64>(&command).await {
            tracing::debug!(%error, "a sweep that failed is repeated only after its interval");
        }
    }

    fn key(&self) -> String {
        self.queue.keys().registry() + "sweep"
    }

    async fn begin(&self) -> Walk {
        if let Some(folder) = self.objects.bucket().folder.clone() {
            let keep = self.keep;
            let removed = tokio::task::spawn_blocking(move || remove_leftovers(&folder, keep)).await;
            match removed {
                Ok(Ok(0)) => {}
                Ok(Ok(files)) => tracing::info!(files, "removed pictures that were being written at a crash"),
                Ok(Err(error)) => tracing::warn!(%error, "cannot look for half-written pictures"),
                Err(error) => tracing::warn!(%error, "the search for half-written pictures broke"),
            }
        }
        Walk {
            listing: self.objects.list(),
            seen: 0,
            deleted: 0,
        }
    }

    /// False at the end.
    async fn step(&self, walk: &mut Walk) -> Result<bool, ResultsError> {
        let (objects, more) = self
            .objects
            .limited("list", async {
                let mut objects = Vec::new();
                while objects.len() < self.batch {
                    match walk.listing.next().await {
                        Some(object) => objects.push(object?),
                        None => return Ok((objects, false)),
                    }
                }
                Ok((objects, true))
            })
            .await?;
        walk.seen += objects.len() as u64;
        let orphans = self.orphans(objects).await?;
        let count = orphans.len() as u64;
        if count > 0 {
            match self.objects.remove(orphans).await {
                Ok(()) => {
                    metrics::counter!("muse_results_orphans_total").increment(count);
                    walk.deleted += count;
                }
                // One that may not be deleted must not hide what comes after it; the next sweep tries again.
                Err(error) => {
                    tracing::warn!(%error, "an orphaned picture cannot be deleted; the sweep goes on");
                }
            }
        }
        Ok(more)
    }

    async fn orphans(&self, objects: Vec<ObjectMeta>) -> Result<Vec<Path>, RedisError> {
        let now = SystemTime::now();
        let age = |object: &ObjectMeta| {
            let age = now.duration_since(SystemTime::from(object.last_modified));
            age.unwrap_or_default()
        };
        let (probes, objects): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .partition(|object| self.objects.is_probe(&object.location));
        let probes = probes.into_iter().filter(|probe| age(probe) > self.keep);
        let ours: Vec<(JobId, Nonce, ObjectMeta)> = objects
            .into_iter()
            .filter_map(|object| {
                let (id, nonce) = self.objects.owner(&object.location)?;
                Some((id, nonce, object))
            })
            .collect();
        let mut ids: Vec<JobId> = ours.iter().map(|(id, ..)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        let holders = self.queue.holders(&ids).await?;
        let holders: HashMap<JobId, Holder> = ids.into_iter().zip(holders).collect();
        let orphans = ours.into_iter().filter_map(|(id, nonce, object)| {
            let holder = holders.get(&id).copied().unwrap_or(Holder::Live);
            let fate = fate(holder, nonce, age(&object), (self.keep, self.grace));
            (fate == Fate::Delete).then_some(object.location)
        });
        Ok(orphans.chain(probes.map(|probe| probe.location)).collect())
    }
}

/// A gateway that dies while it writes leaves `<index>#<n>` behind, which is no object and is not listed. Removes those, and
/// folders that they were alone in, once they are older than `keep`; gives how many files.
fn remove_leftovers(root: &FilePath, keep: Duration) -> io::Result<usize> {
    let mut removed = 0;
    for folder in fs::read_dir(root)? {
        let folder = folder?.path();
        let ours = folder
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| owner_of_folder(name).is_some());
        if !ours || !is_older(&folder, keep) {
            continue;
        }
        removed += remove_from(&folder, keep)?;
        // Fails where pictures are, as it should.
        let _ = fs::remove_dir(&folder);
    }
    Ok(removed)
}

fn remove_from(folder: &FilePath, keep: Duration) -> io::Result<usize> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // Another gateway was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let file: PathBuf = entry?.path();
        let staged = file
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.contains('#'));
        if staged && is_older(&file, keep) && fs::remove_file(&file).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_older(path: &FilePath, age: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|elapsed| elapsed > age))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(100);
    const GRACE: Duration = Duration::from_secs(10);

    #[test]
    fn only_what_nothing_can_refer_to_any_more_is_deleted() {
        let (nonce, other) = (Nonce::random(), Nonce::random());
        let old = KEEP + Duration::from_secs(1);
        for (holder, age, wanted) in [
            (Holder::Unknown, KEEP, Fate::Keep),
            (Holder::Unknown, old, Fate::Delete),
            (Holder::Live, old, Fate::Keep),
            (
                Holder::Ended {
                    pictures: Some(nonce),
                },
                old,
                Fate::Keep,
            ),
            (
                Holder::Ended {
                    pictures: Some(other),
                },
                GRACE + Duration::from_secs(1),
                Fate::Delete,
            ),
            // What says so may be a primary that a failover has overtaken.
            (
                Holder::Ended {
                    pictures: Some(other),
                },
                GRACE,
                Fate::Keep,
            ),
            (Holder::Ended { pictures: None }, GRACE, Fate::Keep),
            (Holder::Ended { pictures: None }, old, Fate::Delete),
        ] {
            assert_eq!(
                fate(holder, nonce, age, (KEEP, GRACE)),
                wanted,
                "{holder:?} {age:?}"
            );
        }
    }

    #[test]
    fn half_written_pictures_go_and_whole_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let both = folder(&format!("{}.{}", JobId::new(0), Nonce::random()));
        let staged = folder(&format!("{}.{}", JobId::new(0), Nonce::random()));
        let foreign = folder("lost+found");
        for file in [
            both.join("0"),
            both.join("1#1"),
            staged.join("0#1"),
            foreign.join("0#1"),
        ] {
            fs::write(file, b"x").unwrap();
        }
        assert_eq!(
            remove_leftovers(root.path(), KEEP).unwrap(),
            0,
            "they are too young"
        );
        let old = SystemTime::now() - KEEP * 2;
        for path in [both.join("1#1"), staged.join("0#1"), both.clone(), staged.clone()] {
            fs::File::open(path).unwrap().set_modified(old).unwrap();
        }
        assert_eq!(remove_leftovers(root.path(), KEEP).unwrap(), 2);
        assert!(both.join("0").exists() && !both.join("1#1").exists());
        assert!(!staged.exists() && foreign.join("0#1").exists());
    }
}
