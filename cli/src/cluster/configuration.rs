//! The configuration file of a part: what the cluster needs it to be, and the user's overrides over that.

use std::{fs, io, path::PathBuf};

use toml::{Table, Value};

use super::{options::Override, state::Running};

/// A service's configuration file.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    path: PathBuf,
    table: Table,
}

impl Configuration {
    /// `table` with those of `overrides` that are meant for one of `roles`.
    pub(super) fn new(path: PathBuf, mut table: Table, overrides: &[Override], roles: &[&str]) -> Self {
        for item in overrides
            .iter()
            .filter(|item| roles.contains(&item.role.as_str()))
        {
            set(&mut table, &item.path, item.value.clone());
        }
        Self { path, table }
    }

    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub(super) fn write(&self) -> io::Result<()> {
        fs::write(&self.path, self.table.to_string())
    }

    /// From now on the part takes the ports that it got at its first start: others know it by them.
    pub(super) fn pin(&mut self, running: &Running) {
        for (section, address) in [("grpc", running.grpc), ("ops", running.ops)] {
            if let Some(address) = address {
                set(
                    &mut self.table,
                    &[section.to_owned(), "listen".to_owned()],
                    Value::String(address.to_string()),
                );
            }
        }
    }
}

/// Sets a value at a path, making tables on the way; what is in the way and no table is replaced.
fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let entry = table
                .entry(section.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            if let Some(inner) = entry.as_table_mut() {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_reach_their_role_alone_and_ports_are_kept_after_the_first_start() {
        let overrides: Vec<Override> = [
            "worker.batcher.row_budget=4",
            "gateway.queue.lease_ms=1000",
            "base.stage=x",
        ]
        .map(|text| text.parse().unwrap())
        .into();
        let table = "stage = \"base\"\n[ops]\nlisten = \"127.0.0.1:0\""
            .parse()
            .unwrap();
        let mut configuration = Configuration::new(
            PathBuf::from("/nowhere"),
            table,
            &overrides,
            &["worker", "superres"],
        );
        let ops = Some("127.0.0.1:4321".parse().unwrap());
        configuration.pin(&Running {
            pid: 1,
            grpc: None,
            ops,
        });
        let expected: Table =
            "stage = \"base\"\n[ops]\nlisten = \"127.0.0.1:4321\"\n[batcher]\nrow_budget = 4"
                .parse()
                .unwrap();
        assert_eq!(configuration.table, expected);
    }
}
