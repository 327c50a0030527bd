//! Keys for S3 from a file in AWS' own format, read again when they may have been exchanged.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use object_store::{CredentialProvider, aws::AwsCredential};
use tokio::sync::Mutex;

/// A mounted Secret changes under a running gateway; looking this often is enough.
const FRESH: Duration = Duration::from_secs(10);

/// `[profile]`, then `aws_access_key_id`, `aws_secret_access_key` and perhaps `aws_session_token`.
pub(super) struct CredentialsFile {
    path: PathBuf,
    profile: String,
    known: Mutex<Option<(Instant, Arc<AwsCredential>)>>,
}

impl CredentialsFile {
    /// The keys of `profile` in the file at `path`.
    pub(super) fn new(path: PathBuf, profile: String) -> Self {
        Self {
            path,
            profile,
            known: Mutex::new(None),
        }
    }

    async fn read(&self) -> Result<AwsCredential, String> {
        let failed = |reason: &dyn fmt::Display| format!("{}: {reason}", self.path.display());
        let text = tokio::fs::read_to_string(&self.path)
            .await
            .map_err(|error| failed(&error))?;
        parse(&text, &self.profile).map_err(|reason| failed(&reason))
    }
}

// Never the keys.
impl fmt::Debug for CredentialsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialsFile({})", Path::display(&self.path))
    }
}

#[tonic::async_trait]
impl CredentialProvider for CredentialsFile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut known = self.known.lock().await;
        if let Some((read, credential)) = known.as_ref()
            && read.elapsed() < FRESH
        {
            return Ok(Arc::clone(credential));
        }
        let credential = self.read().await.map_err(|reason| object_store::Error::Generic {
            store: "S3",
            source: reason.into(),
        })?;
        let credential = Arc::new(credential);
        *known = Some((Instant::now(), Arc::clone(&credential)));
        Ok(credential)
    }
}

/// The keys of a profile. What it complains of never holds a line of the file.
fn parse(text: &str, profile: &str) -> Result<AwsCredential, String> {
    let mut inside = false;
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    match (id, secret) {
        (Some(key_id), Some(secret_key)) => Ok(AwsCredential {
            key_id,
            secret_key,
            token,
        }),
        _ => Err(format!(
            "has no aws_access_key_id and aws_secret_access_key under [{profile}]"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[default]\naws_access_key_id = AKIA\naws_secret_access_key=hu=sh\n\n[other]\n\
                        aws_access_key_id=B\naws_secret_access_key=secret\naws_session_token=t\n[half]\naws_access_key_id=C\n";

    #[test]
    fn a_profile_has_its_own_keys() {
        let keys = parse(FILE, "default").unwrap();
        assert_eq!(
            (keys.key_id.as_str(), keys.secret_key.as_str(), keys.token),
            ("AKIA", "hu=sh", None)
        );
        let keys = parse(FILE, "other").unwrap();
        assert_eq!((keys.key_id.as_str(), keys.token.as_deref()), ("B", Some("t")));
    }

    #[test]
    fn half_a_profile_is_refused_without_its_keys() {
        for profile in ["half", "none"] {
            let refused = parse(FILE, profile).err().unwrap();
            assert!(
                refused.contains(profile) && !refused.contains("hush") && !refused.contains('C'),
                "{refused}"
            );
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named() {
        let file = CredentialsFile::new("/nowhere/keys".into(), "default".to_owned());
        let refused = file.get_credential().await.unwrap_err().to_string();
        assert!(refused.contains("/nowhere/keys"), "{refused}");
    }
}
