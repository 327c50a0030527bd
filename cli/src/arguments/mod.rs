//! The command line.

mod admin;
mod batch;
mod generate;
mod sampling;
mod up;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use muse_proto::v1::JobState;

pub(crate) use self::{
    admin::{DeadCommand, FilterArguments, TargetArguments, TenantCommand, WhichArguments},
    batch::BatchArguments,
    generate::{Format, GenerateArguments, LocalArguments, Show},
    up::UpArguments,
};

/// Where a gateway listens that was started without configuration.
pub(crate) const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7700";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    wrong usage, or a request that the gateway refused as invalid
  3    cannot reach a gateway, or the cluster is unavailable for now
  4    the job failed, was cancelled, or ran past its deadline
  5    there is no such job, picture or model
  6    a limit is reached; try again later
  130  interrupted
`up -- COMMAND` exits with COMMAND's code.

Environment:
  MUSE_ENDPOINTS, MUSE_ENDPOINT   gateways, separated by commas, when --endpoint is not given
  MUSE_REDIS_SERVER               the Redis or Valkey server that `up` runs
  MUSE__RUNTIME__ONNXRUNTIME      ONNX Runtime's library, for `up`, `generate --local` and `bundle verify`
  TRACEPARENT                     W3C trace context that a submitted job belongs to";

