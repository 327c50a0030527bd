//! Which CPUs a process runs on: `process.cpus`.
//!
//! Linux keeps a thread's memory where the thread runs, so a process that stays on one NUMA node reads its weights from that
//! node's memory. Threads inherit the CPUs of the one that starts them, so the first one chooses, before there are others.

use std::{collections::BTreeSet, fmt, fs, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// CPUs by number, as in `0-15,32`, or those of a NUMA node, as in `node:1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Cpus {
    /// These; never empty.
    Numbers(BTreeSet<usize>),
    /// Those of the node that the process may use at all.
    Node(u32),
}

/// Where Linux tells of its nodes.
const NODES: &str = "/sys/devices/system/node";
/// Numbers beyond this are no CPU's: Linux has fewer, and a range must not fill the memory.
const MOST: usize = 8192;

// === impl Cpus ===

impl Cpus {
    /// Keeps the calling thread on them, and every thread that it starts from now on.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] names `process.cpus` and those that this process may not use.
    pub fn stay(&self) -> Result<(), ConfigError> {
        let refuse = |reason| ConfigError::invalid("process.cpus", reason);
        let allowed = system::allowed().map_err(refuse)?;
        let wanted = self.among(&allowed, Path::new(NODES)).map_err(refuse)?;
        system::stay_on(&wanted).map_err(refuse)
    }

    /// Which of those `allowed` they are; `nodes` is where the nodes' CPUs are told.
    fn among(&self, allowed: &BTreeSet<usize>, nodes: &Path) -> Result<BTreeSet<usize>, String> {
        match self {
            Self::Numbers(wanted) => {
                let others: BTreeSet<usize> = wanted.difference(allowed).copied().collect();
                if others.is_empty() {
                    return Ok(wanted.clone());
                }
                Err(format!(
                    "this process may not use {}: name some of {}",
                    text(&others),
                    text(allowed)
                ))
            }
            Self::Node(node) => {
                let told = fs::read_to_string(nodes.join(format!("node{node}/cpulist")))
                    .map_err(|error| format!("there is no NUMA node {node} here ({error})"))?;
                let wanted = numbers(told.trim())?;
                let wanted: BTreeSet<usize> = wanted.intersection(allowed).copied().collect();
                if wanted.is_empty() {
                    return Err(format!(
                        "this process may use none of the CPUs of node {node}: those that it may are {}",
                        text(allowed)
                    ));
                }
                Ok(wanted)
            }
        }
    }
}

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("node:") {
            Some(node) => node
                .parse()
                .map(Self::Node)
                .map_err(|_| format!("{node:?} is no node's number; write node:0, or CPUs such as 0-15,32")),
            None => numbers(text).map(Self::Numbers),
        }
    }
}

impl TryFrom<String> for Cpus {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> Self {
        cpus.to_string()
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers(numbers) => f.write_str(&text(numbers)),
            Self::Node(node) => write!(f, "node:{node}"),
        }
    }
}

/// As Linux writes lists of CPUs.
fn numbers(text: &str) -> Result<BTreeSet<usize>, String> {
    let wrong = || format!("{text:?} names no CPUs; write numbers such as 0-15,32, or node:0");
    let number = |text: &str| {
        let number = text.trim().parse().map_err(|_| wrong())?;
        if number >= MOST {
            return Err(format!("there is no CPU {number}"));
        }
        Ok(number)
    };
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

fn text(numbers: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let ranges = ranges.into_iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    ranges.collect::<Vec<_>>().join(",")
}

#[cfg(target_os = "linux")]
mod system {
    use std::collections::BTreeSet;

    use nix::{
        sched::{CpuSet, sched_getaffinity, sched_setaffinity},
        unistd::Pid,
    };

    /// The calling thread.
    const THIS: Pid = Pid::from_raw(0);

    pub(super) fn allowed() -> Result<BTreeSet<usize>, String> {
        let set = sched_getaffinity(THIS).map_err(|error| format!("Linux tells no CPUs: {error}"))?;
        let is_set = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
        Ok((0..CpuSet::count()).filter(is_set).collect())
    }

    pub(super) fn stay_on(cpus: &BTreeSet<usize>) -> Result<(), String> {
        let refused = |error| format!("Linux refuses: {error}");
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set(*cpu).map_err(refused)?;
        }
        sched_setaffinity(THIS, &set).map_err(refused)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::collections::BTreeSet;

    pub(super) fn allowed() -> Result<BTreeSet<usize>, String> {
        Err("only Linux keeps a process on CPUs of one's choice".to_owned())
    }

    pub(super) fn stay_on(_: &BTreeSet<usize>) -> Result<(), String> {
        allowed().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(numbers: &[usize]) -> BTreeSet<usize> {
        numbers.iter().copied().collect()
    }

    #[test]
    fn what_names_no_cpus_is_refused_with_what_to_write() {
        for text in ["", "a", "3-1", "1,,2", "node:", "node:x", "-1", "0-999999"] {
            let told = text.parse::<Cpus>().unwrap_err();
            assert!(
                told.contains("0-15,32") || told.contains("999999"),
                "{text:?}: {told}"
            );
        }
    }

    #[test]
    fn a_node_gives_those_of_its_cpus_that_may_be_used() {
        let nodes = tempfile::tempdir().unwrap();
        fs::create_dir(nodes.path().join("node1")).unwrap();
        fs::write(nodes.path().join("node1/cpulist"), "4-7,12-15\n").unwrap();
        let among =
            |text: &str, allowed: &[usize]| text.parse::<Cpus>().unwrap().among(&set(allowed), nodes.path());
        assert_eq!(among("node:1", &[3, 4, 5, 13]), Ok(set(&[4, 5, 13])));
        assert!(among("node:1", &[0, 1]).unwrap_err().contains("0-1"));
        assert!(among("node:2", &[0, 1]).unwrap_err().contains("node 2"));
        assert_eq!(among("0,2-3", &[0, 1, 2, 3]), Ok(set(&[0, 2, 3])));
        let told = among("2-5", &[0, 1, 2, 3]).unwrap_err();
        assert!(told.contains("4-5") && told.contains("0-3"), "{told}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_and_those_that_it_starts_stay() {
        let stayed = std::thread::spawn(|| {
            let first = *system::allowed().unwrap().first().unwrap();
            Cpus::Numbers(set(&[first])).stay().unwrap();
            let inherited = std::thread::spawn(|| system::allowed().unwrap());
            assert_eq!(inherited.join().unwrap(), set(&[first]));
            std::thread::available_parallelism().unwrap().get()
        });
        assert_eq!(stayed.join().unwrap(), 1);
    }

    proptest! {
        #[test]
        fn numbers_are_told_as_they_are_read(all in prop::collection::btree_set(0..MOST, 1..40)) {
            let cpus = Cpus::Numbers(all);
            prop_assert_eq!(cpus.to_string().parse::<Cpus>(), Ok(cpus.clone()));
        }

        #[test]
        fn no_text_makes_it_fail(text in ".{0,20}") {
            let _ = text.parse::<Cpus>();
        }
    }
}
