//! How far a job is, on stderr: bars on a terminal, a line now and then anywhere else.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use muse_proto::v1::{JobState, Progress, Stage};

use crate::view::words;

/// A spinner's pace.
const TICK: Duration = Duration::from_millis(120);

#[derive(Debug)]
pub(crate) enum Display {
    Bars(Bars),
    Lines(Lines),
    Silent,
}

/// A spinner that says what the job does, and a bar for each stage that it has reached.
#[derive(Debug)]
pub(crate) struct Bars {
    all: MultiProgress,
    state: ProgressBar,
    stages: BTreeMap<i32, ProgressBar>,
}

/// Says each state and each step once.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    last: String,
}

impl Display {
    pub(crate) fn new(silent: bool) -> Self {
        if silent {
            Self::Silent
        } else if std::io::stderr().is_terminal() {
            let all = MultiProgress::new();
            let state = all.add(ProgressBar::new_spinner());
            state.enable_steady_tick(TICK);
            Self::Bars(Bars {
                all,
                state,
                stages: BTreeMap::new(),
            })
        } else {
            Self::Lines(Lines::default())
        }
    }

    /// What goes on, in words.
    pub(crate) fn say(&mut self, text: &str) {
        match self {
            Self::Bars(bars) => bars.state.set_message(text.to_owned()),
            Self::Lines(lines) => lines.say(text),
            Self::Silent => {}
        }
    }

    pub(crate) fn state(&mut self, state: JobState, stage: Stage) {
        self.say(&describe(state, stage));
    }

    pub(crate) fn progress(&mut self, progress: &Progress) {
        match self {
            Self::Bars(bars) => bars.progress(progress),
            Self::Lines(lines) => lines.say(&format!(
                "{}: step {} of {}",
                words::stage(progress.stage()),
                progress.step,
                progress.of
            )),
            Self::Silent => {}
        }
    }

    /// Leaves the terminal to others.
    pub(crate) fn finish(&mut self) {
        if let Self::Bars(bars) = self {
            bars.state.finish_and_clear();
            for bar in bars.stages.values() {
                bar.abandon();
            }
        }
    }
}

impl Bars {
    fn progress(&mut self, progress: &Progress) {
        // A stage that is reached means that those before are done, even if their last step was not told.
        for (_, earlier) in self.stages.range(..progress.stage) {
            earlier.set_position(earlier.length().unwrap_or(0));
        }
        let all = &self.all;
        let bar = self.stages.entry(progress.stage).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(u64::from(progress.of)));
            if let Ok(style) = ProgressStyle::with_template("{prefix:>9} {bar:32} {pos}/{len}") {
                bar.set_style(style);
            }
            bar.set_prefix(words::stage(progress.stage()));
            bar
        });
        bar.set_length(u64::from(progress.of));
        bar.set_position(u64::from(progress.step));
    }
}

impl Lines {
    fn say(&mut self, text: &str) {
        if self.last != text {
            eprintln!("{text}");
            text.clone_into(&mut self.last);
        }
    }
}

fn describe(state: JobState, stage: Stage) -> String {
    match state {
        JobState::Queued => format!("waiting for a {} worker", words::stage(stage)),
        JobState::Running => format!("{} runs", words::stage(stage)),
        JobState::Delayed => format!("{} failed and waits for its next attempt", words::stage(stage)),
        other => words::state(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_is_reached_fills_the_bars_before_it() {
        let all = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut bars = Bars {
            state: all.add(ProgressBar::new_spinner()),
            all,
            stages: BTreeMap::new(),
        };
        bars.progress(&Progress {
            stage: Stage::Base.into(),
            step: 3,
            of: 12,
        });
        bars.progress(&Progress {
            stage: Stage::Superres.into(),
            step: 1,
            of: 8,
        });
        let positions: Vec<u64> = bars.stages.values().map(ProgressBar::position).collect();
        assert_eq!(positions, [12, 1]);
    }

    #[test]
    fn each_state_has_its_words() {
        assert_eq!(
            describe(JobState::Queued, Stage::Base),
            "waiting for a base worker"
        );
        assert_eq!(describe(JobState::Succeeded, Stage::Superres), "succeeded");
    }
}
