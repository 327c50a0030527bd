//! The inner loops, as criterion measured them last: `cargo bench -p muse-bench`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::report::{Section, Table};

/// `<benchmark>/new/estimates.json`: nanoseconds.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// Every benchmark below `folder`, criterion's own.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Section> {
    let mut found = BTreeMap::new();
    collect(folder, folder, &mut found).with_context(|| format!("cannot read {}", folder.display()))?;
    ensure!(
        !found.is_empty(),
        "{} has no estimates: run `cargo bench --package muse-bench`",
        folder.display()
    );
    let mut table = Table::new(&["", "median, µs", "95 % of it between"]);
    for (name, median) in found {
        let microseconds = |nanoseconds: f64| format!("{:.2}", nanoseconds / 1e3);
        let interval = &median.confidence_interval;
        table.row([
            name,
            microseconds(median.point_estimate),
            format!(
                "{} and {}",
                microseconds(interval.lower_bound),
                microseconds(interval.upper_bound)
            ),
        ]);
    }
    Ok(Section {
        name: "inner_loops".to_owned(),
        title: "Inner loops".to_owned(),
        text: "By criterion (`cargo bench --package muse-bench`), on one thread, without a model.".to_owned(),
        tables: vec![table],
        verdicts: Vec::new(),
    })
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Estimate>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let estimates = path.join("new/estimates.json");
        if estimates.is_file() {
            let text = fs::read_to_string(&estimates)?;
            let estimates: Estimates = serde_json::from_str(&text)
                .with_context(|| format!("{} is not criterion's", estimates.display()))?;
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .replace('_', " ");
            found.insert(name, estimates.median);
        } else {
            collect(root, &path, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_benchmark_below_the_folder_is_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let estimate = r#"{"median": {"point_estimate": 1500.0,
            "confidence_interval": {"confidence_level": 0.95, "lower_bound": 1400.0, "upper_bound": 1600.0}}}"#;
        for name in ["step/demo_base", "png"] {
            let new = folder.path().join(name).join("new");
            fs::create_dir_all(&new).unwrap();
            fs::write(new.join("estimates.json"), estimate).unwrap();
        }
        let section = serde_json::to_value(read(folder.path()).unwrap()).unwrap();
        assert_eq!(
            section["tables"][0]["rows"],
            serde_json::json!([
                ["png", "1.50", "1.40 and 1.60"],
                ["step/demo base", "1.50", "1.40 and 1.60"]
            ])
        );
        assert!(
            read(&folder.path().join("png/new")).is_err(),
            "nothing there is an error"
        );
    }
}
