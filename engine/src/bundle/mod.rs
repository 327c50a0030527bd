//! A bundle: a folder that holds everything Muse Serve knows about a model. docs/bundle.md is the format.

mod manifest;
mod npy;
mod onnx;
mod spec;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use spec::{ImageSize, ModelSpec, Stage, StageSpec, TextSpec, Unconditional};

/// The manifest's file name.
pub const MANIFEST: &str = "bundle.toml";

/// A faulty bundle. Prints as one line that names the file and the fault.
#[derive(Debug, thiserror::Error)]
#[error("bundle {}: {file}: {fault}", .folder.display())]
pub struct BundleError {
    /// The bundle's folder.
    pub folder: PathBuf,
    /// The faulty file, relative to the folder.
    pub file: String,
    /// What is wrong with it.
    pub fault: BundleFault,
}

/// What can be wrong with a file of a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleFault {
    /// It is not there, or not a file.
    #[error("missing")]
    Missing,
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// The manifest is not TOML of the expected form, or a value in it is out of range.
    #[error("{0}")]
    Manifest(String),
    /// Its size is not the one in `[files]`.
    #[error("has {found} bytes, but [files] says {expected}; copy the file again")]
    Size {
        /// Bytes on disk.
        found: u64,
        /// Bytes in the manifest.
        expected: u64,
    },
    /// Its content is not the one in `[files]`.
    #[error("its SHA-256 is {found}, but [files] says {expected}; copy the file again")]
    Digest {
        /// On disk, hexadecimal.
        found: String,
        /// In the manifest.
        expected: String,
    },
    /// It is referenced, but not in `[files]`.
    #[error("is used by {by}, but [files] does not list it")]
    NotListed {
        /// What refers to it: a key of the manifest or an ONNX file.
        by: String,
    },
    /// Its path leads out of the folder.
    #[error("leads out of the bundle's folder; use a relative path without `..`")]
    Escapes,
    /// The tokenizer does not fit the manifest.
    #[error("{0}")]
    Tokenizer(String),
    /// It is not the array that the manifest describes.
    #[error("{0}")]
    Array(String),
    /// It is no ONNX file, or its inputs or outputs are not those of docs/bundle.md.
    #[error("{0}")]
    Graph(String),
}

/// A checked bundle. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bundle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    digest: String,
    model: ModelSpec,
    text: TextSpec,
    base: StageSpec,
    superres: Option<StageSpec>,
}

// === impl Bundle ===

impl Bundle {
    /// Reads and checks the bundle in `folder`: the manifest, every file's size and SHA-256, the tokenizer's vocabulary, the
    /// external data that ONNX files refer to. Inputs and outputs of graphs are checked where they are opened as sessions.
    pub fn load(folder: &Path) -> Result<Bundle, BundleError> {
        verify::load(folder).map(|inner| Bundle {
            inner: Arc::new(inner),
        })
    }

    /// Name, version and licence.
    pub fn model(&self) -> &ModelSpec {
        &self.inner.model
    }

    /// The text encoder.
    pub fn text(&self) -> &TextSpec {
        &self.inner.text
    }

    /// A stage, if the bundle has it. Every bundle has a base stage.
    pub fn stage(&self, stage: Stage) -> Option<&StageSpec> {
        match stage {
            Stage::Base => Some(&self.inner.base),
            Stage::Superres => self.inner.superres.as_ref(),
        }
    }

    /// The stages in the order in which they run.
    pub fn stages(&self) -> impl Iterator<Item = &StageSpec> {
        std::iter::once(&self.inner.base).chain(&self.inner.superres)
    }

    /// The base stage.
    pub fn base(&self) -> &StageSpec {
        &self.inner.base
    }

    /// The stage whose decoder makes the picture.
    pub fn last_stage(&self) -> &StageSpec {
        self.inner.superres.as_ref().unwrap_or(&self.inner.base)
    }

    /// Height and width of the pictures, in pixels.
    pub fn image_size(&self) -> ImageSize {
        self.last_stage().image_size
    }

    /// SHA-256 of the manifest, hexadecimal. As the manifest holds every file's digest, it identifies the whole bundle.
    pub fn digest(&self) -> &str {
        &self.inner.digest
    }

    /// The bundle's folder.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Where `file` of the bundle is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.inner.folder.join(file)
    }

    /// A fault of one of the bundle's files.
    pub(crate) fn fault(&self, file: &str, fault: BundleFault) -> BundleError {
        BundleError {
            folder: self.inner.folder.clone(),
            file: file.to_owned(),
            fault,
        }
    }
}
