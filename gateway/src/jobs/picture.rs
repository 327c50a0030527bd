//! A finished picture: where it is, and what is told of it.

use bytes::Bytes;
use muse_proto::v1::{Image, ImageInfo, JobState};

use super::{JobId, Nonce, Record, parse};
use crate::Error;

/// One picture of a job.
pub(super) struct Picture<'a> {
    pub(super) id: JobId,
    pub(super) nonce: Nonce,
    pub(super) info: &'a ImageInfo,
}

impl<'a> Picture<'a> {
    /// The one of `index`.
    ///
    /// # Errors
    /// [`Error::NoImage`] says why there is none.
    pub(super) fn of_job(record: &'a Record, index: u32) -> Result<Self, Error> {
        let id = parse(&record.job.id)?;
        let info = record.job.images.iter().find(|info| info.index == index);
        if let (Some(info), Some(nonce)) = (info, record.pictures) {
            return Ok(Self { id, nonce, info });
        }
        Err(Error::NoImage(match record.job.state() {
            JobState::Succeeded => format!(
                "the job has {} pictures, so none of index {index}",
                record.job.images.len()
            ),
            JobState::Failed | JobState::Cancelled => "the job ended without pictures".to_owned(),
            _ => "the job is not done yet; watch it to its end".to_owned(),
        }))
    }

    /// It, with its bytes.
    pub(super) fn with(&self, data: Bytes) -> Image {
        Image {
            info: Some(self.info.clone()),
            data,
        }
    }
}
