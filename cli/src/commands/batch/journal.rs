//! A file of JSON lines that only grows, and survives a crash in the middle of a line.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// Open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens or makes it. A last line without its newline was cut by a crash: it is taken away, for what it told was not
    /// yet promised to anybody.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)?;
        let whole = whole_bytes(&mut file)?;
        file.set_len(whole)?;
        file.sync_all()?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Appends entries, which are on disk when this returns.
    pub(super) fn append<T: Serialize>(&mut self, entries: &[T]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut text, entry)?;
            text.push(b'\n');
        }
        self.file.write_all(&text)?;
        self.file.sync_data()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the last newline ends.
fn whole_bytes(file: &mut File) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = Vec::new();
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(begin))?;
        block.clear();
        (&mut *file).take(end - begin).read_to_end(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// Reads every whole line in order; a file that is not there has none.
pub(super) fn read<T: DeserializeOwned>(path: &Path, mut take: impl FnMut(T, &[u8])) -> io::Result<()> {
    let mut input = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        input.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        let entry = serde_json::from_slice(&line).map_err(|error| {
            let text = format!("line {number} is not one that musectl wrote: {error}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        take(entry, &line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(path: &Path) -> Vec<u32> {
        let mut numbers = Vec::new();
        read(path, |number, _| numbers.push(number)).unwrap();
        numbers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on(
            before in prop::collection::vec(0_u32..100_000, 0..20), cut in 0.0..1.0_f64, after: Vec<u32>,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.jsonl");
            Journal::open(&path).unwrap().append(&before).unwrap();
            let whole = std::fs::read(&path).unwrap();
            let kept = (whole.len() as f64 * cut) as usize;
            std::fs::write(&path, &whole[..kept]).unwrap();
            let survivors = whole[..kept].iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(numbers(&path), &before[..survivors]);

            Journal::open(&path).unwrap().append(&after).unwrap();
            let expected: Vec<u32> = before[..survivors].iter().chain(&after).copied().collect();
            prop_assert_eq!(numbers(&path), expected);
        }
    }

    #[test]
    fn a_line_that_is_none_of_ours_is_named_and_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, "1\noops\n3\n").unwrap();
        let error = read(&path, |_: u32, _| {}).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_long_torn_line_is_taken_away_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, format!("1\n{}", "2".repeat(200_000))).unwrap();
        Journal::open(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"1\n");
    }
}
