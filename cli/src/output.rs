//! What goes to stdout.

use std::io::{self, ErrorKind, Write as _};

use serde::Serialize;

use crate::{arguments::Output, failure::Failure};

/// Prints a result: `table` for people, or `value` as JSON for machines.
pub(crate) fn print(
    output: Output,
    value: &impl Serialize,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match output {
        Output::Table => line(&table()),
        Output::Json => line(&json(value, true)?),
    }
}

/// Prints a line. A reader that went away (`| head`) is no failure.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes to stdout as it is.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    write(bytes).map(|_| ())
}

/// As [`bytes`], for what has no end of its own: false when the reader went away, and there is nobody to go on for.
pub(crate) fn write(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::io("cannot write to stdout")(error)),
    }
}

/// One JSON document, on lines of its own or on a single one.
pub(crate) fn json(value: &impl Serialize, pretty: bool) -> Result<String, Failure> {
    let text = if pretty {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    text.map_err(|error| Failure::Failed(format!("cannot write JSON: {error}")))
}
