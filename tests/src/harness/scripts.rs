//! The queue's scripts as the wire shows them: which script a text is, and what its calls and replies mean. Pure, but for
//! the reading of the scripts' own files.

use std::{collections::BTreeMap, fs};

use super::{history::Event, resp::Value};
use crate::repository;

/// Where the scripts are.
const FOLDER: &str = "gateway/src/queue/scripts";
/// Stands before others and is none itself.
const SHARED: &str = "common";

/// Every script by its first line, which is a comment of its own.
#[derive(Clone, Debug)]
pub struct Scripts(BTreeMap<String, String>);

/// A call of a script: its arguments without the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub script: String,
    pub arguments: Vec<String>,
}

impl Scripts {
    /// From the sources.
    pub fn read() -> Self {
        let folder = repository().join(FOLDER);
        let mut scripts = BTreeMap::new();
        for entry in fs::read_dir(&folder).expect("the scripts' folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name == SHARED || path.extension().is_none_or(|extension| extension != "lua") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a script");
            let first = text.lines().next().unwrap_or_default().to_owned();
            let twin = scripts.insert(first, name.clone());
            assert_eq!(twin, None, "{name} begins like another script");
        }
        Self(scripts)
    }

    /// All names.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.values().cloned().collect();
        names.sort();
        names
    }

    /// The name of a script that is loaded.
    pub fn name_of(&self, text: &str) -> Option<&str> {
        text.lines().find_map(|line| self.0.get(line)).map(String::as_str)
    }
}

/// What a call that was answered means for the history. `sent`: when the call was.
pub fn events(call: &Call, reply: &Value, sent: u64) -> Vec<Event> {
    let argument = |index: usize| call.arguments.get(index).cloned().unwrap_or_default();
    let (job, nonce) = (argument(0), argument(1));
    match call.script.as_str() {
        "claim" => reply
            .items()
            .iter()
            .map(|grant| Event::Granted {
                sent,
                job: grant.at(0),
                nonce: grant.at(1),
                stage: argument(1),
                owner: argument(2),
                tenant: grant.at(9),
            })
            .collect(),
        // Several results a call, each with its answer.
        "complete" => call
            .arguments
            .chunks_exact(8)
            .zip(reply.items())
            .map(|(result, answer)| Event::Completed {
                sent,
                job: result[0].clone(),
                nonce: result[1].clone(),
                stage: result[2].clone(),
                digest: result[7].clone(),
                outcome: answer.at(0),
                state: answer.at(1),
                other: answer.at(3),
            })
            .collect(),
        "fail" | "release" if ["accepted", "duplicate"].contains(&reply.at(0).as_str()) => {
            vec![Event::GivenUp {
                sent,
                job,
                nonce,
                again: reply.at(0) == "duplicate",
                state: reply.at(1),
            }]
        }
        "cancel" if reply.text() == "cancelled" => vec![Event::TakenBack {
            sent,
            job,
            state: "cancelled".to_owned(),
        }],
        "requeue" if reply.text() == "queued" => vec![Event::TakenBack {
            sent,
            job,
            state: "queued".to_owned(),
        }],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_is_known_by_its_text() {
        let scripts = Scripts::read();
        assert!(scripts.names().len() >= 18, "{:?}", scripts.names());
        let folder = repository().join(FOLDER);
        let common = fs::read_to_string(folder.join("common.lua")).unwrap();
        for name in scripts.names() {
            let own = fs::read_to_string(folder.join(format!("{name}.lua"))).unwrap();
            assert_eq!(
                scripts.name_of(&format!("#!lua flags=\n{common}\n{own}")),
                Some(name.as_str())
            );
        }
        assert_eq!(scripts.name_of(&common), None);
    }
}
