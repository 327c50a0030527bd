//! What the integration tests share: where ONNX Runtime and the test bundles are, and bundles with a fault.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(dead_code)] // each test file uses a part of it

use std::path::{Path, PathBuf};

use muse_engine::{Bundle, Provider, Runtime, SessionOptions};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
        .to_owned()
}

/// ONNX Runtime's library. Tests fail without it, they do not skip.
pub(crate) fn library() -> PathBuf {
    let from_environment = ["MUSE__RUNTIME__ONNXRUNTIME", "ORT_DYLIB_PATH"]
        .into_iter()
        .find_map(std::env::var_os);
    let library = from_environment.map_or_else(
        || root().join(".deps/onnxruntime/libonnxruntime.so"),
        PathBuf::from,
    );
    assert!(
        library.is_file(),
        "{} is not there: run scripts/fetch-deps, or set MUSE__RUNTIME__ONNXRUNTIME to a libonnxruntime.so",
        library.display()
    );
    library
}

/// Where the tests compute: on the CPU, or on what `MUSE__RUNTIME__PROVIDERS` names first, for a machine that has it.
pub(crate) fn provider() -> Provider {
    let named = std::env::var("MUSE__RUNTIME__PROVIDERS").unwrap_or_default();
    match named.split(',').next().map(str::trim) {
        None | Some("") => Provider::Cpu,
        Some(first) => first.parse().expect("MUSE__RUNTIME__PROVIDERS names providers"),
    }
}

/// Sessions with one thread, ONNX Runtime loaded.
pub(crate) fn options() -> SessionOptions {
    let options = SessionOptions {
        onnxruntime: Some(library()),
        providers: vec![provider()],
        threads: 1,
        ..SessionOptions::default()
    };
    Runtime::initialise(options.onnxruntime.as_deref()).expect("ONNX Runtime loads");
    options
}

/// Folder of a test bundle.
pub(crate) fn bundle_folder(name: &str) -> PathBuf {
    let parent = if name == "demo" {
        "bundles"
    } else {
        "tests/bundles"
    };
    root().join(parent).join(name)
}

/// A test bundle.
pub(crate) fn bundle(name: &str) -> Bundle {
    Bundle::load(&bundle_folder(name)).expect("the test bundle is sound")
}

/// A copy of the tiny bundle that a test may damage.
pub(crate) struct Copy {
    folder: TempDir,
}

impl Copy {
    pub(crate) fn of_tiny() -> Copy {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(bundle_folder("tiny")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Copy { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn manifest(&self) -> String {
        std::fs::read_to_string(self.path().join("bundle.toml")).unwrap()
    }

    /// Replaces the first `from` in the manifest.
    pub(crate) fn edit(&self, from: &str, to: &str) -> &Copy {
        let manifest = self.manifest();
        assert!(manifest.contains(from), "{from} is not in {manifest}");
        std::fs::write(self.path().join("bundle.toml"), manifest.replacen(from, to, 1)).unwrap();
        self
    }

    /// Replaces every `from` in a file by `to` of the same length, and lists the changed file in the manifest.
    pub(crate) fn replace_bytes(&self, file: &str, from: &[u8], to: &[u8]) -> &Copy {
        assert_eq!(from.len(), to.len());
        let mut bytes = std::fs::read(self.path().join(file)).unwrap();
        let places: Vec<usize> = bytes
            .windows(from.len())
            .enumerate()
            .filter(|(_, window)| *window == from)
            .map(|(at, _)| at)
            .collect();
        assert!(!places.is_empty(), "{file} does not hold the bytes");
        for at in places {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        std::fs::write(self.path().join(file), &bytes).unwrap();
        self.list(file)
    }

    /// Puts a file's present size and digest in the manifest, which lists it already.
    pub(crate) fn list(&self, file: &str) -> &Copy {
        let bytes = std::fs::read(self.path().join(file)).unwrap();
        let entry = format!(
            "\"{file}\" = {{ sha256 = \"{}\", size = {} }}",
            hex::encode(Sha256::digest(&bytes)),
            bytes.len()
        );
        let manifest: Vec<String> = self
            .manifest()
            .lines()
            .map(|line| {
                if line.starts_with(&format!("\"{file}\"")) {
                    entry.clone()
                } else {
                    line.to_owned()
                }
            })
            .collect();
        std::fs::write(self.path().join("bundle.toml"), manifest.join("\n")).unwrap();
        self
    }

    pub(crate) fn load(&self) -> Bundle {
        Bundle::load(self.path()).expect("the bundle loads")
    }

    /// The one line with which loading fails, without the folder's name.
    pub(crate) fn fault(&self) -> String {
        let error = Bundle::load(self.path())
            .expect_err("the bundle is faulty")
            .to_string();
        self.one_line(&error)
    }

    pub(crate) fn one_line(&self, error: &str) -> String {
        assert_eq!(error.lines().count(), 1, "{error}");
        let prefix = format!("bundle {}: ", self.path().display());
        error
            .strip_prefix(&prefix)
            .unwrap_or_else(|| panic!("{error} does not name the bundle"))
            .to_owned()
    }
}
