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
        Output::Json => {
            let text = serde_json::to_string_pretty(value)
                .map_err(|error| Failure::Failed(format!("cannot write JSON: {error}")))?;
            line(&text)
        }
    }
}

/// Prints a line. A reader that went away (`| head`) is no failure.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes to stdout as it is.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::io("cannot write to stdout")(error))
        }
        _ => Ok(()),
    }
}
