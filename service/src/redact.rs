//! Values that must never reach a log: prompts, keys, passwords.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What a [`Redacted`] value prints as.
pub(crate) const REDACTED: &str = "<redacted>";

/// Prints, debugs and serializes as `<redacted>`; [`Redacted::expose`] is the one way in, easy to find in review.
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct Redacted<T>(T);

impl<T> Redacted<T> {
    /// Hides `value` from logs.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Never give the result to a log, an error or a metric.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// The value itself, owned.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Redacted<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> Serialize for Redacted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_value_never_prints_itself() {
        let secret = Redacted::new("hunter2".to_owned());
        let seen = format!("{secret} {secret:?} {:#?}", Some(&secret));
        assert!(!seen.contains("hunter2"), "{seen}");
        assert_eq!(secret.expose(), "hunter2");
    }
}
