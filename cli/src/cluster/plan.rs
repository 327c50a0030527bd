//! What each part of a local cluster is: its program, its arguments, its configuration file, how it shows to be ready.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use toml::{Table, Value};

use super::{
    configuration::Configuration, directory::StateDirectory, error::ClusterError, options::ClusterOptions,
};

/// Has glibc give freed memory back to the system, where its own rule would keep what rare work needs, above all decoding
/// pixels: about as much as the weights. docs/operations.md tells operators to set it.
const GIVE_BACK: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "131072");

/// On a machine of at most so many CPUs a service has one thread for calls and messages: passes want the cores, and each
/// thread that is woken takes one away from them for a moment.
const FEW_CPUS: usize = 4;

/// A part to be started.
#[derive(Debug)]
pub(super) struct PartPlan {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// Set for it, unless they are set already.
    pub(super) environment: &'static [(&'static str, &'static str)],
    /// Written before each start.
    pub(super) configuration: Option<Configuration>,
    pub(super) ready: Ready,
    pub(super) log: PathBuf,
}

/// How a part shows that it is ready.
#[derive(Clone, Debug)]
pub(super) enum Ready {
    /// It prints its addresses ([`super::probe::parse_listening`]), and then its `/readyz` says yes.
    Announced,
    /// It answers PING on a Unix socket.
    Ping(PathBuf),
}

/// Makes the plans of one cluster.
pub(super) struct Planner<'a> {
    options: &'a ClusterOptions,
    directory: Arc<StateDirectory>,
    bundle: PathBuf,
    socket: PathBuf,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        options: &'a ClusterOptions,
        directory: Arc<StateDirectory>,
    ) -> Result<Self, ClusterError> {
        if !options.bundle.join("bundle.toml").is_file() {
            return Err(ClusterError::MissingBundle {
                path: options.bundle.clone(),
            });
        }
        let bundle =
            std::path::absolute(&options.bundle).map_err(ClusterError::system("cannot use the bundle"))?;
        let socket = match &options.redis_socket {
            Some(socket) => socket.clone(),
            None => directory.socket()?,
        };
        Ok(Self {
            options,
            directory,
            bundle,
            socket,
        })
    }

    pub(super) fn redis_url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// A socket and not a port: nobody else can take it, and no other user can connect.
    pub(super) fn valkey(&self) -> Result<PartPlan, ClusterError> {
        let name = "valkey".to_owned();
        let path = self.directory.configuration("valkey.conf");
        let text = valkey_configuration(&self.socket, &self.directory.valkey());
        fs::write(&path, text).map_err(ClusterError::system(format!("cannot write {}", path.display())))?;
        Ok(PartPlan {
            program: self.options.programs.redis_server.clone(),
            arguments: vec![path.into()],
            environment: &[],
            configuration: None,
            ready: Ready::Ping(self.socket.clone()),
            log: self.directory.log(&name),
            name,
        })
    }

    /// Gateways and encoders: what workers connect to.
    pub(super) fn front(&self) -> Result<Vec<PartPlan>, ClusterError> {
        let programs = &self.options.programs;
        let gateways = (0..self.options.sizes.gateways).map(|index| {
            let port = if index == 0 { self.options.gateway_port } else { 0 };
            let table = toml::toml! {
                grpc = { listen = "127.0.0.1:0" }
                ops = { listen = "127.0.0.1:0" }
            };
            let table = with(table, "grpc", "listen", format!("127.0.0.1:{port}"));
            let table = with(table, "redis", "url", self.redis_url());
            self.service(format!("gateway-{index}"), &programs.gateway, table, &["gateway"])
        });
        let encoders = (0..self.options.sizes.encoders).map(|index| {
            let table = toml::toml! {
                grpc = { listen = "127.0.0.1:0" }
                ops = { listen = "127.0.0.1:0" }
            };
            let table = self.with_model(table);
            self.service(format!("encoder-{index}"), &programs.encoder, table, &["encoder"])
        });
        Ok(gateways.chain(encoders).collect())
    }

    /// Workers of both stages, given what they connect to.
    pub(super) fn workers(
        &self,
        gateways: &[String],
        encoders: &[String],
    ) -> Result<Vec<PartPlan>, ClusterError> {
        let sizes = &self.options.sizes;
        let stages = [("base", sizes.base_workers), ("superres", sizes.superres_workers)];
        let all = stages
            .into_iter()
            .flat_map(|(stage, count)| (0..count).map(move |index| (stage, index)));
        let table = |stage: &str| {
            let table = toml::toml! {
                ops = { listen = "127.0.0.1:0" }
            };
            let mut table = self.with_model(table);
            table.insert("stage".to_owned(), Value::String(stage.to_owned()));
            let table = with(table, "hub", "endpoints", gateways.to_vec());
            with(table, "encoder", "endpoints", encoders.to_vec())
        };
        let ours = all.map(|(stage, index)| {
            let program = &self.options.programs.worker;
            self.service(
                format!("{stage}-{index}"),
                program,
                table(stage),
                &["worker", stage],
            )
        });
        let others = self.options.other_workers.iter().flat_map(|others| {
            let table = table(&others.stage);
            (0..others.count).map(move |index| {
                let name = format!("{}-{index}", others.name);
                let mut table = table.clone();
                table.extend(others.settings.clone());
                table.insert("name".to_owned(), Value::String(name.clone()));
                self.service(name, &others.program, table, &[])
            })
        });
        Ok(ours.chain(others).collect())
    }

    fn with_model(&self, mut table: Table) -> Table {
        table.insert("bundle".to_owned(), path_value(&self.bundle));
        with(
            table,
            "runtime",
            "onnxruntime",
            path_value(&self.options.programs.onnxruntime),
        )
    }

    fn service(&self, name: String, program: &Path, mut table: Table, roles: &[&str]) -> PartPlan {
        if thread::available_parallelism().is_ok_and(|cpus| cpus.get() <= FEW_CPUS) {
            table = with(table, "process", "threads", 1);
        }
        let path = self.directory.configuration(&format!("{name}.toml"));
        let configuration = Configuration::new(path, table, &self.options.overrides, roles);
        let opens_graphs = roles.iter().any(|role| ["encoder", "worker"].contains(role));
        PartPlan {
            program: program.to_owned(),
            arguments: vec!["--config".into(), configuration.path().into()],
            environment: if opens_graphs { &[GIVE_BACK] } else { &[] },
            configuration: Some(configuration),
            ready: Ready::Announced,
            log: self.directory.log(&name),
            name,
        }
    }
}

