//! Token grids on the wire.

use bytes::Bytes;
use muse_proto::internal::v1::{ElementType, Tensor};

/// Why a tensor is not the grid it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GridFault {
    /// Neither u16 nor u32.
    #[error("tokens are u16 or u32, not {0}")]
    ElementType(&'static str),
    /// Another shape.
    #[error("shape {found:?} where {wanted:?} is wanted")]
    Shape {
        /// What arrived.
        found: Vec<u64>,
        /// What was expected.
        wanted: Vec<u64>,
    },
    /// `data` does not fill the shape.
    #[error("{found} bytes where the shape needs {wanted}")]
    Length {
        /// What arrived.
        found: usize,
        /// What was expected.
        wanted: usize,
    },
}

/// Grids of equal length as one tensor, `[grids, S]`; u16 where every token fits, else u32.
pub fn to_tensor(grids: &[Vec<u32>]) -> Tensor {
    let length = grids.first().map_or(0, Vec::len);
    tensor(
        grids.iter().flatten().copied(),
        vec![grids.len() as u64, length as u64],
    )
}

/// One grid, `[S]`.
pub fn row_to_tensor(grid: &[u32]) -> Tensor {
    tensor(grid.iter().copied(), vec![grid.len() as u64])
}

fn tensor(tokens: impl Iterator<Item = u32> + Clone, shape: Vec<u64>) -> Tensor {
    let narrow: Option<Vec<[u8; 2]>> = tokens
        .clone()
        .map(|token| u16::try_from(token).ok().map(u16::to_le_bytes))
        .collect();
    let (element_type, data) = match narrow {
        Some(narrow) => (ElementType::U16, Bytes::from(narrow.into_flattened())),
        None => {
            let wide: Vec<[u8; 4]> = tokens.map(u32::to_le_bytes).collect();
            (ElementType::U32, Bytes::from(wide.into_flattened()))
        }
    };
    Tensor {
        element_type: element_type as i32,
        shape,
        data,
    }
}

/// The grids of a tensor `[grids, length]`.
///
/// # Errors
/// When it has another type, shape or length.
pub fn from_tensor(tensor: &Tensor, grids: usize, length: usize) -> Result<Vec<Vec<u32>>, GridFault> {
    let tokens = read(tensor, &[grids as u64, length as u64])?;
    Ok(tokens.chunks(length.max(1)).map(<[u32]>::to_vec).collect())
}

/// The grid of a tensor `[length]`.
///
/// # Errors
/// When it has another type, shape or length.
pub fn row_from_tensor(tensor: &Tensor, length: usize) -> Result<Vec<u32>, GridFault> {
    read(tensor, &[length as u64])
}

fn read(tensor: &Tensor, wanted: &[u64]) -> Result<Vec<u32>, GridFault> {
    if tensor.shape != wanted {
        return Err(GridFault::Shape {
            found: tensor.shape.clone(),
            wanted: wanted.to_vec(),
        });
    }
    let elements = wanted.iter().product::<u64>() as usize;
    let size = match tensor.element_type() {
        ElementType::U16 => 2,
        ElementType::U32 => 4,
        other => return Err(GridFault::ElementType(other.as_str_name())),
    };
    if tensor.data.len() != elements * size {
        return Err(GridFault::Length {
            found: tensor.data.len(),
            wanted: elements * size,
        });
    }
    Ok(tensor
        .data
        .chunks_exact(size)
        .map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u32::from(*byte))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tensor_of_another_type_shape_or_length_is_refused() {
        let good = to_tensor(&[vec![1, 2, 3]]);
        assert_eq!(good.element_type(), ElementType::U16);
        assert!(matches!(from_tensor(&good, 3, 1), Err(GridFault::Shape { .. })));
        assert!(matches!(row_from_tensor(&good, 3), Err(GridFault::Shape { .. })));
        let float = Tensor {
            element_type: ElementType::F32 as i32,
            ..good.clone()
        };
        assert_eq!(
            from_tensor(&float, 1, 3),
            Err(GridFault::ElementType("ELEMENT_TYPE_F32"))
        );
        let short = Tensor {
            data: Bytes::from_static(&[1, 0, 2]),
            ..good
        };
        assert_eq!(
            from_tensor(&short, 1, 3),
            Err(GridFault::Length { found: 3, wanted: 6 })
        );
    }

    proptest! {
        #[test]
        fn grids_come_back_as_they_went(
            grids in (1usize..5, 1usize..20).prop_flat_map(|(grids, length)| {
                prop::collection::vec(prop::collection::vec(prop_oneof![0u32..300, 0u32..200_000], length), grids)
            })
        ) {
            let tensor = to_tensor(&grids);
            prop_assert_eq!(from_tensor(&tensor, grids.len(), grids[0].len()), Ok(grids.clone()));
            let row = row_to_tensor(&grids[0]);
            prop_assert_eq!(row_from_tensor(&row, grids[0].len()), Ok(grids[0].clone()));
        }
    }
}
