//! WebDataset shards: tar files of a fixed number of lines each, so that a line's shard follows from its number. The pictures
//! of an unfinished shard are plain files; once all its lines are settled they become one tar, which is there whole or not
//! at all. A line that failed and is made later joins its shard: the tar is written anew from the old one and the rest.
//!
//! The same lines give the same bytes: members are in the order of the lines, and carry no times.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{folder::sync_folder, line::Line};

/// Counts the lines of each shard that is not settled yet. Pure.
#[derive(Debug)]
pub(super) struct Shards {
    size: u64,
    open: BTreeMap<u64, Shard>,
    /// The shard that the reading has come to; those before have all their lines.
    reading: u64,
}

#[derive(Debug, Default)]
struct Shard {
    pending: u64,
    /// What belongs into it, by line.
    members: BTreeMap<u64, Vec<String>>,
}

/// A shard all of whose lines are settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) number: u64,
    /// The names of its samples in order.
    pub(super) stems: Vec<String>,
}

/// What stands beside a picture.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sample<'a> {
    pub(super) id: &'a str,
    pub(super) line: u64,
    pub(super) index: u32,
    pub(super) prompt: &'a str,
    pub(super) seed: u64,
    pub(super) sha256: &'a str,
}

/// The file of a shard.
pub(super) fn file_name(shard: u64) -> String {
    format!("shard-{shard:06}.tar")
}

/// The names of a line's samples.
pub(super) fn stems(line: &Line) -> Vec<String> {
    (0..line.count()).map(|index| line.stem(index)).collect()
}

/// A name up to its first dot is a sample's key, so that an id must not have one.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    if id.contains('.') {
        return Err("id: must not have a dot, where WebDataset ends a sample's name".to_owned());
    }
    Ok(())
}

// === impl Shards ===

impl Shards {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size: size.max(1),
            open: BTreeMap::new(),
            reading: 0,
        }
    }

    pub(super) fn of(&self, line: u64) -> u64 {
        line.saturating_sub(1) / self.size
    }

    /// A line that is still to be settled. Lines come in order.
    pub(super) fn pending(&mut self, line: u64) {
        let shard = self.of(line);
        self.reading = shard;
        self.open.entry(shard).or_default().pending += 1;
    }

    /// A line whose pictures earlier runs made. Lines come in order.
    pub(super) fn done_before(&mut self, line: u64, stems: Vec<String>) {
        let shard = self.of(line);
        self.reading = shard;
        self.open.entry(shard).or_default().members.insert(line, stems);
    }

    /// A pending line is settled: with these samples, or none.
    pub(super) fn settled(&mut self, line: u64, stems: Vec<String>) {
        let shard = self.of(line);
        if let Some(shard) = self.open.get_mut(&shard) {
            shard.pending = shard.pending.saturating_sub(1);
            if !stems.is_empty() {
                shard.members.insert(line, stems);
            }
        }
    }

    /// Nothing more will be read.
    pub(super) fn all_read(&mut self) {
        self.reading = u64::MAX;
    }

    /// A shard that can be written now.
    pub(super) fn next(&mut self) -> Option<Settled> {
        let (number, _) = self
            .open
            .range(..self.reading)
            .find(|(_, shard)| shard.pending == 0)?;
        let number = *number;
        let shard = self.open.remove(&number)?;
        Some(Settled {
            number,
            stems: shard.members.into_values().flatten().collect(),
        })
    }

    /// Shards that are kept in mind.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.open.len()
    }
}

