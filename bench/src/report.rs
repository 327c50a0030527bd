//! What was measured, for people (Markdown) and for programs (JSON).

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{machine::Machine, stats::Series};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) sections: Vec<Section>,
}

/// One question and its answer.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// For programs.
    pub(crate) name: String,
    pub(crate) title: String,
    /// How it was measured, and what the words mean.
    pub(crate) text: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) verdicts: Vec<Verdict>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A figure that something should reach. Ratios, and differences of medians: what holds on any machine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
    pub(crate) rounds: usize,
    /// A difference of times and no ratio: what ran beside this is in it.
    #[serde(default)]
    absolute: bool,
    pub(crate) target: Option<Target>,
}

/// A bound, and its good side.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// `median (least–greatest)`.
pub(crate) fn spread(series: &Series, digits: usize) -> String {
    let (least, greatest) = series.range();
    format!(
        "{:.digits$} ({least:.digits$}–{greatest:.digits$})",
        series.median()
    )
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = line(&self.header);
        let _ = writeln!(text, "|{}", "---|".repeat(self.header.len()));
        text.extend(self.rows.iter().map(|row| line(row)));
        text
    }
}

impl Section {
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("\n## {}\n\n{}\n", self.title, self.text);
        for table in &self.tables {
            let _ = write!(text, "\n{}", table.markdown());
        }
        text
    }
}

impl Verdict {
    pub(crate) fn at_least(what: impl Into<String>, series: &Series, target: f64) -> Self {
        Self::new(what, series, Some(Target::AtLeast(target)))
    }

    pub(crate) fn at_most(what: impl Into<String>, series: &Series, target: f64) -> Self {
        Self::new(what, series, Some(Target::AtMost(target)))
    }

    /// Without a figure to reach.
    pub(crate) fn reported(what: impl Into<String>, series: &Series) -> Self {
        Self::new(what, series, None)
    }

    fn new(what: impl Into<String>, series: &Series, target: Option<Target>) -> Self {
        let (least, greatest) = series.range();
        Self {
            what: what.into(),
            median: series.median(),
            least,
            greatest,
            rounds: series.len(),
            absolute: false,
            target,
        }
    }

    /// Says that it is a difference of times.
    pub(crate) fn absolute(self) -> Self {
        Self {
            absolute: true,
            ..self
        }
    }

    /// A difference of times and no ratio.
    pub(crate) fn is_absolute(&self) -> bool {
        self.absolute
    }

    /// `None` when nothing is asked of it.
    fn holds(&self) -> Option<bool> {
        self.target.map(|target| match target {
            Target::AtLeast(bound) => self.median >= bound,
            Target::AtMost(bound) => self.median <= bound,
        })
    }

    /// The median, and its spread where there is one.
    pub(crate) fn value(&self) -> String {
        match self.rounds {
            1 => number(self.median),
            rounds => format!(
                "{} ({}–{}, {rounds} rounds)",
                number(self.median),
                number(self.least),
                number(self.greatest)
            ),
        }
    }

    fn cells(&self, quiet: bool) -> [String; 4] {
        let target = match self.target {
            None => "reported".to_owned(),
            Some(Target::AtLeast(bound)) => format!("≥ {}", number(bound)),
            Some(Target::AtMost(bound)) => format!("≤ {}", number(bound)),
        };
        let holds = match self.holds() {
            None => "",
            Some(_) if self.absolute && !quiet => "not told: the machine was not quiet",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        [self.what.clone(), self.value(), target, holds.to_owned()]
    }
}

/// Three significant digits, or two decimals: whichever says more.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

impl Report {
    /// Into the files that are named; the Markdown to stdout if no file is.
    pub(crate) fn write(&self, markdown: Option<&Path>, json: Option<&Path>) -> anyhow::Result<()> {
        let write = |path: &Path, text: String| {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        if let Some(path) = json {
            write(path, serde_json::to_string_pretty(self)? + "\n")?;
        }
        match markdown {
            Some(path) => write(path, self.markdown()),
            None => {
                println!("{}", self.markdown());
                Ok(())
            }
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::from(
            "# Performance\n\nWritten by `make bench`; do not edit. [bench/README.md](../bench/README.md) says how each figure is \
             measured and what it means, [performance-notes.md](performance-notes.md) what falls short and why, and what longer \
             runs found. Figures are `median (least–greatest)` over rounds that took turns, so that what is \
             compared saw the same machine.\n\n",
        );
        text.push_str(&self.machine.markdown());
        let _ = writeln!(text, "\nCommand: `{}`\n", self.command);
        let verdicts: Vec<&Verdict> = self
            .sections
            .iter()
            .flat_map(|section| &section.verdicts)
            .collect();
        if !verdicts.is_empty() {
            text.push_str("## In short\n\n");
            let mut table = Table::new(&["", "median", "wanted", "reached"]);
            for verdict in verdicts {
                table.row(verdict.cells(self.machine.is_quiet()));
            }
            text.push_str(&table.markdown());
        }
        for section in &self.sections {
            text.push_str(&section.markdown());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        Series::new(values.iter().copied()).unwrap()
    }

    #[test]
    fn a_verdict_is_the_medians_and_shows_its_spread() {
        let verdict = Verdict::at_least("ratio", &series(&[0.9, 0.96, 1.2]), 0.95);
        assert_eq!(
            verdict.cells(true),
            ["ratio", "0.96 (0.90–1.20, 3 rounds)", "≥ 0.95", "yes"]
        );
        let verdict = Verdict::at_most("overhead, ms", &series(&[12.0]), 10.0).absolute();
        assert!(verdict.cells(false)[3].contains("not quiet"));
        assert_eq!(verdict.cells(true), ["overhead, ms", "12.0", "≤ 10.0", "**no**"]);
        assert_eq!(
            Verdict::reported("x", &series(&[1.0])).cells(true)[2..],
            ["reported", ""]
        );
    }

    #[test]
    fn a_table_has_a_cell_for_each_name() {
        let mut table = Table::new(&["a", "b"]);
        table.row(["1".to_owned(), spread(&series(&[1.0, 3.0]), 1)]);
        assert_eq!(table.markdown(), "| a | b |\n|---|---|\n| 1 | 2.0 (1.0–3.0) |\n");
    }
}