/// Pictures from prompts on a Muse Serve cluster, and the cluster itself.
#[derive(Debug, Parser)]
#[command(name = "musectl", version, after_help = EXIT_CODES, propagate_version = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Gateways, separated by commas; the first that answers is asked [default: http://127.0.0.1:7700]
    #[arg(
        long = "endpoint",
        alias = "endpoints",
        value_name = "URL",
        value_delimiter = ',',
        global = true
    )]
    pub(crate) endpoints: Vec<String>,
    /// What is printed to stdout
    #[arg(long, value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For machines: one JSON document
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make pictures from a prompt
    Generate(Box<GenerateArguments>),
    /// Make pictures from a file of prompts; goes on where an earlier run ended
    Batch(Box<BatchArguments>),
    /// Look at jobs, and cancel them
    #[command(subcommand)]
    Job(JobCommand),
    /// Look at the queue, and stop parts of it
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Look at jobs that gave up, try them again or remove them
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Look at tenants, and set their shares and limits
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Check that every job is in exactly one place of the queue; fails when something is wrong
    Audit {
        /// Repair what can be repaired
        #[arg(long)]
        repair: bool,
    },
    /// Look at the workers, or have them end
    #[command(subcommand)]
    Worker(WorkerCommand),
    /// Look at the models that the cluster serves
    #[command(subcommand)]
    Model(ModelCommand),
    /// Look at a bundle on disk
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Run a cluster on this machine until Ctrl-C, or for as long as COMMAND runs
    Up(UpArguments),
    /// Print a completion script
    Completions {
        /// The shell
        shell: Shell,
    },
    #[command(hide = true)]
    Guard(GuardArguments),
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show a job
    Get {
        /// Its id
        id: String,
    },
    /// List jobs, newest first
    List {
        /// Only jobs in these states, separated by commas
        #[arg(long = "state", value_enum, value_delimiter = ',')]
        states: Vec<State>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Follow a job to its end
    Watch {
        /// Its id
        id: String,
    },
    /// Cancel a job; one that has ended is left as it is
    Cancel {
        /// Its id
        id: String,
    },
    /// Put a job back into its queue now: a running one is taken from its worker, a dead one is tried again
    Requeue {
        /// Its id
        id: String,
    },
    /// Download a job's pictures
    Image {
        /// The job's id
        id: String,
        /// Only this picture, counted from 0
        #[arg(long)]
        index: Option<u32>,
        /// Where to; `-` is stdout. With several pictures: NAME-<k>.EXT [default: <id>.<format>]
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Show the pictures in the terminal
        #[arg(long, value_enum, default_value_t = Show::Auto, num_args = 0..=1, default_missing_value = "always")]
        show: Show,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// Waiting, running and delayed jobs of each pool, and its workers
    Status,
    /// The same again and again, until Ctrl-C; as JSON, a line each time
    Watch {
        /// Between two looks
        #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
        interval: Duration,
        /// Stop after so many looks
        #[arg(long, value_name = "N")]
        times: Option<u64>,
    },
    /// Stop leasing the jobs of a pool or a tenant; what runs goes on, and submissions are accepted
    Pause {
        #[command(flatten)]
        target: TargetArguments,
        /// For whoever wonders later
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Lease them again
    Resume {
        #[command(flatten)]
        target: TargetArguments,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// Every worker: stage, device, rows, passes a second
    List,
    /// Have workers give their jobs back and end, and wait until they are gone
    Drain {
        /// Ids of workers, as `worker list` shows them
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
        /// Tell them, and do not wait
        #[arg(long)]
        no_wait: bool,
        /// Wait no longer than this; they go on draining
        #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "no_wait")]
        timeout: Option<Duration>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Every model with its stages and defaults
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Print what a bundle's manifest says
    Inspect {
        /// The bundle's folder
        folder: PathBuf,
    },
    /// Check a bundle: digests, tokenizer, and every graph's tensors
    Verify {
        /// The bundle's folder
        folder: PathBuf,
        #[command(flatten)]
        local: LocalArguments,
    },
}

/// Becomes PROGRAM, and dies with PARENT.
#[derive(Args, Debug)]
pub(crate) struct GuardArguments {
    #[arg(long)]
    pub(crate) parent: u32,
    pub(crate) program: OsString,
    #[arg(last = true)]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Queued,
    Running,
    Delayed,
    Succeeded,
    Failed,
    Cancelled,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Delayed => Self::Delayed,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

/// A span of time, given in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "expected a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "expected a positive number of seconds".to_owned())
}

/// The gateways to ask: the option's, or else those of the environment, or else the default.
pub(crate) fn endpoints(option: &[String], environment: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let split = |text: String| -> Vec<String> {
        text.split(',')
            .map(str::trim)
            .filter(|endpoint| !endpoint.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let candidates = [
        option.to_vec(),
        environment("MUSE_ENDPOINTS").map(split).unwrap_or_default(),
        environment("MUSE_ENDPOINT").map(split).unwrap_or_default(),
    ];
    let chosen = candidates.into_iter().find(|endpoints| !endpoints.is_empty());
    chosen.unwrap_or_else(|| vec![DEFAULT_ENDPOINT.to_owned()])
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_option_goes_before_the_environment_and_the_environment_before_the_default() {
        let nothing = |_: &str| None;
        let environment = |name: &str| match name {
            "MUSE_ENDPOINTS" => Some("http://a:1, http://b:2,".to_owned()),
            _ => Some("http://c:3".to_owned()),
        };
        assert_eq!(endpoints(&[], nothing), [DEFAULT_ENDPOINT]);
        assert_eq!(endpoints(&[], environment), ["http://a:1", "http://b:2"]);
        assert_eq!(endpoints(&["http://d:4".to_owned()], environment), ["http://d:4"]);
        let only_one = |name: &str| (name == "MUSE_ENDPOINT").then(|| "http://c:3".to_owned());
        assert_eq!(endpoints(&[], only_one), ["http://c:3"]);
    }

    #[test]
    fn a_command_after_two_dashes_keeps_its_own_options() {
        let parsed = Arguments::parse_from([
            "musectl",
            "up",
            "--base-workers",
            "2",
            "--",
            "pytest",
            "-q",
            "--",
            "x",
        ]);
        let Command::Up(up) = parsed.command else {
            panic!("{parsed:?}")
        };
        assert_eq!(up.command, ["pytest", "-q", "--", "x"]);
        assert_eq!(up.base_workers, 2);
    }

    #[test]
    fn a_drain_names_its_workers_and_waits_unless_it_is_told_not_to() {
        let parsed = Arguments::parse_from(["musectl", "worker", "drain", "w1", "w2", "--timeout", "1.5"]);
        let Command::Worker(WorkerCommand::Drain {
            ids,
            no_wait,
            timeout,
        }) = parsed.command
        else {
            panic!("{parsed:?}")
        };
        assert_eq!((ids, no_wait), (vec!["w1".to_owned(), "w2".to_owned()], false));
        assert_eq!(timeout, Some(Duration::from_millis(1500)));
        for refused in [
            &["worker", "drain"][..],
            &["worker", "drain", "w", "--no-wait", "--timeout", "1"],
        ] {
            let words = [&["musectl"][..], refused].concat();
            assert!(Arguments::try_parse_from(&words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn show_alone_means_always() {
        let show = |arguments: &[&str]| match Arguments::parse_from(arguments).command {
            Command::Generate(generate) => generate.show,
            other => panic!("{other:?}"),
        };
        assert_eq!(show(&["musectl", "generate", "x"]), Show::Auto);
        assert_eq!(show(&["musectl", "generate", "x", "--show"]), Show::Always);
        assert_eq!(
            show(&["musectl", "generate", "x", "--show", "never"]),
            Show::Never
        );
    }
}
