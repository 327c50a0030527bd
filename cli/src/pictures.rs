//! Pictures on their way to files.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

use muse_proto::v1::{Image, ImageFormat};
use sha2::{Digest as _, Sha256};

use crate::{failure::Failure, output, view::words};

/// Where a command's pictures go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Stdout,
    /// `name.ext`, or `name-<k>.ext` for several.
    File(PathBuf),
}

/// Characters of a prompt in a file name.
const NAME_CHARACTERS: usize = 40;

impl Destination {
    /// `out` as given, or else a name made of `name` and the format.
    ///
    /// # Errors
    /// When the folder is missing, or several pictures were to go to stdout: found out before any work is done.
    pub(crate) fn new(
        out: Option<&Path>,
        name: &str,
        format: ImageFormat,
        count: usize,
    ) -> Result<Self, Failure> {
        let path = match out {
            Some(path) if path == Path::new("-") && count > 1 => {
                return Err(Failure::Usage(format!(
                    "{count} pictures cannot all go to stdout: name a file"
                )));
            }
            Some(path) if path == Path::new("-") => return Ok(Self::Stdout),
            Some(path) => path.to_owned(),
            None => PathBuf::from(format!("{name}.{}", words::extension(format))),
        };
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Failure::Usage(format!(
                "there is no folder {} to write to",
                folder.display()
            )));
        }
        if path.is_dir() {
            return Err(Failure::Usage(format!(
                "{} is a folder: name a file",
                path.display()
            )));
        }
        Ok(Self::File(path))
    }

    /// The file of picture `index` of `count`; `None` for stdout.
    pub(crate) fn file(&self, index: u32, count: usize) -> Option<PathBuf> {
        let Self::File(path) = self else { return None };
        if count <= 1 {
            return Some(path.clone());
        }
        let mut name = path.file_stem().unwrap_or_default().to_os_string();
        name.push(format!("-{index}"));
        if let Some(extension) = path.extension() {
            name.push(".");
            name.push(extension);
        }
        Some(path.with_file_name(name))
    }

    /// Writes a picture whole or not at all; returns its file.
    pub(crate) fn write(&self, index: u32, count: usize, data: &[u8]) -> Result<Option<PathBuf>, Failure> {
        let Some(path) = self.file(index, count) else {
            output::bytes(data)?;
            return Ok(None);
        };
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let what = || format!("cannot write {}", path.display());
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Failure::io(what()))?;
        file.write_all(data).map_err(Failure::io(what()))?;
        make_readable(file.as_file()).map_err(Failure::io(what()))?;
        file.persist(&path)
            .map_err(|error| Failure::io(what())(error.error))?;
        Ok(Some(path))
    }
}

/// A temporary file is its owner's alone; a picture is as any other new file under a usual umask.
pub(crate) fn make_readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

/// What was received is what the job made.
pub(crate) fn check(image: &Image) -> Result<(), Failure> {
    let promised = image
        .info
        .as_ref()
        .map(|info| info.sha256.as_str())
        .unwrap_or_default();
    let found = hex::encode(Sha256::digest(&image.data));
    if promised.eq_ignore_ascii_case(&found) {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "a picture was damaged on its way: its SHA-256 is {found}, not {promised}"
    )))
}

/// A file name from a prompt: its words in lower case, joined by dashes.
pub(crate) fn name_of(prompt: &str) -> String {
    let plain: String = prompt
        .to_lowercase()
        .chars()
        .map(|letter| if letter.is_alphanumeric() { letter } else { ' ' })
        .collect();
    let joined = plain.split_whitespace().collect::<Vec<_>>().join("-");
    let name: String = joined.chars().take(NAME_CHARACTERS).collect();
    let name = name.trim_end_matches('-');
    if name.is_empty() {
        "muse".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_picture_keeps_the_name_and_several_are_numbered() {
        let file = |path: &str| Destination::File(PathBuf::from(path));
        assert_eq!(file("a/cat.png").file(0, 1).unwrap(), Path::new("a/cat.png"));
        assert_eq!(file("a/cat.png").file(3, 4).unwrap(), Path::new("a/cat-3.png"));
        assert_eq!(file("cat").file(1, 2).unwrap(), Path::new("cat-1"));
        assert_eq!(
            file("a.b/my.cat.png").file(0, 2).unwrap(),
            Path::new("a.b/my.cat-0.png")
        );
        assert_eq!(Destination::Stdout.file(0, 1), None);
    }

    #[test]
    fn a_destination_that_cannot_work_is_refused_before_any_work() {
        let destination =
            |out: &str, count| Destination::new(Some(Path::new(out)), "x", ImageFormat::Png, count);
        assert_eq!(destination("-", 1).unwrap(), Destination::Stdout);
        assert_eq!(destination("-", 2).unwrap_err().code(), 2);
        assert!(
            destination("/no/such/folder/x.png", 1)
                .unwrap_err()
                .to_string()
                .contains("/no/such/folder")
        );
        assert!(
            destination("/tmp", 1)
                .unwrap_err()
                .to_string()
                .contains("name a file")
        );
        let named = Destination::new(None, "a-cat-7", ImageFormat::Jpeg, 1).unwrap();
        assert_eq!(named, Destination::File(PathBuf::from("a-cat-7.jpg")));
    }

    #[test]
    fn a_picture_is_written_whole_over_an_older_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        std::fs::write(&path, "older and longer").unwrap();
        let written = Destination::File(path.clone()).write(0, 1, b"new").unwrap();
        assert_eq!(written.as_deref(), Some(path.as_path()));
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn names_come_from_prompts() {
        assert_eq!(
            name_of("Two red apples, on a BLUE background!"),
            "two-red-apples-on-a-blue-background"
        );
        assert_eq!(name_of("../../etc/passwd"), "etc-passwd");
        assert_eq!(name_of("…"), "muse");
    }

    proptest! {
        #[test]
        fn a_name_is_always_one_short_path_component(prompt in ".*") {
            let name = name_of(&prompt);
            prop_assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'));
            prop_assert!(name.chars().count() <= NAME_CHARACTERS);
        }
    }
}
