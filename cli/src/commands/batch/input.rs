//! The prompts' lines, one at a time, each of bounded length.

use std::io::{self, BufRead, Read as _, Seek, SeekFrom};

/// A line as it stands in the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Text {
    Line(Vec<u8>),
    /// Longer than allowed; its bytes were passed over.
    TooLong,
}

/// Reads lines; blank ones are counted and passed over.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    /// Bytes of a line.
    most: usize,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, most: usize) -> Self {
        Self {
            input,
            most,
            number: 0,
        }
    }

    /// The next line that is not blank, and its number, counted from 1.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Text)>> {
        loop {
            let mut line = Vec::new();
            let limit = u64::try_from(self.most).unwrap_or(u64::MAX).saturating_add(2);
            let read = (&mut self.input).take(limit).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let ended = line.last() == Some(&b'\n');
            while matches!(line.last(), Some(b'\n' | b'\r')) {
                line.pop();
            }
            if line.len() > self.most {
                if !ended {
                    self.input.skip_until(b'\n')?;
                }
                return Ok(Some((self.number, Text::TooLong)));
            }
            // A byte order mark, as some editors begin a file with.
            if self.number == 1 && line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some((self.number, Text::Line(line))));
            }
        }
    }
}

impl<R: BufRead + Seek> Lines<R> {
    /// Begins again.
    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.number = 0;
        self.input.seek(SeekFrom::Start(0)).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8], most: usize) -> Vec<(u64, Text)> {
        let mut lines = Lines::new(Cursor::new(text), most);
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    fn line(number: u64, text: &str) -> (u64, Text) {
        (number, Text::Line(text.as_bytes().to_vec()))
    }

    #[test]
    fn blank_lines_are_counted_and_a_last_line_needs_no_newline() {
        assert_eq!(all(b"a\r\n\n \t\nb", 9), [line(1, "a"), line(4, "b")]);
        assert_eq!(all(b"\xef\xbb\xbf{}\n", 9), [line(1, "{}")]);
        assert_eq!(all(b"", 9), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_one_is_whole() {
        let text = b"12345\n1234\n123456789012345678901234567890\nx\n123456";
        let expected = [
            (1, Text::TooLong),
            line(2, "1234"),
            (3, Text::TooLong),
            line(4, "x"),
            (5, Text::TooLong),
        ];
        assert_eq!(all(text, 4), expected);
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_text(parts in prop::collection::vec("[ab ]{0,6}", 0..20), most in 1_usize..8) {
            let text = parts.join("\n");
            let expected: Vec<(u64, Text)> = (1..)
                .zip(&parts)
                .filter(|(_, part)| part.len() > most || !part.trim().is_empty())
                .map(|(number, part)| match part.len() > most {
                    true => (number, Text::TooLong),
                    false => line(number, part),
                })
                .collect();
            prop_assert_eq!(all(text.as_bytes(), most), expected);
        }
    }
}
