//! The little of ONNX's file format that a bundle's check needs: which external files a graph's weights lie in.
//!
//! ONNX Runtime would open such a file without asking the manifest, so its digest would go unchecked. Weights that lie in the
//! file itself are skipped, not read: a file may have 2 GB of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _};
use std::path::Path;

/// Messages nested deeper than this are no graph that anybody made.
const DEPTH_LIMIT: u32 = 100;
/// Bytes of the key and of the value of an entry; a value is a path.
const TEXT_LIMIT: u64 = 4096;

/// Why an ONNX file's references could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum OnnxError {
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("is not an ONNX file: {0}")]
    Malformed(&'static str),
    #[error("is not an ONNX file: it holds no graph")]
    NoGraph,
}

/// The `location` of every external tensor of the ONNX file at `path`, each once.
pub(super) fn external_data(path: &Path) -> Result<BTreeSet<String>, OnnxError> {
    let file = File::open(path).map_err(OnnxError::Unreadable)?;
    let length = file.metadata().map_err(OnnxError::Unreadable)?.len();
    let mut scan = Scan {
        reader: BufReader::new(file),
        position: 0,
        has_graph: false,
        locations: BTreeSet::new(),
    };
    scan.message(Message::Model, length, DEPTH_LIMIT)?;
    if scan.has_graph {
        Ok(scan.locations)
    } else {
        Err(OnnxError::NoGraph)
    }
}

/// The messages of onnx.proto on the way to a tensor's external data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
    /// StringStringEntryProto.
    Entry,
}

// === impl Message ===

impl Message {
    /// What field `number` holds, if it leads on. The numbers are those of onnx.proto.
    fn field(self, number: u64) -> Option<Message> {
        Some(match (self, number) {
            (Message::Model, 7) => Message::Graph,
            (Message::Model, 25) => Message::Function,
            (Message::Graph, 1) | (Message::Function, 7) => Message::Node,
            (Message::Graph, 5) => Message::Tensor,
            (Message::Graph, 15) => Message::SparseTensor,
            (Message::Node, 5) => Message::Attribute,
            (Message::Attribute, 5 | 10) => Message::Tensor,
            (Message::Attribute, 6 | 11) => Message::Graph,
            (Message::Attribute, 22 | 23) => Message::SparseTensor,
            (Message::SparseTensor, 1 | 2) => Message::Tensor,
            (Message::Tensor, 13) => Message::Entry,
            _ => return None,
        })
    }
}

/// A walk through the file from its beginning to its end.
struct Scan {
    reader: BufReader<File>,
    position: u64,
    has_graph: bool,
    locations: BTreeSet<String>,
}

// === impl Scan ===

impl Scan {
    /// Reads a message that ends at `end`.
    fn message(&mut self, message: Message, end: u64, depth: u32) -> Result<(), OnnxError> {
        let depth = depth
            .checked_sub(1)
            .ok_or(OnnxError::Malformed("it is nested too deeply"))?;
        self.has_graph |= message == Message::Graph;
        if message == Message::Entry {
            return self.entry(end);
        }
        while self.position < end {
            let (number, length) = self.field(end)?;
            match message.field(number) {
                Some(inner) => self.message(inner, self.position + length, depth)?,
                None => self.skip(length)?,
            }
        }
        Ok(())
    }

    /// An entry of a tensor's external data: key 1, value 2.
    fn entry(&mut self, end: u64) -> Result<(), OnnxError> {
        let (mut key, mut value) = (String::new(), String::new());
        while self.position < end {
            match self.field(end)? {
                (1, length) => key = self.text(length)?,
                (2, length) => value = self.text(length)?,
                (_, length) => self.skip(length)?,
            }
        }
        if key == "location" {
            self.locations.insert(value);
        }
        Ok(())
    }

    /// The number of the next field of a message that ends at `end`, and how many bytes of it follow. Numbers, which lead
    /// nowhere, are read already.
    fn field(&mut self, end: u64) -> Result<(u64, u64), OnnxError> {
        let tag = self.varint()?;
        let length = match tag & 7 {
            0 => self.varint().map(|_| 0)?,
            1 => 8,
            2 => self.varint()?,
            5 => 4,
            _ => return Err(OnnxError::Malformed("it has a field of no known type")),
        };
        // Only what has a length may be a message or a text.
        let number = if tag & 7 == 2 { tag >> 3 } else { 0 };
        match self.position.checked_add(length) {
            Some(after) if after <= end => Ok((number, length)),
            _ => Err(OnnxError::Malformed("a field is longer than what holds it")),
        }
    }

