//! The protocol between gateways and Redis (RESP 2), as far as one who listens in needs it. Pure.

use bytes::{Bytes, BytesMut};

/// Most nested arrays that a reply may have; scripts give three.
const DEPTH: usize = 16;

/// A value of a reply, or an argument of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `+OK`
    Simple(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3…`; `None` is null.
    Bulk(Option<Bytes>),
    /// `*2…`; `None` is null.
    Array(Option<Vec<Value>>),
}

/// What was heard is no RESP 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbled(pub String);

// === impl Value ===

impl Value {
    /// A simple string's or a bulk's text; empty for anything else.
    pub fn text(&self) -> String {
        match self {
            Self::Simple(text) => text.clone(),
            Self::Bulk(Some(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Integer(number) => number.to_string(),
            _ => String::new(),
        }
    }

    /// An array's items; none for anything else.
    pub fn items(&self) -> &[Self] {
        match self {
            Self::Array(Some(items)) => items,
            _ => &[],
        }
    }

    /// The item's text, or an empty one.
    pub fn at(&self, index: usize) -> String {
        self.items().get(index).map(Self::text).unwrap_or_default()
    }
}

/// Takes the first whole value off the buffer: its bytes as they came, and what they mean. `None`: more is to come.
///
/// # Errors
/// [`Garbled`].
pub fn take(buffer: &mut BytesMut) -> Result<Option<(Bytes, Value)>, Garbled> {
    let Some(length) = length(buffer, 0, DEPTH)? else {
        return Ok(None);
    };
    let raw = buffer.split_to(length).freeze();
    let mut at = 0;
    let value = value(&raw, &mut at)?;
    Ok(Some((raw, value)))
}

/// A command as it is sent.
pub fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text += &format!("${}\r\n{word}\r\n", word.len());
    }
    text.into_bytes()
}

/// The line from `at`, and where the next begins.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((rest.get(..end)?, at + end + 2))
}

fn number(line: &[u8]) -> Result<i64, Garbled> {
    let text = std::str::from_utf8(line.get(1..).unwrap_or_default()).unwrap_or_default();
    text.parse()
        .map_err(|_| Garbled(String::from_utf8_lossy(line).into_owned()))
}

/// Where the value that begins at `at` ends; `None`: not all of it is there.
fn length(bytes: &[u8], at: usize, depth: usize) -> Result<Option<usize>, Garbled> {
    let Some((line, mut next)) = line(bytes, at) else {
        return Ok(None);
    };
    match line.first() {
        Some(b'+' | b'-' | b':') => Ok(Some(next)),
        Some(b'$') => {
            let Ok(size) = usize::try_from(number(line)?) else {
                return Ok(Some(next));
            };
            let end = next.saturating_add(size).saturating_add(2);
            Ok((end <= bytes.len()).then_some(end))
        }
        Some(b'*') if depth > 0 => {
            for _ in 0..number(line)?.max(0) {
                match length(bytes, next, depth - 1)? {
                    Some(end) => next = end,
                    None => return Ok(None),
                }
            }
            Ok(Some(next))
        }
        _ => Err(Garbled(String::from_utf8_lossy(line).into_owned())),
    }
}

/// The value at `at`, which is whole.
fn value(raw: &Bytes, at: &mut usize) -> Result<Value, Garbled> {
    let short = || Garbled("a value is cut".to_owned());
    let (line, next) = line(raw, *at).ok_or_else(short)?;
    *at = next;
    let text = || String::from_utf8_lossy(line.get(1..).unwrap_or_default()).into_owned();
    Ok(match line.first() {
        Some(b'+') => Value::Simple(text()),
        Some(b'-') => Value::Error(text()),
        Some(b':') => Value::Integer(number(line)?),
        Some(b'$') => match usize::try_from(number(line)?) {
            Err(_) => Value::Bulk(None),
            Ok(size) => {
                let end = next + size;
                *at = end + 2;
                if *at > raw.len() {
                    return Err(short());
                }
                Value::Bulk(Some(raw.slice(next..end)))
            }
        },
        Some(b'*') => match usize::try_from(number(line)?) {
            Err(_) => Value::Array(None),
            Ok(count) => {
                let mut items = Vec::new();
                for _ in 0..count {
                    items.push(value(raw, at)?);
                }
                Value::Array(Some(items))
            }
        },
        _ => return Err(short()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(Some(Bytes::copy_from_slice(text.as_bytes())))
    }

    #[test]
    fn values_are_taken_whole_and_in_order_however_they_arrive() {
        let whole = b"*3\r\n$3\r\nabc\r\n:-7\r\n*1\r\n$-1\r\n+OK\r\n-ERR no\r\n*-1\r\n$2\r\n\r\n\r\n";
        let expected = [
            Value::Array(Some(vec![
                bulk("abc"),
                Value::Integer(-7),
                Value::Array(Some(vec![Value::Bulk(None)])),
            ])),
            Value::Simple("OK".to_owned()),
            Value::Error("ERR no".to_owned()),
            Value::Array(None),
            bulk("\r\n"),
        ];
        for piece in [1, 2, 7, whole.len()] {
            let (mut buffer, mut taken, mut raw) = (BytesMut::new(), Vec::new(), Vec::new());
            for part in whole.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Some((bytes, value)) = take(&mut buffer).unwrap() {
                    raw.extend_from_slice(&bytes);
                    taken.push(value);
                }
            }
            assert_eq!(taken, expected, "in pieces of {piece}");
            assert_eq!(raw, whole);
        }
    }

    #[test]
    fn a_command_reads_as_what_it_was_made_of() {
        let mut buffer = BytesMut::from(&command(&["CONFIG", "SET", "x", ""])[..]);
        let (_, value) = take(&mut buffer).unwrap().unwrap();
        let words: Vec<String> = value.items().iter().map(Value::text).collect();
        assert_eq!(words, ["CONFIG", "SET", "x", ""]);
        assert_eq!((value.at(0), value.at(9)), ("CONFIG".to_owned(), String::new()));
    }

    proptest! {
        #[test]
        fn nothing_that_is_heard_makes_it_fail(bytes: Vec<u8>) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }
    }
}
