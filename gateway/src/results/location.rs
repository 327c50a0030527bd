//! What `results.store` says. Pure.

use std::{fmt, net::IpAddr, path::PathBuf};

use object_store::path::Path;
use url::{Host, Url};

/// Where pictures are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In Redis, beside their jobs.
    Redis,
    /// In a folder that every gateway sees.
    Folder(PathBuf),
    /// In a bucket.
    Bucket {
        /// Whose.
        cloud: Cloud,
        /// Its name; with Azure, the container's.
        name: String,
        /// What every object's name begins with; may be empty.
        prefix: Path,
    },
}

/// A protocol that buckets are spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon S3, and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Location {
    /// Reads `redis`, `file:///folder`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    ///
    /// # Errors
    /// Says what is wrong, without the value: a key may have been put into it.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "must be redis, file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix";
        if text == "redis" {
            return Ok(Self::Redis);
        }
        let url = Url::parse(text).map_err(|error| format!("{FORMS} ({error})"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(format!(
                "{FORMS}, with no user, password or query: credentials come from results.credentials_file or the \
                 environment"
            ));
        }
        if url.fragment().is_some() || url.port().is_some() {
            return Err(format!("{FORMS}, with no port and no '#'; see results.endpoint"));
        }
        let cloud = match url.scheme() {
            "file" => {
                return match url.to_file_path() {
                    Ok(folder) if folder.parent().is_some() => Ok(Self::Folder(folder)),
                    Ok(_) => Err("must not be the root folder: a folder of its own is wanted".to_owned()),
                    Err(()) => {
                        Err("must be file:///folder, with three slashes: this machine's own".to_owned())
                    }
                };
            }
            "s3" => Cloud::S3,
            "gs" => Cloud::Google,
            "az" => Cloud::Azure,
            _ => return Err(FORMS.to_owned()),
        };
        let name = url.host_str().filter(|name| !name.is_empty()).ok_or(FORMS)?;
        let prefix = Path::from_url_path(url.path()).map_err(|error| format!("{FORMS} ({error})"))?;
        Ok(Self::Bucket {
            cloud,
            name: name.to_owned(),
            prefix,
        })
    }
}

/// As in the configuration.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis => f.write_str("redis"),
            Self::Folder(folder) => write!(f, "file://{}", folder.display()),
            Self::Bucket { cloud, name, prefix } => {
                let scheme = match cloud {
                    Cloud::S3 => "s3",
                    Cloud::Google => "gs",
                    Cloud::Azure => "az",
                };
                write!(f, "{scheme}://{name}/{prefix}")
            }
        }
    }
}

/// Fails where pictures and their rights would cross a network in the clear.
pub(crate) fn is_private(endpoint: &str) -> Result<(), String> {
    let url = Url::parse(endpoint).map_err(|error| format!("is no URL: {error}"))?;
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if loopback => Ok(()),
        "http" => Err(
            "is http:// on another machine: use https://, or say with results.insecure_allow_http that the network \
             itself is trusted"
                .to_owned(),
        ),
        _ => Err("must be https:// or http://".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_names_its_place() {
        assert_eq!(Location::parse("redis"), Ok(Location::Redis));
        let folder = Location::parse("file:///var/lib/muse/pictures").unwrap();
        assert_eq!(folder, Location::Folder("/var/lib/muse/pictures".into()));
        for (text, cloud) in [
            ("s3://bucket/a/b", Cloud::S3),
            ("gs://bucket/a/b", Cloud::Google),
            ("az://bucket/a/b/", Cloud::Azure),
        ] {
            let parsed = Location::parse(text).unwrap();
            let wanted = Location::Bucket {
                cloud,
                name: "bucket".to_owned(),
                prefix: Path::from("a/b"),
            };
            assert_eq!(parsed, wanted);
            assert_eq!(parsed.to_string(), text.trim_end_matches('/'));
        }
        let whole = Location::parse("s3://bucket").unwrap();
        assert!(matches!(whole, Location::Bucket { prefix, .. } if prefix.as_ref().is_empty()));
    }

    #[test]
    fn what_is_no_place_is_refused_and_not_repeated() {
        for text in [
            "",
            "Redis",
            "/var/lib/muse",
            "file://host/folder",
            "file:///",
            "http://bucket/a",
            "s3:///a",
            "s3://key:hush@bucket/a",
            "az://bucket/a?sig=hush",
            "s3://bucket:9000/a",
        ] {
            let refused = Location::parse(text).unwrap_err();
            assert!(!refused.contains("hush"), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fail(text in ".*") {
            let _ = Location::parse(&text);
        }
    }
}
