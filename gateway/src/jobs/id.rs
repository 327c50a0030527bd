//! The names of jobs and leases.

use std::fmt;

use uuid::Uuid;

/// A job's name: a UUIDv7 whose last two bytes hold the queue shard, so that whoever knows the name knows where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Uuid);

/// Who holds the lease: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce([u8; 16]);

/// Text that is no job's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a job's id, a UUID such as 01932c07-a1b0-7c3e-8f21-5b8f6c1d0000")]
pub struct InvalidJobId;

impl JobId {
    /// A new name, later in order than those made before it (to the millisecond).
    pub fn new(shard: u16) -> Self {
        let mut bytes = Uuid::now_v7().into_bytes();
        bytes[14..].copy_from_slice(&shard.to_be_bytes());
        Self(Uuid::from_bytes(bytes))
    }

    /// Reads a name in the hyphenated form.
    ///
    /// # Errors
    /// [`InvalidJobId`] says what one looks like.
    pub fn parse(text: &str) -> Result<Self, InvalidJobId> {
        if text.len() != uuid::fmt::Hyphenated::LENGTH {
            return Err(InvalidJobId);
        }
        let id = Uuid::try_parse(text).map_err(|_| InvalidJobId)?;
        if id.get_version_num() == 7 {
            Ok(Self(id))
        } else {
            Err(InvalidJobId)
        }
    }

    /// The queue shard that holds it.
    pub fn shard(self) -> u16 {
        let [.., high, low] = *self.0.as_bytes();
        u16::from_be_bytes([high, low])
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl Nonce {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// From a worker's message; `None` unless it has 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// From Redis.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// For a message.
    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// Hexadecimal, as in Redis.
impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_job_id_is_a_uuid_7_that_knows_its_shard(shard: u16) {
            let id = JobId::new(shard);
            prop_assert_eq!(id.shard(), shard);
            prop_assert_eq!(JobId::parse(&id.to_string()), Ok(id));
        }

        #[test]
        fn no_text_makes_the_parsers_fail(text in ".*", bytes: Vec<u8>) {
            let _ = JobId::parse(&text);
            let _ = Nonce::from_hex(&text);
            prop_assert_eq!(Nonce::from_bytes(&bytes).is_some(), bytes.len() == 16);
        }
    }

    #[test]
    fn a_nonce_survives_its_way_through_redis() {
        let nonce = Nonce::random();
        assert_eq!(Nonce::from_hex(&nonce.to_string()), Some(nonce));
    }
}
