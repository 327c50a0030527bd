//! What was measured on: a figure without its machine means nothing.

use std::{fmt::Write as _, fs, process::Command, time::Duration};

use muse_engine::{Bundle, Runtime, SessionOptions};
use musectl::cluster::Programs;
use serde::Serialize;

/// How long the load of others is watched, before and after.
const LOOK: Duration = Duration::from_secs(2);
/// With more than this share of all cores taken by others, absolute times say little.
const QUIET: f64 = 0.05;

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    system: String,
    versions: Vec<(String, String)>,
    /// Share of all cores that was busy before anything was measured, and after.
    busy_before: Option<f64>,
    busy_after: Option<f64>,
    /// A build without optimisation measures nothing.
    release: bool,
}

impl Machine {
    /// Takes two seconds.
    pub(crate) async fn look(bundle: &Bundle, session: &SessionOptions) -> Self {
        let model = bundle.model();
        let onnxruntime = Runtime::initialise(session.onnxruntime.as_deref()).map_or_else(
            |error| error.to_string(),
            |runtime| runtime.build_info().to_owned(),
        );
        let redis = Programs::discover()
            .ok()
            .and_then(|programs| first_line(Command::new(programs.redis_server).arg("--version")));
        let commit = first_line(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"]));
        let versions = [
            ("commit", commit),
            ("rustc", first_line(Command::new("rustc").arg("--version"))),
            ("ONNX Runtime", Some(onnxruntime)),
            ("Redis", redis),
            (
                "bundle",
                Some(format!(
                    "{} {}, {:.16}…",
                    model.name,
                    model.version,
                    bundle.digest()
                )),
            ),
        ];
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib().unwrap_or_default(),
            system: first_line(Command::new("uname").args(["-s", "-r", "-m"])).unwrap_or_default(),
            versions: versions
                .into_iter()
                .map(|(name, version)| (name.to_owned(), version.unwrap_or_else(|| "unknown".to_owned())))
                .collect(),
            busy_before: busy().await,
            busy_after: None,
            release: !cfg!(debug_assertions),
        }
    }

    /// Whether the machine is still as quiet. Takes two seconds.
    pub(crate) async fn look_again(&mut self) {
        self.busy_after = busy().await;
    }

    /// Nothing else ran, as far as was seen.
    pub(crate) fn is_quiet(&self) -> bool {
        let seen = [self.busy_before, self.busy_after];
        seen.into_iter().flatten().all(|share| share <= QUIET)
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "| | |\n|---|---|\n| CPU | {}, {} cores |\n| memory | {:.1} GiB |\n| system | {} |\n",
            self.cpu, self.cores, self.memory_gib, self.system
        );
        for (name, version) in &self.versions {
            let _ = writeln!(text, "| {name} | {version} |");
        }
        let percent = |share: Option<f64>| {
            share.map_or("unknown".to_owned(), |share| format!("{:.0} %", share * 100.0))
        };
        let (before, after) = (percent(self.busy_before), percent(self.busy_after));
        let _ = writeln!(
            text,
            "| busy with other work | {before} of all cores before, {after} after |"
        );
        if !self.is_quiet() {
            text.push_str(
                "\n**The machine was not quiet: other programs ran beside this. Times and rates are too bad by an unknown amount; \
                 only ratios within this run mean anything.**\n",
            );
        }
        if !self.release {
            text.push_str("\n**Built without optimisation: these figures mean nothing.**\n");
        }
        text
    }
}

fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(|line| line.trim().to_owned())
}

/// The first value of a `name : value` file.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gib() -> Option<f64> {
    let total = field("/proc/meminfo", "MemTotal")?;
    let kibibytes: f64 = total.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes / 1024.0 / 1024.0)
}

/// Share of all cores that is busy while this program waits.
async fn busy() -> Option<f64> {
    let (idle_before, all_before) = cpu_times(&fs::read_to_string("/proc/stat").ok()?)?;
    tokio::time::sleep(LOOK).await;
    let (idle, all) = cpu_times(&fs::read_to_string("/proc/stat").ok()?)?;
    let (idle, all) = (idle.checked_sub(idle_before)?, all.checked_sub(all_before)?);
    (all > 0).then(|| 1.0 - idle as f64 / all as f64)
}

/// Idle and total ticks of all cores since the start, out of `/proc/stat`.
fn cpu_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        // What follows the first eight is counted in them already.
        .take(8)
        .map(|ticks| ticks.parse().ok())
        .collect::<Option<_>>()?;
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_disk_is_idle_and_guests_are_not_counted_twice() {
        let stat = "cpu  100 0 50 800 40 0 5 5 90 0\ncpu0 1 2 3\n";
        assert_eq!(cpu_times(stat), Some((840, 1000)));
        assert_eq!(cpu_times("intr 5"), None);
    }
}