/// Writes a settled shard from its parts, and from the tar that is there, if any. Nothing to do when there are no parts.
///
/// # Errors
/// When a file cannot be read or written, or a sample is in neither.
pub(super) fn seal(
    folder: &Path,
    parts: &Path,
    scratch: &Path,
    extension: &str,
    shard: &Settled,
) -> io::Result<()> {
    let parts = parts_of(parts, shard.number);
    let target = folder.join(file_name(shard.number));
    if !parts.exists() {
        return if shard.stems.is_empty() || target.exists() {
            Ok(())
        } else {
            Err(missing(&target))
        };
    }
    let mut old = Old::open(&target)?;
    let mut tar = tar::Builder::new(BufWriter::new(tempfile::NamedTempFile::new_in(scratch)?));
    let mut seen = BTreeSet::new();
    for stem in &shard.stems {
        if !seen.insert(stem) {
            continue;
        }
        for ending in [extension, "json"] {
            let name = format!("{stem}.{ending}");
            let part = parts.join(&name);
            match File::open(&part) {
                Ok(mut file) => {
                    let size = file.metadata()?.len();
                    append(&mut tar, &name, size, &mut file)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let (size, mut data) = old.member(&name)?.ok_or_else(|| missing(&part))?;
                    append(&mut tar, &name, size, &mut data)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    let mut output = tar.into_inner()?;
    output.flush()?;
    let file = output.into_inner().map_err(io::IntoInnerError::into_error)?;
    crate::pictures::make_readable(file.as_file())?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    sync_folder(folder)?;
    fs::remove_dir_all(&parts)
}

/// Where the files of an unfinished shard are.
pub(super) fn parts_of(parts: &Path, shard: u64) -> PathBuf {
    parts.join(format!("{shard:06}"))
}

fn append(
    tar: &mut tar::Builder<impl io::Write>,
    name: &str,
    size: u64,
    data: &mut dyn Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, data)
}

fn missing(path: &Path) -> io::Error {
    let text = format!(
        "{} is gone, though results.jsonl names it: take the lines of its pictures out of results.jsonl to make them again",
        path.display()
    );
    io::Error::new(io::ErrorKind::NotFound, text)
}

/// A tar that is being replaced.
struct Old {
    file: Option<BufReader<File>>,
    /// Where each member's bytes are.
    members: HashMap<String, (u64, u64)>,
}

impl Old {
    fn open(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (file, members) = (None, HashMap::new());
                return Ok(Self { file, members });
            }
            Err(error) => return Err(error),
        };
        let mut archive = tar::Archive::new(BufReader::new(file));
        let mut members = HashMap::new();
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            members.insert(name, (entry.raw_file_position(), entry.size()));
        }
        let file = Some(archive.into_inner());
        Ok(Self { file, members })
    }

    fn member(&mut self, name: &str) -> io::Result<Option<(u64, impl Read)>> {
        let (Some(file), Some((position, size))) = (&mut self.file, self.members.get(name)) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(*position))?;
        Ok(Some((*size, file.take(*size))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settled(number: u64, stems: &[&str]) -> Settled {
        let stems = stems.iter().map(|stem| (*stem).to_owned()).collect();
        Settled { number, stems }
    }

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("scratch")).unwrap();
            Self { folder }
        }

        fn part(&self, shard: u64, stem: &str) {
            let parts = parts_of(&self.folder.path().join("parts"), shard);
            fs::create_dir_all(&parts).unwrap();
            fs::write(parts.join(format!("{stem}.png")), format!("picture {stem}")).unwrap();
            fs::write(parts.join(format!("{stem}.json")), "{}").unwrap();
        }

        fn seal(&self, shard: &Settled) -> io::Result<()> {
            let at = |name: &str| self.folder.path().join(name);
            seal(&at("."), &at("parts"), &at("scratch"), "png", shard)
        }

        fn bytes(&self, shard: u64) -> Vec<u8> {
            fs::read(self.folder.path().join(file_name(shard))).unwrap()
        }

        fn names(&self, shard: u64) -> Vec<String> {
            let bytes = self.bytes(shard);
            let mut archive = tar::Archive::new(&bytes[..]);
            let entries = archive.entries().unwrap();
            entries
                .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
                .collect()
        }
    }

    #[test]
    fn a_shard_is_the_same_bytes_whether_its_lines_came_together_or_one_later() {
        let (whole, late) = (Place::new(), Place::new());
        let long = "x".repeat(150);
        for stem in ["a", "b", &long] {
            whole.part(3, stem);
        }
        whole.seal(&settled(3, &["a", "b", &long])).unwrap();
        assert_eq!(whole.names(3).len(), 6, "{:?}", whole.names(3));

        late.part(3, "a");
        late.part(3, &long);
        late.seal(&settled(3, &["a", &long])).unwrap();
        assert_ne!(late.bytes(3), whole.bytes(3));
        late.part(3, "b");
        late.seal(&settled(3, &["a", "b", &long])).unwrap();
        assert_eq!(late.bytes(3), whole.bytes(3));
        assert!(!parts_of(&late.folder.path().join("parts"), 3).exists());
    }

    #[test]
    fn a_crash_after_the_tar_and_before_its_parts_were_removed_changes_nothing() {
        let place = Place::new();
        place.part(0, "a");
        place.seal(&settled(0, &["a"])).unwrap();
        let before = place.bytes(0);
        place.part(0, "a");
        place.seal(&settled(0, &["a"])).unwrap();
        assert_eq!(place.bytes(0), before);
        place.seal(&settled(0, &["a"])).unwrap();
        assert_eq!(place.bytes(0), before, "nothing to do");
    }

    #[test]
    fn a_sample_that_is_nowhere_is_an_error_and_leaves_no_tar() {
        let place = Place::new();
        place.part(0, "a");
        assert!(place.seal(&settled(0, &["a", "b"])).is_err());
        assert!(!place.folder.path().join(file_name(0)).exists());
        assert!(place.seal(&settled(1, &["c"])).is_err());
        place.seal(&settled(2, &[])).unwrap();
    }

    proptest! {
        /// Each shard comes once, with what was made of its lines, in order; and only open ones are kept in mind.
        #[test]
        fn every_shard_is_settled_once_with_all_its_lines(
            fates in prop::collection::vec(0_u8..4, 0..60), size in 1_u64..9, window in 1_usize..7,
        ) {
            let mut shards = Shards::new(size);
            let mut expected: BTreeMap<u64, Vec<String>> = BTreeMap::new();
            let (mut found, mut waiting) = (BTreeMap::new(), Vec::new());
            let collect = |shards: &mut Shards, found: &mut BTreeMap<u64, Vec<String>>| {
                while let Some(shard) = shards.next() {
                    assert_eq!(found.insert(shard.number, shard.stems), None, "twice");
                }
            };
            for (line, fate) in (1_u64..).zip(&fates) {
                let stems = vec![line.to_string()];
                let members = expected.entry((line - 1) / size).or_default();
                match fate {
                    0 => {
                        members.extend(stems.clone());
                        shards.done_before(line, stems);
                    }
                    fate => {
                        shards.pending(line);
                        if *fate == 1 {
                            members.extend(stems.clone());
                        }
                        waiting.push((line, if *fate == 1 { stems } else { Vec::new() }));
                    }
                }
                if waiting.len() >= window {
                    let (line, stems) = waiting.swap_remove(line as usize % waiting.len());
                    shards.settled(line, stems);
                }
                collect(&mut shards, &mut found);
                prop_assert!(shards.len() <= window + 1, "{} open", shards.len());
            }
            for (line, stems) in waiting {
                shards.settled(line, stems);
            }
            shards.all_read();
            collect(&mut shards, &mut found);
            prop_assert_eq!(found, expected);
        }
    }
}
