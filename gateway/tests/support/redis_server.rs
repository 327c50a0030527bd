//! A Redis or Valkey server of a test's own, on a Unix socket in a folder of its own. Never a server that was there before.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

/// Ends with this value; the folder goes with it.
pub struct RedisServer {
    process: Option<Child>,
    folder: TempDir,
    settings: Vec<String>,
}

impl RedisServer {
    /// Starts one that keeps everything on disk before it answers.
    pub async fn start() -> Self {
        Self::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    /// Starts one with settings, such as `["--maxmemory", "50mb"]`.
    pub async fn start_with(settings: &[&str]) -> Self {
        let folder = TempDir::with_prefix("muse-redis-").expect("a temporary folder");
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut server = Self {
            process: None,
            folder,
            settings,
        };
        server.restart().await;
        server
    }

    /// Starts it (again) on the same data.
    pub async fn restart(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(self.socket());
        let binary = binary();
        let log = std::fs::File::create(self.folder.path().join("log")).expect("a log file");
        let process = Command::new(&binary)
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.settings)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", binary.display()));
        self.process = Some(process);
        let answers = async || {
            let mut connection = self.client().get_multiplexed_async_connection().await.ok()?;
            redis::cmd("PING")
                .query_async::<String>(&mut connection)
                .await
                .ok()
        };
        for _ in 0..1000 {
            if answers().await.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        panic!("the Redis server does not answer; its log:\n{log}");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn client(&self) -> redis::Client {
        client(&self.url(), self.password())
    }

    /// What `--requirepass` says.
    pub fn password(&self) -> Option<&str> {
        let mut settings = self.settings.iter();
        settings.find(|setting| *setting == "--requirepass")?;
        settings.next().map(String::as_str)
    }

    /// One command, for looking behind the scenes.
    pub async fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self
            .client()
            .get_multiplexed_async_connection()
            .await
            .expect("a connection");
        let (name, arguments) = words.split_first().expect("a command");
        redis::cmd(name)
            .arg(arguments)
            .query_async(&mut connection)
            .await
            .expect("an answer")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client with a password that is not in the address.
pub fn client(url: &str, password: Option<&str>) -> redis::Client {
    use redis::IntoConnectionInfo as _;

    let mut info = url.into_connection_info().expect("a valid address");
    if let Some(password) = password {
        let settings = info.redis_settings().clone().set_password(password);
        info = info.set_redis_settings(settings);
    }
    redis::Client::open(info).expect("a valid address")
}

pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MUSE_REDIS_SERVER") {
        return PathBuf::from(path);
    }
    let fetched = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.deps/valkey/valkey-server");
    assert!(
        fetched.exists(),
        "no Redis server for the tests: run scripts/fetch-deps, or set MUSE_REDIS_SERVER to a redis-server binary"
    );
    fetched
}
