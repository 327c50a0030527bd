//! What operators do: pause, dead jobs, tenants, audit.

use clap::{Args, Subcommand, ValueEnum};
use muse_proto::v1::{
    DeadFilter, JobErrorReason, Pool, Stage, TenantSettings, pause_request, resume_request,
};

/// A pool, or a tenant.
#[derive(Args, Debug)]
#[group(id = "target", required = true, multiple = true)]
pub(crate) struct TargetArguments {
    /// The pool's model
    #[arg(long, requires = "stage", conflicts_with = "tenant")]
    model: Option<String>,
    /// The pool's stage
    #[arg(long, value_enum, requires = "model", conflicts_with = "tenant")]
    stage: Option<StageName>,
    /// A tenant, in all pools
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StageName {
    Base,
    Superres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Reason {
    InvalidRequest,
    ModelFailed,
    EncoderUnavailable,
    CrashedWorkers,
    DeadlineExceeded,
    Internal,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// List them, newest first
    List {
        #[command(flatten)]
        filter: FilterArguments,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show one with the history of its failures
    Show {
        /// Its id
        id: String,
    },
    /// Put them back into their queues, with new attempts
    Retry(WhichArguments),
    /// Remove them for good
    Purge(WhichArguments),
}

/// Dead jobs that fit all that is given.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArguments {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Of this model
    #[arg(long)]
    model: Option<String>,
    /// That died in this stage
    #[arg(long, value_enum)]
    stage: Option<StageName>,
    /// That died of this
    #[arg(long, value_enum)]
    reason: Option<Reason>,
}

/// Which dead jobs: by id, or by what they have in common.
#[derive(Args, Debug)]
pub(crate) struct WhichArguments {
    /// Their ids
    #[arg(conflicts_with_all = ["all", "tenant", "model", "stage", "reason"], required_unless_present_any = ["all", "tenant", "model", "stage", "reason"])]
    pub(crate) ids: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with_all = ["tenant", "model", "stage", "reason"])]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Every tenant with its limits and what it has in the queue
    List,
    /// Change a tenant's share and limits
    Set {
        /// The tenant
        name: String,
        #[command(flatten)]
        settings: Box<SettingsArguments>,
        /// Put a setting back to the gateway's default, such as max_queued
        #[arg(long, value_name = "SETTING", value_delimiter = ',')]
        reset: Vec<String>,
    },
}

/// A tenant's settings; what is not given stays as it is. For a limit, 0 means none.
#[derive(Args, Debug)]
pub(crate) struct SettingsArguments {
    /// Share of the work, relative to other tenants
    #[arg(long, value_name = "W")]
    weight: Option<f64>,
    /// Jobs that run at once
    #[arg(long, value_name = "N")]
    max_running: Option<u64>,
    /// Jobs that wait at once
    #[arg(long, value_name = "N")]
    max_queued: Option<u64>,
    /// Bytes of jobs that have not ended
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Submissions a second
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// Submissions at once when none came lately
    #[arg(long, value_name = "N")]
    burst: Option<u64>,
}

impl TargetArguments {
    fn pool(&self) -> Option<Pool> {
        Some(Pool {
            model: self.model.clone()?,
            stage: Stage::from(self.stage?).into(),
        })
    }

    pub(crate) fn to_pause(&self) -> Option<pause_request::Target> {
        use pause_request::Target;

        self.pool()
            .map(Target::Pool)
            .or_else(|| self.tenant.clone().map(Target::Tenant))
    }

    pub(crate) fn to_resume(&self) -> Option<resume_request::Target> {
        use resume_request::Target;

        self.pool()
            .map(Target::Pool)
            .or_else(|| self.tenant.clone().map(Target::Tenant))
    }

    /// In words.
    pub(crate) fn name(&self) -> String {
        match (&self.model, self.stage, &self.tenant) {
            (_, _, Some(tenant)) => format!("tenant {tenant}"),
            (Some(model), Some(stage), None) => {
                format!("{model} {}", crate::view::words::stage(stage.into()))
            }
            _ => String::new(),
        }
    }
}

impl FilterArguments {
    pub(crate) fn filter(&self) -> DeadFilter {
        DeadFilter {
            tenant: self.tenant.clone().unwrap_or_default(),
            model: self.model.clone().unwrap_or_default(),
            stage: self.stage.map_or(Stage::Unspecified, Stage::from).into(),
            reason: self
                .reason
                .map_or(JobErrorReason::Unspecified, JobErrorReason::from)
                .into(),
        }
    }
}

impl SettingsArguments {
    pub(crate) fn settings(&self) -> TenantSettings {
        TenantSettings {
            weight: self.weight,
            max_running: self.max_running,
            max_queued: self.max_queued,
            max_bytes: self.max_bytes,
            rate: self.rate,
            burst: self.burst,
        }
    }
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Base => Self::Base,
            StageName::Superres => Self::Superres,
        }
    }
}

impl From<Reason> for JobErrorReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::InvalidRequest => Self::InvalidRequest,
            Reason::ModelFailed => Self::ModelFailed,
            Reason::EncoderUnavailable => Self::EncoderUnavailable,
            Reason::CrashedWorkers => Self::CrashedWorkers,
            Reason::DeadlineExceeded => Self::DeadlineExceeded,
            Reason::Internal => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Command, QueueCommand};

    fn parse(line: &str) -> Option<Command> {
        let words = ["musectl"].into_iter().chain(line.split_whitespace());
        Arguments::try_parse_from(words)
            .ok()
            .map(|arguments| arguments.command)
    }

    #[test]
    fn dead_jobs_are_named_by_id_or_by_what_they_have_in_common_or_all_of_them() {
        for good in [
            "dead retry 1 2",
            "dead retry --all",
            "dead purge --tenant lab --reason model_failed",
        ] {
            assert!(parse(good).is_some(), "{good}");
        }
        for bad in [
            "dead retry",
            "dead purge",
            "dead purge 1 --all",
            "dead retry --all --stage base",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        let Some(Command::Dead(DeadCommand::Purge(which))) =
            parse("dead purge --reason crashed_workers --stage base")
        else {
            panic!("it parses");
        };
        let filter = which.filter.filter();
        assert_eq!(
            (filter.stage(), filter.reason(), filter.tenant.as_str()),
            (Stage::Base, JobErrorReason::CrashedWorkers, "")
        );
    }

    #[test]
    fn a_pause_is_of_a_pool_or_of_a_tenant() {
        for bad in [
            "queue pause",
            "queue pause --model m",
            "queue pause --stage base",
            "queue pause --model m --stage base --tenant t",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
        let target = |line| match parse(line) {
            Some(Command::Queue(QueueCommand::Pause { target, .. } | QueueCommand::Resume { target })) => {
                target
            }
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(target("queue resume --tenant lab").name(), "tenant lab");
        let pool = target("queue pause --model m --stage superres --reason upgrade");
        assert_eq!(pool.name(), "m superres");
        assert!(matches!(pool.to_pause(), Some(pause_request::Target::Pool(pool)) if pool.model == "m"));
    }
}
