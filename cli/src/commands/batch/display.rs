//! How far a batch is, on stderr: a bar on a terminal, a line now and then anywhere else.

use std::{collections::VecDeque, io::IsTerminal as _, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::view::span;

/// The bar moves this often; a line is printed every so many of these.
pub(super) const TICK: Duration = Duration::from_millis(200);
const TICKS_A_LINE: u32 = 50;
/// The rate is that of the last while, so that the rest is foretold by what is true now.
const WHILE: Duration = Duration::from_secs(30);
/// Lines of detail (bad lines, failures) before they are only counted.
const DETAILS: u64 = 20;

/// Counts of lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Lines in all, where that is known.
    pub(super) total: Option<u64>,
    /// Made by this run.
    pub(super) made: u64,
    /// Made by earlier ones.
    pub(super) made_before: u64,
    /// Without a picture: bad, refused, failed now or earlier.
    pub(super) failed: u64,
}

impl Counts {
    pub(super) fn settled(&self) -> u64 {
        self.made + self.made_before + self.failed
    }
}

/// Lines a second, lately.
#[derive(Debug)]
struct Rate(VecDeque<(Instant, u64)>);

pub(super) struct Display {
    bar: Option<ProgressBar>,
    lines: bool,
    ticks: u32,
    rate: Rate,
    details: u64,
    trouble: Option<String>,
}

impl Display {
    pub(super) fn new(silent: bool, now: Instant) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar =
            (!silent && terminal).then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()));
        Self {
            bar,
            lines: !silent && !terminal,
            ticks: 0,
            rate: Rate(VecDeque::from([(now, 0)])),
            details: 0,
            trouble: None,
        }
    }

    /// What holds lines up, said with the next tick; gone with the next answer.
    pub(super) fn waiting(&mut self, why: String) {
        self.trouble = Some(format!("waiting: {why}"));
    }

    /// As [`Display::waiting`], said at once.
    pub(super) fn lost(&mut self, text: &str) {
        if self.trouble.as_deref() != Some(text) {
            self.trouble = Some(text.to_owned());
            if self.lines {
                eprintln!("{text}");
            }
        }
    }

    pub(super) fn no_trouble(&mut self) {
        self.trouble = None;
    }

    /// A line without a picture; said in any case, as nobody sees it otherwise.
    pub(super) fn detail(&mut self, text: &str) {
        self.details += 1;
        if self.details <= DETAILS {
            self.say(text);
        } else if self.details == DETAILS + 1 {
            self.say("more such lines are only counted; failures.jsonl has them all");
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Called every [`TICK`].
    pub(super) fn tick(&mut self, counts: &Counts, now: Instant) {
        let rate = self.rate.at(now, counts.made);
        if let Some(bar) = &self.bar {
            match counts.total {
                Some(total) => bar.set_length(total),
                None => bar.unset_length(),
            }
            let template = match counts.total {
                Some(_) => "{bar:32} {pos}/{len}  {msg}",
                None => "{spinner} {pos}  {msg}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_position(counts.settled());
            bar.set_message(describe(counts, rate, self.trouble.as_deref()));
            bar.tick();
        } else if self.lines {
            self.ticks += 1;
            if self.ticks.is_multiple_of(TICKS_A_LINE) {
                let of = counts.total.map_or(String::new(), |total| format!(" of {total}"));
                let text = describe(counts, rate, self.trouble.as_deref());
                eprintln!("{}{of} lines  {text}", counts.settled());
            }
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Rate {
    /// Notes how many there are now; lines a second.
    fn at(&mut self, now: Instant, made: u64) -> f64 {
        self.0.push_back((now, made));
        // The first one kept is the last that is older than the while, so that there always are two.
        while self
            .0
            .get(1)
            .is_some_and(|(moment, _)| now.saturating_duration_since(*moment) >= WHILE)
        {
            self.0.pop_front();
        }
        let Some((since, before)) = self.0.front() else {
            return 0.0;
        };
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        if seconds > 0.0 {
            made.saturating_sub(*before) as f64 / seconds
        } else {
            0.0
        }
    }
}

/// The rate, the time that is left at this rate, what failed, and what is in the way.
fn describe(counts: &Counts, rate: f64, trouble: Option<&str>) -> String {
    let mut text = format!("{rate:.1}/s");
    let rest = counts.total.map(|total| total.saturating_sub(counts.settled()));
    if let Some(rest) = rest.filter(|rest| *rest > 0 && rate > 0.0) {
        text += &format!("  {} left", span(rest as f64 / rate));
    }
    if counts.failed > 0 {
        text += &format!("  {} failed", counts.failed);
    }
    if let Some(trouble) = trouble {
        text += &format!("  ({trouble})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rate_is_that_of_the_last_while_and_the_rest_follows_from_it() {
        let begun = Instant::now();
        let mut rate = Rate(VecDeque::from([(begun, 0)]));
        for second in 1..=100_u64 {
            rate.at(begun + Duration::from_secs(second), 1000 * second.min(60));
        }
        let now = begun + Duration::from_secs(101);
        assert!(rate.at(now, 60_000) < 1.0, "nothing was made for 40 s");
        assert!(rate.0.len() < 40, "old notes are dropped: {}", rate.0.len());

        let counts = Counts {
            total: Some(1000),
            made: 300,
            made_before: 100,
            failed: 2,
        };
        let text = describe(&counts, 2.0, None);
        assert!(text.contains("2.0/s") && text.contains("2 failed"), "{text}");
        assert!(text.contains(&span(299.0)), "598 lines at 2 a second: {text}");
    }
}
