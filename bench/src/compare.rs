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

/// Whether the median left the range of both runs on the wrong side. What has no bound has no wrong side, what was
/// measured once has no range, and a difference of times says nothing about another day or machine.
fn became_worse(before: &Verdict, now: &Verdict) -> bool {
    if before.rounds < 2 || now.rounds < 2 || now.is_absolute() {
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
    use crate::{report::Section, stats::Series};

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
        let share = |value| Verdict::at_most("a share", &Series::new([value, value]).unwrap(), 10.0);
        assert!(became_worse(&share(5.0), &share(9.0)));
        assert!(!became_worse(&share(5.0), &share(4.0)));
        assert!(
            !became_worse(&share(5.0).absolute(), &share(9.0).absolute()),
            "a time is of its day"
        );
    }

    #[test]
    fn a_worse_ratio_in_any_section_that_both_reports_have_fails() {
        let section = |name: &str, verdicts: Vec<Verdict>| Section {
            name: name.to_owned(),
            title: name.to_owned(),
            text: String::new(),
            tables: Vec::new(),
            verdicts,
        };
        let of = |what: &str, values: &[f64]| {
            Verdict::at_most(what, &Series::new(values.iter().copied()).unwrap(), 1.05)
        };
        let written = |sections: &[Section]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(
                file.path(),
                serde_json::json!({ "sections": sections }).to_string(),
            )
            .unwrap();
            file
        };
        let first = |values: &[f64]| section("saturation", vec![ratio(values)]);
        let memory = |values: &[f64]| section("memory", vec![of("growth", values)]);
        let before = written(&[first(&[0.97, 0.99]), memory(&[1.00, 1.01])]);
        let against = |sections: &[Section]| compare(before.path(), written(sections).path());
        assert!(against(&[first(&[0.96, 0.99]), memory(&[1.00, 1.01])]).is_ok());
        for worse in [
            [first(&[0.80, 0.85]), memory(&[1.00, 1.01])],
            [first(&[0.97, 0.99]), memory(&[1.20, 1.30])],
        ] {
            let error = against(&worse).unwrap_err().to_string();
            assert!(error.starts_with("1 of 2 figures became worse"), "{error}");
        }
        let another = section("later", vec![of("a figure of a later version", &[9.0, 9.0])]);
        assert!(
            against(&[first(&[0.97, 0.99]), another]).is_ok(),
            "what only one report has is compared with nothing"
        );
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
