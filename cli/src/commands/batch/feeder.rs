//! Reads the prompts ahead of the window, on a thread of its own, and says what is to be done with each line.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek},
    path::Path,
    thread,
};

use muse_proto::v1::GenerationRequest;
use tokio::sync::mpsc;

use super::{
    folder::{Folder, Settled, Standing},
    input::{Lines, Text},
    line::Line,
    names::Names,
    shards,
    window::Task,
};
use crate::failure::Failure;

/// Lines read ahead.
const AHEAD: usize = 64;

/// What the reading has come upon.
#[derive(Debug)]
pub(super) enum Fed {
    /// How many lines there will be, where the input can be read twice.
    Total(u64),
    /// A line to submit.
    Task(Box<Task>),
    /// A line that earlier runs made, and its samples, where shards are written.
    Done { line: u64, stems: Vec<String> },
    /// A line that failed earlier and is not to be tried again.
    FailedBefore,
    /// A line that cannot be submitted.
    Bad(BadLine),
    /// With `--strict`: there are bad lines, and nothing was submitted.
    Refused { bad: u64 },
    /// The input cannot be read.
    Broken(Failure),
}

/// See [`Fed::Bad`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadLine {
    pub(super) line: u64,
    pub(super) id: Option<String>,
    pub(super) fault: String,
}

/// How lines are read.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) template: GenerationRequest,
    pub(super) max_line_bytes: usize,
    pub(super) strict: bool,
    pub(super) retry_failed: bool,
    pub(super) sharded: bool,
}

/// Where lines come from.
pub(super) enum Source {
    /// Read twice: first to count, or to check.
    File(BufReader<File>),
    /// Read once.
    Stream(Box<dyn BufRead + Send>),
}

impl Source {
    /// Opens the prompts; `-` is stdin, which is put into a file first where it has to be read twice.
    pub(super) fn open(prompts: &Path, strict: bool, folder: &Folder) -> Result<Self, Failure> {
        let cannot = || Failure::io(format!("cannot read {}", prompts.display()));
        if prompts != Path::new("-") {
            let file = File::open(prompts).map_err(cannot())?;
            let kind = file.metadata().map_err(cannot())?.file_type();
            let file = BufReader::new(file);
            if kind.is_dir() {
                return Err(Failure::Usage(format!("{} is a folder", prompts.display())));
            }
            // A pipe by name (`<(…)`) can be read once.
            if kind.is_file() {
                return Ok(Self::File(file));
            }
            return Self::stream(Box::new(file), strict, folder);
        }
        Self::stream(Box::new(BufReader::new(io::stdin())), strict, folder)
    }

    fn stream(mut input: Box<dyn BufRead + Send>, strict: bool, folder: &Folder) -> Result<Self, Failure> {
        if !strict {
            return Ok(Self::Stream(input));
        }
        let mut spool = || {
            let mut file = tempfile::tempfile_in(folder.scratch())?;
            io::copy(&mut input, &mut file)?;
            file.rewind()?;
            Ok(file)
        };
        let file = spool().map_err(Failure::io("cannot keep the input for checking"))?;
        Ok(Self::File(BufReader::new(file)))
    }
}

/// Starts the thread; it ends after the last line, or when nobody listens. The input's end is the channel's.
pub(super) fn start(
    source: Source,
    settled: Settled,
    options: Options,
) -> Result<mpsc::Receiver<Fed>, Failure> {
    let (fed, receiver) = mpsc::channel(AHEAD);
    // Detached: a read of stdin cannot be cut short, and must not hold up the end of the process.
    thread::Builder::new()
        .name("batch-feeder".to_owned())
        .spawn(move || {
            let fault = match source {
                Source::File(file) => feed_file(file, &settled, &options, &fed),
                Source::Stream(stream) => {
                    let mut lines = Lines::new(stream, options.max_line_bytes);
                    feed(&mut lines, &settled, &options, &fed)
                }
            };
            if let Err(error) = fault {
                let _ = fed.blocking_send(Fed::Broken(Failure::io("cannot read the prompts")(error)));
            }
        })
        .map_err(Failure::io("cannot start a thread"))?;
    Ok(receiver)
}

fn feed_file(
    file: impl BufRead + Seek,
    settled: &Settled,
    options: &Options,
    fed: &mpsc::Sender<Fed>,
) -> io::Result<()> {
    let mut lines = Lines::new(file, options.max_line_bytes);
    let mut total = 0;
    if options.strict {
        let (mut names, mut bad) = (Names::default(), 0);
        while let Some((number, text)) = lines.next()? {
            total += 1;
            if let Err(line) = read(number, text, &mut names, settled, options) {
                bad += 1;
                if fed.blocking_send(Fed::Bad(line)).is_err() {
                    return Ok(());
                }
            }
        }
        if bad > 0 {
            let _ = fed.blocking_send(Fed::Refused { bad });
            return Ok(());
        }
    } else {
        while lines.next()?.is_some() {
            total += 1;
        }
    }
    lines.rewind()?;
    if fed.blocking_send(Fed::Total(total)).is_err() {
        return Ok(());
    }
    feed(&mut lines, settled, options, fed)
}

