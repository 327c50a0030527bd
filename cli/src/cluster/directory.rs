//! The folder of a local cluster: configuration files, logs, Valkey's data. One cluster at a time.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::error::ClusterError;

/// Longest path of a Unix socket that every system takes, in bytes.
const SOCKET_PATH_BYTES: usize = 100;

/// Removed at the end if it was a temporary one.
#[derive(Debug)]
pub(super) struct StateDirectory {
    path: PathBuf,
    /// Short-lived, and always at a short path: Valkey's socket.
    temporary: TempDir,
    _lock: File,
}

impl StateDirectory {
    /// `kept`: a folder that stays; without, everything is in a temporary one.
    pub(super) fn open(kept: Option<&Path>) -> Result<Self, ClusterError> {
        let temporary = tempfile::Builder::new()
            .prefix("muse-")
            .tempdir()
            .map_err(ClusterError::system("cannot make a temporary folder"))?;
        let path = match kept {
            Some(path) => std::path::absolute(path).map_err(ClusterError::system(format!(
                "cannot use the folder {}",
                path.display()
            )))?,
            None => temporary.path().to_owned(),
        };
        for folder in ["configuration", "logs", "valkey"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).map_err(ClusterError::system(format!(
                "cannot make the folder {}",
                folder.display()
            )))?;
        }
        let lock = lock(&path)?;
        Ok(Self {
            path,
            temporary,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn log(&self, part: &str) -> PathBuf {
        self.path.join("logs").join(format!("{part}.log"))
    }

    pub(super) fn configuration(&self, file: &str) -> PathBuf {
        self.path.join("configuration").join(file)
    }

    pub(super) fn valkey(&self) -> PathBuf {
        self.path.join("valkey")
    }

    pub(super) fn socket(&self) -> Result<PathBuf, ClusterError> {
        let path = self.temporary.path().join("valkey.sock");
        if path.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(ClusterError::SocketPath { path });
        }
        Ok(path)
    }
}

/// Two servers on one append-only file would ruin it.
fn lock(directory: &Path) -> Result<File, ClusterError> {
    let path = directory.join("lock");
    let what = format!("cannot lock {}", path.display());
    let file = match File::create(&path) {
        Ok(file) => file,
        Err(error) => return Err(ClusterError::system(what)(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ClusterError::DirectoryInUse {
            path: directory.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(ClusterError::system(what)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_folder_stays_and_serves_one_cluster_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("state");
        let first = StateDirectory::open(Some(&kept)).unwrap();
        let second = StateDirectory::open(Some(&kept)).unwrap_err();
        assert!(matches!(second, ClusterError::DirectoryInUse { .. }), "{second}");
        drop(first);
        assert!(kept.join("valkey").is_dir());
        StateDirectory::open(Some(&kept)).unwrap();
    }

    #[test]
    fn a_temporary_folder_is_removed() {
        let directory = StateDirectory::open(None).unwrap();
        let path = directory.path().to_owned();
        assert!(path.join("logs").is_dir());
        drop(directory);
        assert!(!path.exists());
    }
}
