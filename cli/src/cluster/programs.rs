//! Where the programs and libraries of a local cluster lie.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::error::ClusterError;

/// What a local cluster runs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// musectl itself, which parts are started through ([`super::guard`]).
    pub guard: PathBuf,
    /// muse-gateway.
    pub gateway: PathBuf,
    /// muse-encoder.
    pub encoder: PathBuf,
    /// muse-worker.
    pub worker: PathBuf,
    /// A Valkey or Redis server.
    pub redis_server: PathBuf,
    /// ONNX Runtime's shared library.
    pub onnxruntime: PathBuf,
}

/// Names the Redis server to run.
pub const REDIS_SERVER_VARIABLE: &str = "MUSE_REDIS_SERVER";
/// Names ONNX Runtime's library, as for a service that is started by hand.
pub const ONNXRUNTIME_VARIABLE: &str = "MUSE__RUNTIME__ONNXRUNTIME";

impl Programs {
    /// Our own programs where the running one lies; see [`Programs::beside`].
    ///
    /// # Errors
    /// Names what is missing and how to get it.
    pub fn discover() -> Result<Self, ClusterError> {
        Self::beside(&folder_of(&running_program()?))
    }

    /// Our own programs in `folder`; the server and the library named by the environment, or fetched into a checkout's
    /// `.deps/` above the folder, the running program or the working directory; the server also on the PATH.
    ///
    /// # Errors
    /// Names what is missing and how to get it.
    pub fn beside(folder: &Path) -> Result<Self, ClusterError> {
        let folder = absolute(folder)?;
        let (executable, working) = (running_program()?, env::current_dir().unwrap_or_default());
        let checkouts: Vec<&Path> = folder
            .ancestors()
            .chain(executable.ancestors())
            .chain(working.ancestors())
            .collect();
        Ok(Self {
            guard: ours(&folder, "musectl")?,
            gateway: ours(&folder, "muse-gateway")?,
            encoder: ours(&folder, "muse-encoder")?,
            worker: ours(&folder, "muse-worker")?,
            redis_server: redis_server(env::var_os(REDIS_SERVER_VARIABLE).as_deref(), &checkouts)?,
            onnxruntime: onnxruntime(env::var_os(ONNXRUNTIME_VARIABLE).as_deref(), &checkouts)?,
        })
    }
}

/// ONNX Runtime's library as [`Programs::beside`] finds it, for a process that runs the model itself.
///
/// # Errors
/// When it is nowhere.
pub fn find_onnxruntime() -> Result<PathBuf, ClusterError> {
    let (executable, working) = (running_program()?, env::current_dir().unwrap_or_default());
    let checkouts: Vec<&Path> = executable.ancestors().chain(working.ancestors()).collect();
    onnxruntime(env::var_os(ONNXRUNTIME_VARIABLE).as_deref(), &checkouts)
}

fn running_program() -> Result<PathBuf, ClusterError> {
    env::current_exe().map_err(ClusterError::system("cannot find the running program"))
}

fn absolute(path: &Path) -> Result<PathBuf, ClusterError> {
    std::path::absolute(path).map_err(ClusterError::system(format!("cannot use {}", path.display())))
}

/// Cargo puts test programs one folder deeper than the programs that they start.
fn folder_of(executable: &Path) -> PathBuf {
    let folder = executable.parent().unwrap_or(Path::new("."));
    match folder.file_name() {
        Some(name) if name == OsStr::new("deps") => folder.parent().unwrap_or(folder).to_owned(),
        _ => folder.to_owned(),
    }
}

fn ours(folder: &Path, program: &str) -> Result<PathBuf, ClusterError> {
    let path = folder.join(program);
    if path.is_file() {
        return Ok(path);
    }
    Err(ClusterError::MissingProgram {
        program: program.to_owned(),
        directory: folder.to_owned(),
    })
}

fn redis_server(named: Option<&OsStr>, checkouts: &[&Path]) -> Result<PathBuf, ClusterError> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return on_path(named).ok_or(ClusterError::MissingServer);
    }
    fetched(checkouts, "valkey/valkey-server")
        .or_else(|| {
            ["valkey-server", "redis-server"]
                .into_iter()
                .find_map(|name| on_path(OsStr::new(name)))
        })
        .ok_or(ClusterError::MissingServer)
}

fn onnxruntime(named: Option<&OsStr>, checkouts: &[&Path]) -> Result<PathBuf, ClusterError> {
    let found = match named.filter(|named| !named.is_empty()) {
        Some(named) => Some(PathBuf::from(named)).filter(|path| path.is_file()),
        None => fetched(checkouts, "onnxruntime/libonnxruntime.so"),
    };
    absolute(&found.ok_or(ClusterError::MissingOnnxRuntime)?)
}

fn fetched(checkouts: &[&Path], file: &str) -> Option<PathBuf> {
    checkouts
        .iter()
        .map(|folder| folder.join(".deps").join(file))
        .find(|path| path.is_file())
}

/// A program by its path, or by its name on the PATH.
fn on_path(program: &OsStr) -> Option<PathBuf> {
    let program = Path::new(program);
    if program.components().count() > 1 {
        return std::path::absolute(program).ok().filter(|path| path.is_file());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_lie_beside_the_running_one_and_above_a_test() {
        assert_eq!(
            folder_of(Path::new("/a/target/debug/musectl")),
            Path::new("/a/target/debug")
        );
        assert_eq!(
            folder_of(Path::new("/a/target/debug/deps/end_to_end-0123")),
            Path::new("/a/target/debug")
        );
    }

    #[test]
    fn a_named_server_or_library_goes_before_a_fetched_one() {
        let folder = tempfile::tempdir().unwrap();
        let fetched = folder.path().join(".deps/valkey/valkey-server");
        std::fs::create_dir_all(fetched.parent().unwrap()).unwrap();
        std::fs::write(&fetched, "").unwrap();
        let below = folder.path().join("target/debug");
        let checkouts: Vec<&Path> = below.ancestors().collect();

        assert_eq!(redis_server(None, &checkouts).unwrap(), fetched);
        assert_eq!(redis_server(Some(OsStr::new("")), &checkouts).unwrap(), fetched);
        let own = folder.path().join("own-server");
        std::fs::write(&own, "").unwrap();
        assert_eq!(redis_server(Some(own.as_os_str()), &checkouts).unwrap(), own);
        assert!(redis_server(Some(OsStr::new("/nowhere/redis")), &checkouts).is_err());
        assert!(onnxruntime(Some(OsStr::new("/nowhere/lib.so")), &checkouts).is_err());
        assert!(
            onnxruntime(None, &[])
                .unwrap_err()
                .to_string()
                .contains("make runtime")
        );
    }
}
