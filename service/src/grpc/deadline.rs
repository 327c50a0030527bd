//! The time that a caller gives: the `grpc-timeout` header, as a moment.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// When the caller stops waiting; in the extensions of a request that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

/// The gRPC library answers CANCELLED when the time is up. We answer DEADLINE_EXCEEDED, and so have to be this much earlier.
const EARLIER: Duration = Duration::from_millis(3);

impl Deadline {
    /// From a call's metadata; `None` when it has no limit, or one that is no time.
    pub(super) fn from_headers(headers: &HeaderMap, now: Instant) -> Option<Self> {
        let given = parse(headers.get("grpc-timeout")?.to_str().ok()?)?;
        now.checked_add(given.saturating_sub(EARLIER)).map(Self)
    }
}

/// One to eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit_and_nothing_else_is_a_time() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "100000000S", "-1S", "+1S", "1", "1s", "1é", "１S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
