//! Reads the one kind of NumPy file that a bundle may hold: little-endian f32 in row-major order.

use std::path::Path;

/// Largest array that is read, in bytes: a null embedding is L·D·4 bytes, a few megabytes at most.
const SIZE_LIMIT: u64 = 1 << 28;
const MAGIC: &[u8] = b"\x93NUMPY";

/// The values and shape of the array at `path`. The error says what is wrong, without the file's name.
pub(super) fn read_f32(path: &Path) -> Result<(Vec<f32>, Vec<usize>), String> {
    let size = path
        .metadata()
        .map_err(|error| format!("cannot be read: {error}"))?
        .len();
    if size > SIZE_LIMIT {
        return Err(format!(
            "has {size} bytes, more than the {SIZE_LIMIT} that an array may have"
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    parse(&bytes).ok_or_else(|| "is not a NumPy file of little-endian f32 in row-major order".to_owned())
}

fn parse(bytes: &[u8]) -> Option<(Vec<f32>, Vec<usize>)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (version, rest) = rest.split_first_chunk::<2>()?;
    // Version 1 has a 16-bit header length, 2 and 3 a 32-bit one.
    let (length, rest) = match version[0] {
        1 => rest
            .split_first_chunk::<2>()
            .map(|(length, rest)| (usize::from(u16::from_le_bytes(*length)), rest))?,
        2 | 3 => rest
            .split_first_chunk::<4>()
            .map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest))?,
        _ => return None,
    };
    let (header, data) = rest.split_at_checked(length)?;
    let header = std::str::from_utf8(header).ok()?;
    if !header.contains("'descr': '<f4'") || !header.contains("'fortran_order': False") {
        return None;
    }
    let shape = header.split_once("'shape': (")?.1.split_once(')')?.0;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|side| !side.is_empty())
        .map(|side| side.parse().ok())
        .collect::<Option<_>>()?;
    let count = shape
        .iter()
        .try_fold(1usize, |count, side| count.checked_mul(*side))?;
    let (values, remainder) = data.as_chunks::<4>();
    if values.len() != count || !remainder.is_empty() {
        return None;
    }
    Some((
        values.iter().map(|value| f32::from_le_bytes(*value)).collect(),
        shape,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, values: &[f32]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    #[test]
    fn an_array_as_numpy_writes_it_is_read() {
        let bytes = file(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }  \n",
            &[1., 2., 3., 4., 5., 6.],
        );
        assert_eq!(parse(&bytes), Some((vec![1., 2., 3., 4., 5., 6.], vec![2, 3])));
    }

    #[test]
    fn another_type_or_a_cut_file_is_refused() {
        assert_eq!(
            parse(&file(
                "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }",
                &[1., 2.]
            )),
            None
        );
        assert_eq!(
            parse(&file(
                "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
                &[1., 2.]
            )),
            None
        );
        assert_eq!(parse(b"\x93NUMPY\x01"), None);
    }
}