    fn varint(&mut self) -> Result<u64, OnnxError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).map_err(cut)?;
            self.position += 1;
            let [byte] = byte;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(OnnxError::Malformed("a number has more than ten bytes"))
    }

    fn text(&mut self, length: u64) -> Result<String, OnnxError> {
        if length > TEXT_LIMIT {
            return Err(OnnxError::Malformed("a path of external data is too long"));
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).map_err(cut)?;
        self.position += length;
        String::from_utf8(bytes).map_err(|_| OnnxError::Malformed("a path of external data is not UTF-8"))
    }

    fn skip(&mut self, length: u64) -> Result<(), OnnxError> {
        let offset = i64::try_from(length).map_err(|_| OnnxError::Malformed("a field is too long"))?;
        self.reader.seek_relative(offset).map_err(OnnxError::Unreadable)?;
        self.position += length;
        Ok(())
    }
}

fn cut(error: std::io::Error) -> OnnxError {
    match error.kind() {
        ErrorKind::UnexpectedEof => OnnxError::Malformed("it ends in the middle of a field"),
        _ => OnnxError::Unreadable(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field with a length.
    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for mut value in [number << 3 | 2, content.len() as u64] {
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
        }
        bytes.extend_from_slice(content);
        bytes
    }

    /// A TensorProto, with weights of its own before and after.
    fn tensor(location: &str) -> Vec<u8> {
        let entry = |key: &str, value: &str| {
            let content = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
            field(13, &content)
        };
        [
            field(9, &[0xff; 10_000]),
            entry("location", location),
            entry("offset", "0"),
            field(4, &[0xff; 7]),
        ]
        .concat()
    }

    fn scan(bytes: &[u8]) -> Result<Vec<String>, OnnxError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        external_data(file.path()).map(|found| found.into_iter().collect())
    }

    /// A ModelProto with numbers of every width beside its graph.
    fn model(graph: &[u8]) -> Vec<u8> {
        let ir_version = [0x08, 0x8a, 0x01];
        let fixed = [[0x09; 9].as_slice(), [0x0d; 5].as_slice()].concat();
        [ir_version.as_slice(), &fixed, &field(7, graph), &fixed].concat()
    }

    #[test]
    fn external_files_are_found_in_initializers_attributes_and_subgraphs() {
        let inner = field(5, &tensor("c.data"));
        let attribute = [field(5, &tensor("b.data")), field(6, &inner)].concat();
        let sparse = field(23, &field(2, &tensor("d.data")));
        let node = [field(5, &attribute), field(5, &sparse), field(1, b"an input")].concat();
        let graph = [
            field(1, &node),
            field(5, &tensor("a.data")),
            field(5, &tensor("a.data")),
            field(5, &field(9, &[1; 5])),
        ]
        .concat();
        let function = field(25, &field(7, &field(5, &field(10, &tensor("e.data")))));
        let found = scan(&[model(&graph), function].concat()).unwrap();
        assert_eq!(found, ["a.data", "b.data", "c.data", "d.data", "e.data"]);
    }

    #[test]
    fn what_is_no_onnx_file_is_refused() {
        let mut deep = Vec::new();
        for _ in 0..DEPTH_LIMIT {
            deep = field(1, &field(5, &field(6, &deep)));
        }
        let whole = model(&field(5, &tensor("a.data")));
        for (bytes, says) in [
            (b"this is not a graph".to_vec(), "is not an ONNX file"),
            (Vec::new(), "no graph"),
            (field(1, b"x"), "no graph"),
            (model(&deep), "too deeply"),
            (whole[..whole.len() / 2].to_vec(), "is not an ONNX file"),
            (field(7, &[0x2a, 0xff]), "is not an ONNX file"),
            (field(7, &field(5, &tensor(&"a".repeat(5000)))), "too long"),
        ] {
            let error = scan(&bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{says:?} is not in: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_scan_panic(bytes: Vec<u8>) {
            let _ = scan(&bytes);
            let _ = scan(&model(&bytes));
        }
    }
}
