//! Pictures in a folder or a bucket: one object each, `<prefix>/<job>.<nonce>/<index>`. The name alone says whose it is, so
//! that a sweep can tell what nobody refers to.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use object_store::{ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutPayload, path::Path};
use redis::Cmd;

use super::{
    ResultStore, ResultsError,
    bucket::Bucket,
    gate::{Gate, Refused},
};
use crate::{
    config,
    jobs::{JobId, Nonce},
};

/// See the module.
pub struct ObjectResults {
    bucket: Bucket,
    gate: Gate,
    limit: Duration,
    retry: Duration,
    concurrency: usize,
}

/// The object that names the cluster whose store it is.
pub(super) const OWNER: &str = "muse-owner";
/// What the folder of a gateway's probe at its start begins with. One that dies meanwhile leaves it behind.
pub(super) const PROBE: &str = "muse-probe-";
/// Characters of a store's complaint that are shown.
const REASON_CHARACTERS: usize = 400;

impl ObjectResults {
    pub(super) fn new(bucket: Bucket, config: &config::Results) -> Self {
        let retry = Duration::from_millis(config.retry_ms);
        Self {
            bucket,
            gate: Gate::new(retry),
            limit: Duration::from_millis(config.timeout_ms),
            retry,
            concurrency: config.concurrency,
        }
    }

    pub(super) fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Everything below the prefix, in no particular order.
    pub(super) fn list(&self) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let prefix = Some(&self.bucket.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        self.bucket.store.list(prefix)
    }

    /// Deletes objects, also those after one that cannot be; one that is gone already is no failure.
    pub(super) async fn remove(&self, objects: Vec<Path>) -> Result<(), ResultsError> {
        self.limited("delete", async {
            let objects = stream::iter(objects.into_iter().map(Ok)).boxed();
            let mut deleted = self.bucket.store.delete_stream(objects);
            let mut failure = None;
            while let Some(outcome) = deleted.next().await {
                match outcome {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => failure = Some(error),
                }
            }
            failure.map_or(Ok(()), Err)
        })
        .await
    }

    /// `operation`, within the time limit; measured, and its failure told.
    pub(super) async fn limited<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, ResultsError> {
        let begun = Instant::now();
        let reason = match tokio::time::timeout(self.limit, work).await {
            Ok(Ok(done)) => {
                metrics::histogram!("muse_results_seconds", "operation" => operation)
                    .record(begun.elapsed().as_secs_f64());
                return Ok(done);
            }
            Ok(Err(error)) => one_line(&error),
            Err(_) => format!("no answer within {} ms", self.limit.as_millis()),
        };
        metrics::counter!("muse_results_failures_total", "operation" => operation).increment(1);
        tracing::debug!(
            store = self.bucket.name,
            operation,
            reason,
            "the store of pictures failed"
        );
        Err(ResultsError::Unavailable {
            reason: format!("{operation} in {}: {reason}", self.bucket.name),
            retry: self.retry,
        })
    }

    async fn write(&self, id: JobId, nonce: Nonce, pictures: &[Bytes]) -> Result<(), ResultsError> {
        self.gate
            .enter(Instant::now())
            .map_err(|Refused { reason, retry }| ResultsError::Unavailable { reason, retry })?;
        let written = self.write_all(id, nonce, pictures).await;
        match &written {
            Ok(()) => {
                if self.gate.succeeded() {
                    tracing::info!(store = self.bucket.name, "pictures can be stored again");
                }
                metrics::gauge!("muse_results_up").set(1.0);
            }
            Err(error) => {
                let reason = error.to_string();
                if self.gate.failed(Instant::now(), &reason) {
                    tracing::error!(
                        reason,
                        "pictures cannot be stored; workers keep theirs and send them again"
                    );
                }
                metrics::gauge!("muse_results_up").set(0.0);
            }
        }
        written
    }

