//! A regression check between two reports: it compares ratios and never times, so the two may be from different days or
//! machines.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::report::{Table, Target, Verdict};

/// Of a report's JSON, what is compared.
#[derive(Deserialize)]
struct Reported {
    sections: Vec<Verdicts>,
}

#[derive(Deserialize)]
struct Verdicts {
    verdicts: Vec<Verdict>,
}

/// Prints both reports' verdicts side by side. An error when one that both have became worse by more than its own spread.
pub(crate) fn compare(old: &Path, new: &Path) -> anyhow::Result<()> {
    let (old, new) = (read(old)?, read(new)?);
    let mut table = Table::new(&["", "before", "now", ""]);
    let mut worse = 0;
    for (what, now) in &new {
        let Some(before) = old.get(what) else {
            continue;
        };
        let fell = became_worse(before, now);
        worse += usize::from(fell);
        table.row([
            what.clone(),
            before.value(),
            now.value(),
            if fell { "**worse**" } else { "" }.to_owned(),
        ]);
    }
    println!("{}", table.markdown());
    match worse {
        0 => Ok(()),
        worse => bail!(
            "{worse} of {} figures became worse by more than their spread",
            new.len()
        ),
    }
}

/// Whether the median left the range of both runs on the wrong side. What has no bound has no wrong side, and what was
/// measured once has no range.
fn became_worse(before: &Verdict, now: &Verdict) -> bool {
    if before.rounds < 2 || now.rounds < 2 {
        return false;
    }
    match now.target {
        None => false,
        Some(Target::AtLeast(_)) => now.median < before.least && now.greatest < before.median,
        Some(Target::AtMost(_)) => now.median > before.greatest && now.least > before.median,
    }
}

fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Verdict>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: Reported = serde_json::from_str(&text)
        .with_context(|| format!("{} is not written by muse-bench --json", path.display()))?;
    let verdicts = report.sections.into_iter().flat_map(|section| section.verdicts);
    Ok(verdicts.map(|verdict| (verdict.what.clone(), verdict)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Series;

    fn ratio(values: &[f64]) -> Verdict {
        Verdict::at_least("a ratio", &Series::new(values.iter().copied()).unwrap(), 0.95)
    }

    #[test]
    fn only_a_fall_beyond_the_spread_of_both_runs_is_a_regression() {
        let before = ratio(&[0.95, 0.97, 0.99]);
        assert!(became_worse(&before, &ratio(&[0.80, 0.85, 0.90])));
        assert!(
            !became_worse(&before, &ratio(&[0.90, 0.96, 0.99])),
            "within the spread"
        );
        assert!(
            !became_worse(&before, &ratio(&[0.80, 0.90, 0.99])),
            "a noisy run shows nothing"
        );
        assert!(!became_worse(&before, &ratio(&[0.1])), "one round shows nothing");
        assert!(!became_worse(&before, &ratio(&[1.2, 1.3])));
        let time = |value| Verdict::at_most("overhead, ms", &Series::new([value, value]).unwrap(), 10.0);
        assert!(became_worse(&time(5.0), &time(9.0)));
        assert!(!became_worse(&time(5.0), &time(4.0)));
    }

    #[test]
    fn a_report_is_read_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let report = serde_json::json!({"sections": [{"verdicts": [ratio(&[1.0, 2.0])]}]});
        fs::write(file.path(), report.to_string()).unwrap();
        let read = read(file.path()).unwrap();
        assert_eq!(read["a ratio"].median, 1.5);
        compare(file.path(), file.path()).unwrap();
        fs::write(file.path(), "{}").unwrap();
        assert!(compare(file.path(), file.path()).is_err());
    }
}
