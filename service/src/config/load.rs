//! Merges the layers and checks the result.

use std::{
    env,
    path::{Path, PathBuf},
};

use config::{Config, ConfigBuilder, File, FileFormat, builder::DefaultState};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::environment::{Variable, variables};
use crate::redact::REDACTED;

/// Why a configuration was refused. Each message is one line and says what to change.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error("cannot read the configuration file {path}: {reason}")]
    Unreadable {
        /// The file that was asked for.
        path: PathBuf,
        /// The operating system's word.
        reason: String,
    },
    /// The file is no TOML.
    #[error("the configuration file {path} is not valid TOML: {reason}")]
    Syntax {
        /// The file that was asked for.
        path: PathBuf,
        /// Line, column and what was expected.
        reason: String,
    },
    /// An unknown key or a value of the wrong type in the file.
    #[error("the configuration file {path}: {reason}")]
    File {
        /// The file that was asked for.
        path: PathBuf,
        /// Names the key.
        reason: String,
    },
    /// An unknown key or a value of the wrong type in the environment.
    #[error("environment variable {name}: {reason}")]
    Environment {
        /// The variable.
        name: String,
        /// Names the key.
        reason: String,
    },
    /// A value that the service refuses.
    #[error("configuration key {key}: {reason}")]
    Invalid {
        /// Such as `grpc.listen`.
        key: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The defaults themselves do not hold together: a fault in the service.
    #[error("the default configuration is faulty: {reason}")]
    Defaults {
        /// Names the key.
        reason: String,
    },
}

impl ConfigError {
    /// A value that the service refuses.
    pub fn invalid(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            key: key.into(),
            reason: reason.into(),
        }
    }
}

/// Loads `T`: its defaults, then `file`, then this process's environment.
///
/// # Errors
/// See [`ConfigError`].
pub fn load<T: Serialize + DeserializeOwned + Default>(file: Option<&Path>) -> Result<T, ConfigError> {
    // Variables that are not Unicode cannot be ours.
    let environment =
        env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    load_from(file, environment)
}

/// As [`load`], with the environment given.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_from<T: Serialize + DeserializeOwned + Default>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    let defaults = defaults_of::<T>()?;
    let layers = layers(&defaults, file)?;
    // Without the environment first, so that a fault in the file is blamed on the file.
    let from_file: T = resolve(layers.clone()).map_err(|reason| match file {
        Some(path) => ConfigError::File {
            path: path.to_owned(),
            reason,
        },
        None => ConfigError::Defaults { reason },
    })?;
    let variables = variables(environment);
    if variables.is_empty() {
        return Ok(from_file);
    }
    let mut all = layers.clone();
    for variable in &variables {
        all = set(all, &defaults, variable)?;
    }
    resolve(all).map_err(|reason| blame(&layers, &defaults, &variables, reason, resolve::<T>))
}

/// The resolved configuration as TOML, for `--check`.
///
/// # Errors
/// When `T` has something that TOML cannot say.
pub fn check<T: Serialize>(config: &T) -> Result<String, ConfigError> {
    toml::to_string_pretty(config).map_err(|error| ConfigError::Defaults {
        reason: error.to_string(),
    })
}

type Layers = ConfigBuilder<DefaultState>;

/// The defaults as a table. Redacted values stay out: they print as a mark, which would come back as the value; what a
/// layer does not name is filled from `Default`.
fn defaults_of<T: Serialize + Default>() -> Result<toml::Table, ConfigError> {
    let mut table = toml::Table::try_from(T::default()).map_err(|error| ConfigError::Defaults {
        reason: error.to_string(),
    })?;
    drop_redacted(&mut table);
    Ok(table)
}

fn drop_redacted(table: &mut toml::Table) {
    table.retain(|_, value| value.as_str() != Some(REDACTED));
    for value in table.iter_mut().filter_map(|(_, value)| value.as_table_mut()) {
        drop_redacted(value);
    }
}

fn layers(defaults: &toml::Table, file: Option<&Path>) -> Result<Layers, ConfigError> {
    let text = defaults.to_string();
    let mut layers = Config::builder().add_source(File::from_str(&text, FileFormat::Toml));
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        if let Err(error) = text.parse::<toml::Table>() {
            return Err(ConfigError::Syntax {
                path: path.to_owned(),
                reason: one_line(&error.to_string()),
            });
        }
        layers = layers.add_source(File::from_str(&text, FileFormat::Toml));
    }
    Ok(layers)
}

fn set(layers: Layers, defaults: &toml::Table, variable: &Variable) -> Result<Layers, ConfigError> {
    let refuse = |reason: String| ConfigError::Environment {
        name: variable.name.clone(),
        reason,
    };
    let value = variable
        .value(is_list(defaults, &variable.path))
        .map_err(refuse)?;
    layers
        .set_override(&variable.path, value)
        .map_err(|_| refuse("the name is not a path of the form MUSE__SECTION__KEY".to_owned()))
}

fn is_list(defaults: &toml::Table, path: &str) -> bool {
    let mut keys = path.split('.');
    let first = keys.next().and_then(|key| defaults.get(key));
    keys.fold(first, |value, key| value.and_then(|value| value.get(key)))
        .is_some_and(toml::Value::is_array)
}

fn resolve<T: DeserializeOwned>(layers: Layers) -> Result<T, String> {
    let merged = layers.build().map_err(|error| one_line(&error.to_string()))?;
    serde_path_to_error::deserialize(merged).map_err(|error| {
        let path = error.path().to_string();
        let reason = one_line(&error.inner().to_string());
        if path == "." {
            reason
        } else {
            format!("key `{path}`: {reason}")
        }
    })
}