    /// A folder whose volume has gone looks empty, and could be written into: its mark tells.
    async fn is_there(&self, operation: &'static str) -> Result<(), ResultsError> {
        let Some(folder) = &self.bucket.folder else {
            return Ok(());
        };
        self.limited(operation, async {
            match tokio::fs::try_exists(folder.join(OWNER)).await {
                Ok(true) => Ok(()),
                Ok(false) => Err(format!("{OWNER} is not there any more: is its volume mounted?")),
                Err(error) => Err(error.to_string()),
            }
            .map_err(|reason| object_store::Error::Generic {
                store: "folder",
                source: reason.into(),
            })
        })
        .await
    }

    async fn write_all(&self, id: JobId, nonce: Nonce, pictures: &[Bytes]) -> Result<(), ResultsError> {
        self.is_there("put").await?;
        let folder = self.folder(id, nonce);
        // Cheap clones. Of what was written when one fails, the next attempt writes the same again; or a sweep finds it.
        stream::iter(pictures.to_vec())
            .enumerate()
            .map(|(index, picture)| self.write_one(folder.clone().join(index.to_string()), picture))
            .buffer_unordered(self.concurrency)
            .try_collect()
            .await
    }

    async fn write_one(&self, object: Path, picture: Bytes) -> Result<(), ResultsError> {
        let written = self.bucket.store.put(&object, PutPayload::from(picture));
        self.limited("put", written).await.map(drop)
    }

    /// Where a job's pictures under a nonce are.
    pub(super) fn folder(&self, id: JobId, nonce: Nonce) -> Path {
        self.bucket.prefix.clone().join(format!("{id}.{nonce}"))
    }

    /// Whose object that is; `None` for what is not a picture of ours.
    pub(super) fn owner(&self, object: &Path) -> Option<(JobId, Nonce)> {
        let mut parts = object.prefix_match(&self.bucket.prefix)?;
        let (folder, index) = (parts.next()?, parts.next()?);
        if parts.next().is_some() || index.as_ref().parse::<u32>().is_err() {
            return None;
        }
        owner_of_folder(folder.as_ref())
    }

    /// Whether it is what a gateway writes at its start to see whether it can.
    pub(super) fn is_probe(&self, object: &Path) -> bool {
        let folder = object
            .prefix_match(&self.bucket.prefix)
            .and_then(|mut parts| parts.next());
        folder.is_some_and(|folder| folder.as_ref().starts_with(PROBE))
    }

    /// The longest that one request may take.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }
}

/// Whose pictures a folder of this name holds.
pub(super) fn owner_of_folder(name: &str) -> Option<(JobId, Nonce)> {
    let (id, nonce) = name.split_once('.')?;
    Some((JobId::parse(id).ok()?, Nonce::from_hex(nonce)?))
}

impl ResultStore for ObjectResults {
    fn put<'a>(
        &'a self,
        id: JobId,
        nonce: Nonce,
        pictures: &'a [Bytes],
    ) -> BoxFuture<'a, Result<Vec<Cmd>, ResultsError>> {
        Box::pin(async move {
            self.write(id, nonce, pictures).await?;
            Ok(Vec::new())
        })
    }

    fn get(&self, id: JobId, nonce: Nonce, index: u32) -> BoxFuture<'_, Result<Option<Bytes>, ResultsError>> {
        Box::pin(async move {
            let object = self.folder(id, nonce).join(index.to_string());
            let found = self
                .limited("get", async {
                    match self.bucket.store.get(&object).await {
                        Ok(found) => found.bytes().await.map(Some),
                        Err(object_store::Error::NotFound { .. }) => Ok(None),
                        Err(error) => Err(error),
                    }
                })
                .await?;
            if found.is_none() {
                self.is_there("get").await?;
            }
            Ok(found)
        })
    }

    fn delete(&self, id: JobId, nonce: Nonce) -> BoxFuture<'_, Result<(), ResultsError>> {
        Box::pin(async move {
            let folder = self.folder(id, nonce);
            let objects: Vec<Path> = self
                .limited(
                    "list",
                    self.bucket
                        .store
                        .list(Some(&folder))
                        .map_ok(|object| object.location)
                        .try_collect(),
                )
                .await?;
            if objects.is_empty() {
                return self.is_there("delete").await;
            }
            self.remove(objects).await
        })
    }
}