fn feed<R: BufRead>(
    lines: &mut Lines<R>,
    settled: &Settled,
    options: &Options,
    fed: &mpsc::Sender<Fed>,
) -> io::Result<()> {
    let mut names = Names::default();
    while let Some((number, text)) = lines.next()? {
        let found = match read(number, text, &mut names, settled, options) {
            Err(line) => Fed::Bad(line),
            Ok((line, Standing::Done)) => Fed::Done {
                line: line.number,
                stems: match options.sharded {
                    true => shards::stems(&line),
                    false => Vec::new(),
                },
            },
            Ok((_, Standing::Failed(_))) if !options.retry_failed => Fed::FailedBefore,
            Ok((line, Standing::Failed(round))) => {
                Fed::Task(Box::new(Task::new(line, round.saturating_add(1), true)))
            }
            Ok((line, Standing::New | Standing::Changed)) => {
                let failed_before = settled.has_failed(&line.id);
                Fed::Task(Box::new(Task::new(line, 0, failed_before)))
            }
        };
        if fed.blocking_send(found).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads one line, and gives its names away.
fn read(
    number: u64,
    text: Text,
    names: &mut Names,
    settled: &Settled,
    options: &Options,
) -> Result<(Line, Standing), BadLine> {
    let bad = |id: Option<&str>, fault: String| BadLine {
        line: number,
        id: id.map(str::to_owned),
        fault,
    };
    let text = match text {
        Text::Line(text) => text,
        Text::TooLong => {
            return Err(bad(
                None,
                format!(
                    "has more than {} bytes (--max-line-bytes)",
                    options.max_line_bytes
                ),
            ));
        }
    };
    let line = Line::parse(number, &text, &options.template).map_err(|fault| bad(None, fault))?;
    let id = line.id.as_str();
    if options.sharded {
        shards::check_id(id).map_err(|fault| bad(Some(id), fault))?;
    }
    if !names.insert(id) {
        let fault = "id: an earlier line has this id, or a picture of this name".to_owned();
        return Err(bad(Some(id), fault));
    }
    if line.count() > 1 {
        // All of them, so that a later line is measured against all of them too.
        let mut taken = None;
        for stem in (0..line.count()).map(|index| line.stem(index)) {
            if !names.insert(&stem) {
                taken = Some(stem);
            }
        }
        if let Some(stem) = taken {
            let fault = format!("id: picture {stem} would have the name of an earlier line's");
            return Err(bad(Some(id), fault));
        }
    }
    let standing = settled.standing(&line);
    if standing == Standing::Changed {
        let fault = "was done before as another request (the line has changed, or an option): give it another id, or \
                     name another folder"
            .to_owned();
        return Err(bad(Some(id), fault));
    }
    Ok((line, standing))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn options() -> Options {
        Options {
            template: GenerationRequest::default(),
            max_line_bytes: 1000,
            strict: false,
            retry_failed: false,
            sharded: false,
        }
    }

    async fn all(text: &str, options: Options) -> Vec<Fed> {
        let (fed, mut receiver) = mpsc::channel(AHEAD);
        let input = Cursor::new(text.to_owned().into_bytes());
        let thread = thread::spawn(move || feed_file(input, &Settled::default(), &options, &fed));
        let mut found = Vec::new();
        while let Some(next) = receiver.recv().await {
            found.push(next);
        }
        thread.join().unwrap().unwrap();
        found
    }

    fn bad(found: &[Fed]) -> Vec<(u64, &str)> {
        let bad = found.iter().filter_map(|fed| match fed {
            Fed::Bad(line) => Some((line.line, line.fault.as_str())),
            _ => None,
        });
        bad.collect()
    }

    #[tokio::test]
    async fn ids_that_collide_are_refused_with_their_line() {
        let text = r#"{"prompt": "x", "id": "a", "count": 3}
            {"prompt": "x", "id": "a-1"}
            {"prompt": "x", "id": "a"}
            {"prompt": "x", "id": "5"}
            {"prompt": "x"}
            {"prompt": "x", "id": "b-0"}
            {"prompt": "x", "id": "b", "count": 2}"#;
        let found = all(text, options()).await;
        let lines: Vec<u64> = bad(&found).iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 5, 7], "{found:?}");
        assert!(matches!(found[0], Fed::Total(7)), "{found:?}");
    }

    #[tokio::test]
    async fn a_bad_line_stops_nothing_but_a_strict_run() {
        let text = "{\"prompt\": \"x\"}\nnonsense\n\n{\"prompt\": \"y\"}\n";
        let found = all(text, options()).await;
        let tasks = found.iter().filter(|fed| matches!(fed, Fed::Task(_))).count();
        assert_eq!((bad(&found).len(), tasks), (1, 2), "{found:?}");

        let strict = Options {
            strict: true,
            ..options()
        };
        let found = all(text, strict.clone()).await;
        assert!(
            matches!(
                found[..],
                [Fed::Bad(BadLine { line: 2, .. }), Fed::Refused { bad: 1 }]
            ),
            "{found:?}"
        );
        let found = all("{\"prompt\": \"x\"}", strict).await;
        assert!(matches!(found[..], [Fed::Total(1), Fed::Task(_)]), "{found:?}");
    }

    #[tokio::test]
    async fn a_samples_key_ends_at_a_dot_so_that_an_id_has_none() {
        let sharded = Options {
            sharded: true,
            ..options()
        };
        let found = all(r#"{"prompt": "x", "id": "a.b"}"#, sharded).await;
        assert_eq!(bad(&found).len(), 1, "{found:?}");
        assert!(bad(&all(r#"{"prompt": "x", "id": "a.b"}"#, options()).await).is_empty());
    }
}