fn with(mut table: Table, section: &str, key: &str, value: impl Into<Value>) -> Table {
    let entry = table
        .entry(section.to_owned())
        .or_insert_with(|| Value::Table(Table::new()));
    if let Some(section) = entry.as_table_mut() {
        section.insert(key.to_owned(), value.into());
    }
    table
}

fn path_value(path: &Path) -> Value {
    Value::String(path.to_string_lossy().into_owned())
}

/// Accepted means on disk: every write is synced, and a file that was cut off is not loaded as if it were whole.
fn valkey_configuration(socket: &Path, data: &Path) -> String {
    format!(
        "port 0\n\
         unixsocket \"{}\"\n\
         unixsocketperm 700\n\
         dir \"{}\"\n\
         daemonize no\n\
         save \"\"\n\
         appendonly yes\n\
         appendfsync always\n\
         aof-load-truncated no\n\
         maxmemory-policy noeviction\n",
        socket.display(),
        data.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Programs;

    #[test]
    fn what_opens_graphs_gives_memory_back_and_nothing_else_is_told_to() {
        let nowhere = PathBuf::from("/nowhere");
        let programs = Programs {
            guard: nowhere.clone(),
            gateway: nowhere.clone(),
            encoder: nowhere.clone(),
            worker: nowhere.clone(),
            redis_server: nowhere.clone(),
            onnxruntime: nowhere,
        };
        let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/bundles/tiny");
        let options = ClusterOptions::new(bundle, programs);
        let directory = Arc::new(StateDirectory::open(None).unwrap());
        let planner = Planner::new(&options, directory).unwrap();
        let mut parts = vec![planner.valkey().unwrap()];
        parts.extend(planner.front().unwrap());
        parts.extend(planner.workers(&[], &[]).unwrap());
        let told: Vec<&str> = parts
            .iter()
            .filter(|part| part.environment.contains(&GIVE_BACK))
            .map(|part| part.name.as_str())
            .collect();
        assert_eq!(told, ["encoder-0", "base-0", "superres-0"]);
    }
}