/// What a store complains of, in a line that can be logged: errors of buckets carry whole documents.
pub(super) fn one_line(error: &object_store::Error) -> String {
    let text = error.to_string();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(REASON_CHARACTERS) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Location, bucket};

    fn results(folder: &std::path::Path) -> ObjectResults {
        let config = config::Results::default();
        let bucket = bucket::open(&Location::Folder(folder.to_owned()), &config).unwrap();
        std::fs::write(folder.join(OWNER), b"us").unwrap();
        ObjectResults::new(bucket, &config)
    }

    #[tokio::test]
    async fn pictures_come_back_in_order_and_go_together() {
        let folder = tempfile::tempdir().unwrap();
        let results = results(folder.path());
        let (id, nonce, other) = (JobId::new(0), Nonce::random(), Nonce::random());
        let pictures = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
        results.put(id, nonce, &pictures).await.unwrap();
        results.put(id, other, &pictures[..1]).await.unwrap();
        // Repeating it changes nothing.
        results.put(id, nonce, &pictures).await.unwrap();
        for (index, picture) in (0..).zip(&pictures) {
            assert_eq!(
                results.get(id, nonce, index).await.unwrap().as_ref(),
                Some(picture)
            );
        }
        assert_eq!(results.get(id, nonce, 2).await.unwrap(), None);
        let listed: Vec<ObjectMeta> = results.list().try_collect().await.unwrap();
        let owners: Vec<_> = listed
            .iter()
            .filter_map(|object| results.owner(&object.location))
            .collect();
        assert_eq!((listed.len(), owners.len()), (4, 3), "{listed:?}");
        assert!(
            owners
                .iter()
                .all(|owner| [(id, nonce), (id, other)].contains(owner)),
            "{owners:?}"
        );
        results.delete(id, nonce).await.unwrap();
        results.delete(id, nonce).await.unwrap();
        assert_eq!(results.get(id, nonce, 0).await.unwrap(), None);
        assert_eq!(
            results.get(id, other, 0).await.unwrap().as_ref(),
            Some(&pictures[0])
        );
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(
            left.len(),
            2,
            "the mark; an empty folder goes with its last picture: {left:?}"
        );
    }

    #[tokio::test]
    async fn a_folder_that_is_lost_is_an_outage_and_not_a_missing_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pictures");
        std::fs::create_dir(&path).unwrap();
        let results = results(&path);
        let (id, nonce) = (JobId::new(0), Nonce::random());
        // As a volume that is not mounted any more: an empty folder, or none.
        std::fs::remove_file(path.join(OWNER)).unwrap();
        let unread = results.get(id, nonce, 0).await.unwrap_err();
        assert!(unread.to_string().contains("mounted"), "{unread}");
        let undeleted = results.delete(id, nonce).await.unwrap_err();
        assert!(undeleted.to_string().contains("mounted"), "{undeleted}");
        std::fs::remove_dir(&path).unwrap();
        let first = results
            .put(id, nonce, &[Bytes::from_static(b"one")])
            .await
            .unwrap_err();
        assert!(
            matches!(&first, ResultsError::Unavailable { reason, .. } if reason.contains("put in file://")),
            "{first}"
        );
        let second = results
            .put(id, nonce, &[Bytes::from_static(b"one")])
            .await
            .unwrap_err();
        assert!(!path.exists(), "it is not made anew");
        assert!(
            second.to_string().contains("put in"),
            "the gate repeats why: {second}"
        );
    }

    #[test]
    fn only_names_of_ours_have_owners() {
        let folder = tempfile::tempdir().unwrap();
        let results = results(folder.path());
        let (id, nonce) = (JobId::new(3), Nonce::random());
        let ours = results.folder(id, nonce);
        assert_eq!(results.owner(&ours.clone().join("0")), Some((id, nonce)));
        for foreign in [
            Path::from("muse-owner"),
            ours.clone(),
            ours.clone().join("x"),
            ours.join("0").join("1"),
            Path::from(format!("{id}.short/0")),
            Path::from(format!("{nonce}.{id}/0")),
        ] {
            assert_eq!(results.owner(&foreign), None, "{foreign}");
        }
    }
}
