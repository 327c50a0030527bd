//! Durations that come from outside.

/// A protobuf duration as Rust's own; `None` when it is negative, or its nanoseconds are not 0 to 999,999,999.
///
/// `std::time::Duration::try_from` is not for what comes from outside: it negates the most negative number of seconds, which
/// panics where overflow is checked.
pub fn std_duration(duration: &prost_types::Duration) -> Option<std::time::Duration> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u32::try_from(duration.nanos).ok()?;
    (nanos < 1_000_000_000).then(|| std::time::Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_duration_comes_through_and_what_is_none_does_not_panic() {
        let read = |seconds, nanos| std_duration(&prost_types::Duration { seconds, nanos });
        assert_eq!(read(0, 0), Some(Duration::ZERO));
        assert_eq!(read(1, 5), Some(Duration::new(1, 5)));
        assert_eq!(
            read(i64::MAX, 999_999_999),
            Some(Duration::new(i64::MAX as u64, 999_999_999))
        );
        for (seconds, nanos) in [
            (i64::MIN, i32::MIN),
            (i64::MIN, 0),
            (i64::MIN, i32::MAX),
            (-1, 0),
            (-1, 1),
            (0, -1),
            (0, i32::MIN),
            (0, 1_000_000_000),
            (i64::MAX, i32::MAX),
            (i64::MAX, -1),
        ] {
            assert_eq!(read(seconds, nanos), None, "{seconds} s, {nanos} ns");
        }
    }
}
