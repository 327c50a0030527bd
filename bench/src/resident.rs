//! What a process holds in memory, as the kernel tells it.

use std::fs;

use anyhow::Context as _;

/// Of one process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resident {
    /// All of its pages, those of files and those that others share included.
    pub(crate) all: u64,
    /// The same, shared pages divided among those who share them.
    pub(crate) share: u64,
    /// Pages that no file is behind: heap, stacks, weights that were unpacked.
    pub(crate) anonymous: u64,
}

impl Resident {
    /// Reads it.
    ///
    /// # Errors
    /// When the process is gone, or the system has no `/proc/PID/smaps_rollup`.
    pub(crate) fn of(process: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        Self::parse(&text).with_context(|| format!("{path} is not what Linux writes"))
    }

    fn parse(rollup: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            kibibytes.checked_mul(1024)
        };
        Some(Self {
            all: field("Rss:")?,
            share: field("Pss:")?,
            anonymous: field("Anonymous:")?,
        })
    }
}

/// The most that a process has held at once since it started, in bytes; `None` where the system does not tell.
pub(crate) fn greatest(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// As MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_read_and_a_damaged_one_refused() {
        let text = "55-ff ---p 0 00:00 0  [rollup]\nRss:    81 kB\nPss:    7 kB\nPss_Anon:    6 kB\nAnonymous:   5 kB\n";
        let resident = Resident::parse(text).unwrap();
        assert_eq!(
            (resident.all, resident.share, resident.anonymous),
            (81 * 1024, 7 * 1024, 5 * 1024)
        );
        assert_eq!(Resident::parse("Rss: 81 kB\n"), None);
        assert_eq!(Resident::parse("Rss: many\nPss: 1 kB\nAnonymous: 1 kB\n"), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let own = Resident::of(std::process::id()).unwrap();
        assert!(own.all >= own.anonymous && own.anonymous > 0, "{own:?}");
        assert!(greatest(std::process::id()).unwrap() >= own.all / 2);
    }
}
