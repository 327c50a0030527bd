//! From the configuration to a folder or a bucket. Credentials come from `results.credentials_file`, else from the
//! environment and the machine, under the names that each cloud's own tools use.

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    path::Path,
};

use super::{
    Cloud, Location, credentials::CredentialsFile, http::Connector, location::is_private, startup::StoreError,
};
use crate::config;

/// A place for objects.
pub(super) struct Bucket {
    /// Of which objects are written, read, listed and deleted.
    pub(super) store: Arc<dyn ObjectStore>,
    /// What every object's name begins with.
    pub(super) prefix: Path,
    /// As in the configuration, for messages.
    pub(super) name: String,
    /// Where it is, if it is a folder.
    pub(super) folder: Option<PathBuf>,
}

/// The place at `location`, which is not Redis. Nothing is asked of it yet.
pub(super) fn open(location: &Location, config: &config::Results) -> Result<Bucket, StoreError> {
    let (store, prefix, folder): (Arc<dyn ObjectStore>, _, _) = match location {
        Location::Redis => {
            return Err(StoreError::Configuration {
                key: "results.store",
                reason: "is Redis, which is no bucket".to_owned(),
            });
        }
        Location::Folder(folder) => {
            // A folder that is made here could be one that lacks its mount.
            let store = LocalFileSystem::new_with_prefix(folder)
                .map_err(|error| refused(location, &error))?
                .with_fsync(true)
                .with_automatic_cleanup(true);
            (Arc::new(store), Path::default(), Some(folder.clone()))
        }
        Location::Bucket { cloud, name, prefix } => {
            let connector = Connector::new(
                config.ca_file.as_deref(),
                Duration::from_millis(config.connect_timeout_ms),
            )?;
            let store: Arc<dyn ObjectStore> = match cloud {
                Cloud::S3 => s3(location, name, config, connector)?,
                Cloud::Google => google(location, name, config, connector)?,
                Cloud::Azure => azure(location, name, config, connector)?,
            };
            (store, prefix.clone(), None)
        }
    };
    Ok(Bucket {
        store,
        prefix,
        name: location.to_string(),
        folder,
    })
}

fn s3(
    location: &Location,
    name: &str,
    config: &config::Results,
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_http_connector(connector)
        .with_retry(retries(config));
    if let Some(endpoint) = &config.endpoint {
        // Both keys: the one for S3 alone would win if it came from the environment.
        builder = builder
            .with_config(AmazonS3ConfigKey::Endpoint, endpoint)
            .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let from_environment = env::var_os("AWS_SHARED_CREDENTIALS_FILE")
        .filter(|_| env::var_os("AWS_ACCESS_KEY_ID").is_none())
        .map(PathBuf::from);
    if let Some(path) = config.credentials_file.clone().or(from_environment) {
        let profile = env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
        builder = builder.with_credentials(Arc::new(CredentialsFile::new(path, profile)));
    }
    for key in [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint] {
        check_endpoint(builder.get_config_value(&key), config)?;
    }
    let store = builder.build().map_err(|error| refused(location, &error))?;
    Ok(Arc::new(store))
}

fn google(
    location: &Location,
    name: &str,
    config: &config::Results,
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    // A key in the environment would win over the file, or make it one too many.
    let mut builder = match &config.credentials_file {
        Some(path) => GoogleCloudStorageBuilder::new().with_application_credentials(path.to_string_lossy()),
        None => GoogleCloudStorageBuilder::from_env(),
    };
    builder = builder
        .with_bucket_name(name)
        .with_http_connector(connector)
        .with_retry(retries(config));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    check_endpoint(builder.get_config_value(&GoogleConfigKey::BaseUrl), config)?;
    let store = builder.build().map_err(|error| refused(location, &error))?;
    Ok(Arc::new(store))
}

fn azure(
    location: &Location,
    name: &str,
    config: &config::Results,
    connector: Connector,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    // A token in the environment would win over the file.
    let mut builder = match &config.credentials_file {
        Some(path) => {
            let key = std::fs::read_to_string(path).map_err(|error| StoreError::Configuration {
                key: "results.credentials_file",
                reason: format!("cannot read {}: {error}", path.display()),
            })?;
            MicrosoftAzureBuilder::new().with_access_key(key.trim())
        }
        None => MicrosoftAzureBuilder::from_env(),
    };
    builder = builder
        .with_container_name(name)
        .with_http_connector(connector)
        .with_retry(retries(config));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let from_environment = || env::var("AZURE_STORAGE_ACCOUNT_NAME").ok();
    if let Some(account) = config.account.clone().or_else(from_environment) {
        builder = builder.with_account(account);
    }
    check_endpoint(builder.get_config_value(&AzureConfigKey::Endpoint), config)?;
    let store = builder.build().map_err(|error| refused(location, &error))?;
    Ok(Arc::new(store))
}

/// Whether pictures may go there without TLS.
fn check_endpoint(endpoint: Option<String>, config: &config::Results) -> Result<(), StoreError> {
    match endpoint {
        Some(endpoint) if !config.insecure_allow_http => {
            is_private(&endpoint).map_err(|reason| StoreError::Configuration {
                key: "results.endpoint",
                reason,
            })
        }
        _ => Ok(()),
    }
}

/// Passing faults of a single request, well inside the time that a caller waits. What lasts longer is the callers' to repeat.
fn retries(config: &config::Results) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_millis(config.timeout_ms),
    }
}

fn refused(location: &Location, error: &object_store::Error) -> StoreError {
    StoreError::Unusable {
        store: location.to_string(),
        reason: super::objects::one_line(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> config::Results {
        config::Results {
            region: Some("us-east-1".to_owned()),
            ..config::Results::default()
        }
    }

    #[test]
    fn a_folder_must_be_there_already() {
        let missing = Location::Folder("/nowhere/pictures".into());
        let refused = open(&missing, &config()).err().unwrap().to_string();
        assert!(refused.contains("/nowhere/pictures"), "{refused}");
    }

    #[test]
    fn pictures_do_not_leave_the_machine_in_the_clear() {
        for fine in [
            "https://minio.example",
            "http://127.0.0.1:9000",
            "http://[::1]:9",
            "http://localhost:1",
        ] {
            assert_eq!(is_private(fine), Ok(()), "{fine}");
        }
        for bad in [
            "http://minio:9000",
            "http://10.0.0.1",
            "ftp://a",
            "minio:9000",
            "",
        ] {
            assert!(is_private(bad).is_err(), "{bad}");
        }
        let location = Location::parse("s3://bucket").unwrap();
        let mut plain = config::Results {
            endpoint: Some("http://minio:9000".to_owned()),
            ..config()
        };
        let refused = open(&location, &plain).err().unwrap().to_string();
        assert!(refused.contains("results.endpoint"), "{refused}");
        plain.insecure_allow_http = true;
        assert!(open(&location, &plain).is_ok());
    }

    #[test]
    fn every_cloud_is_built_with_our_own_http() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        std::fs::write(&key, "aHVzaA==\n").unwrap();
        assert!(open(&Location::parse("s3://bucket/a").unwrap(), &config()).is_ok());
        let azure = config::Results {
            account: Some("account".to_owned()),
            credentials_file: Some(key),
            ..config()
        };
        assert!(open(&Location::parse("az://container/a").unwrap(), &azure).is_ok());
        let google = config::Results {
            credentials_file: Some("/nowhere/key.json".into()),
            ..config()
        };
        let refused = open(&Location::parse("gs://bucket/a").unwrap(), &google)
            .err()
            .unwrap();
        assert!(refused.to_string().contains("/nowhere/key.json"), "{refused}");
    }
}