/// Which variable is at fault: the first one that is refused alone. When each passes alone, they are at odds together.
fn blame<T>(
    layers: &Layers,
    defaults: &toml::Table,
    variables: &[Variable],
    together: String,
    resolve: impl Fn(Layers) -> Result<T, String>,
) -> ConfigError {
    for variable in variables {
        let alone = set(layers.clone(), defaults, variable);
        match alone.map(&resolve) {
            Err(error) => return error,
            Ok(Err(reason)) => {
                return ConfigError::Environment {
                    name: variable.name.clone(),
                    reason,
                };
            }
            Ok(Ok(_)) => {}
        }
    }
    let names: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
    ConfigError::Environment {
        name: names.join(", "),
        reason: together,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net::SocketAddr};

    use serde::Deserialize;

    use super::*;
    use crate::{Redacted, config::GrpcServer};

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        grpc: GrpcServer,
        runtime: Runtime,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Runtime {
        providers: Vec<String>,
        threads: u32,
        library: Option<PathBuf>,
        password: Redacted<String>,
    }

    impl Default for Runtime {
        fn default() -> Self {
            Self {
                providers: vec!["cpu".into()],
                threads: 1,
                library: None,
                password: Redacted::new("pw".into()),
            }
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load_with(text: &str, environment: &[(&str, &str)]) -> Result<Example, String> {
        let file = file(text);
        let environment = environment
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        load_from(Some(file.path()), environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
        let text = "[grpc]\nlisten = \"127.0.0.1:7000\"\nmax_concurrent_streams = 9\n";
        let config = load_with(text, &[("MUSE__GRPC__LISTEN", "127.0.0.1:7001"), ("HOME", "/")]).unwrap();
        assert_eq!(config.grpc.listen, SocketAddr::from(([127, 0, 0, 1], 7001)));
        assert_eq!(config.grpc.max_concurrent_streams, 9);
        assert_eq!(config.grpc.max_local_error_reset_streams, 256);
    }

    #[test]
    fn lists_options_and_secrets_come_from_the_environment() {
        let config = load_with(
            "",
            &[
                ("MUSE__RUNTIME__PROVIDERS", "cuda, cpu"),
                ("MUSE__RUNTIME__LIBRARY", "/lib/onnx.so"),
                ("MUSE__RUNTIME__PASSWORD", "other"),
                ("MUSE__RUNTIME__THREADS", ""),
            ],
        )
        .unwrap();
        assert_eq!(config.runtime.providers, ["cuda", "cpu"]);
        assert_eq!(config.runtime.library.as_deref(), Some(Path::new("/lib/onnx.so")));
        assert_eq!(config.runtime.password.expose(), "other");
        assert_eq!(config.runtime.threads, 1, "an empty variable is an unset one");
        let config = load_with("", &[("MUSE__RUNTIME__PROVIDERS", "[\"cuda\"]")]).unwrap();
        assert_eq!(config.runtime.providers, ["cuda"]);
    }

    #[test]
    fn a_redacted_default_keeps_its_value_and_does_not_print_it() {
        let config = load_with("[runtime]\nthreads = 2\n", &[]).unwrap();
        assert_eq!(config.runtime.password.expose(), "pw");
        let printed = check(&config).unwrap();
        assert!(printed.contains("password = \"<redacted>\""), "{printed}");
    }

    #[test]
    fn an_unknown_key_in_the_file_is_refused_with_its_name() {
        let error = load_with("[grpc]\nlissten = \"127.0.0.1:0\"\n", &[]).unwrap_err();
        assert!(error.contains("lissten") && error.contains("grpc"), "{error}");
        let error = load_with("[grcp]\n", &[]).unwrap_err();
        assert!(error.contains("grcp"), "{error}");
    }

    #[test]
    fn an_unknown_variable_is_refused_with_its_name() {
        let error = load_with(
            "",
            &[("MUSE__RUNTIME__THREADS", "2"), ("MUSE__GRPC__LISSTEN", "x")],
        )
        .unwrap_err();
        assert!(error.contains("MUSE__GRPC__LISSTEN"), "{error}");
        assert!(!error.contains("MUSE__RUNTIME__THREADS"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_is_refused_with_its_key() {
        let error = load_with("", &[("MUSE__RUNTIME__THREADS", "many")]).unwrap_err();
        assert!(
            error.contains("MUSE__RUNTIME__THREADS") && error.contains("many"),
            "{error}"
        );
        let error = load_with("[grpc]\nlisten = \"nowhere\"\n", &[]).unwrap_err();
        assert!(error.contains("grpc.listen"), "{error}");
    }

    #[test]
    fn faults_of_the_file_itself_are_one_line() {
        let error = load_with("[grpc\n", &[]).unwrap_err();
        assert!(
            error.contains("not valid TOML") && !error.contains('\n'),
            "{error}"
        );
        let missing = load_from::<Example>(Some(Path::new("/nowhere/muse.toml")), [])
            .unwrap_err()
            .to_string();
        assert!(missing.contains("/nowhere/muse.toml"), "{missing}");
    }

    #[test]
    fn what_check_prints_loads_again_to_the_same() {
        let printed =
            check(&load_with("[runtime]\nproviders = [\"cuda\", \"cpu\"]\n", &[]).unwrap()).unwrap();
        let again = load_with(&printed, &[]).unwrap();
        assert_eq!(check(&again).unwrap(), printed);
    }
}
