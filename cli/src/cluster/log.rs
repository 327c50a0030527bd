//! A part's log file.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// A log's end that is read for its last lines, in bytes.
const TAIL_BYTES: u64 = 64 * 1024;

/// The last `lines` lines of a file; what went wrong in reading it, if it cannot be read.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    match read_end(path) {
        Ok(text) if text.trim().is_empty() => "(its log is empty)".to_owned(),
        Ok(text) => {
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(its log {} cannot be read: {error})", path.display()),
    }
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_or_says_why_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.log");
        assert!(tail(&path, 2).contains("cannot be read"));
        std::fs::write(&path, "").unwrap();
        assert_eq!(tail(&path, 2), "(its log is empty)");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&path, 2), "two\nthree");
        assert_eq!(tail(&path, 9), "one\ntwo\nthree");
    }
}
