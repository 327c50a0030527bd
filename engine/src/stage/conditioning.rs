//! What a stage's steps reuse, a row at a time, and how rows are joined into a batch.

use std::sync::Arc;

use half::f16;

/// What the `condition` graph made of one text (and low tokens). Opaque: nothing looks inside but the `step` graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditioning {
    /// In the order of the stage's conditioning tensors.
    pub tensors: Vec<Tensor>,
}

/// One row of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Without the batch axis.
    pub shape: Vec<usize>,
    /// Row-major.
    pub data: TensorData,
}

/// Elements of the types that conditioning may have.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// Truth values.
    Bool(Vec<bool>),
}

/// The conditioning of a pass's rows, joined along the batch axis. Rows that stay in their slot from pass to pass are not
/// copied again.
#[derive(Debug, Default)]
pub(crate) struct JoinedConditioning {
    rows: Vec<Arc<Conditioning>>,
    tensors: Vec<Tensor>,
}

// === impl Conditioning ===

impl Conditioning {
    /// Size in memory, in bytes.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.data.bytes()).sum()
    }
}

// === impl TensorData ===

macro_rules! for_each_type {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            TensorData::F32($values) => $body,
            TensorData::F16($values) => $body,
            TensorData::I64($values) => $body,
            TensorData::I32($values) => $body,
            TensorData::Bool($values) => $body,
        }
    };
}
pub(crate) use for_each_type;

impl TensorData {
    fn bytes(&self) -> usize {
        for_each_type!(self, values => std::mem::size_of_val(values.as_slice()))
    }

    /// An empty one of the same type.
    fn empty_like(&self) -> TensorData {
        match self {
            TensorData::F32(_) => TensorData::F32(Vec::new()),
            TensorData::F16(_) => TensorData::F16(Vec::new()),
            TensorData::I64(_) => TensorData::I64(Vec::new()),
            TensorData::I32(_) => TensorData::I32(Vec::new()),
            TensorData::Bool(_) => TensorData::Bool(Vec::new()),
        }
    }

    /// Puts `source` in slot `slot`; all slots have its length. False if the types differ.
    fn put(&mut self, slot: usize, source: &TensorData) -> bool {
        fn put<T: Copy>(target: &mut Vec<T>, slot: usize, source: &[T]) {
            let start = slot * source.len();
            if target.len() <= start {
                target.extend_from_slice(source);
            } else {
                target[start..start + source.len()].copy_from_slice(source);
            }
        }
        match (self, source) {
            (TensorData::F32(target), TensorData::F32(source)) => put(target, slot, source),
            (TensorData::F16(target), TensorData::F16(source)) => put(target, slot, source),
            (TensorData::I64(target), TensorData::I64(source)) => put(target, slot, source),
            (TensorData::I32(target), TensorData::I32(source)) => put(target, slot, source),
            (TensorData::Bool(target), TensorData::Bool(source)) => put(target, slot, source),
            _ => return false,
        }
        true
    }

    fn truncate(&mut self, length: usize) {
        for_each_type!(self, values => values.truncate(length));
    }
}

// === impl JoinedConditioning ===

impl JoinedConditioning {
    /// The tensors of `rows` joined along a new first axis, in order: shapes have the batch axis. `None` if rows differ in
    /// the type or shape of a tensor, which `condition` of one stage never makes.
    pub(crate) fn join<'row>(
        &mut self,
        rows: impl ExactSizeIterator<Item = &'row Arc<Conditioning>>,
    ) -> Option<&[Tensor]> {
        let count = rows.len();
        for (slot, row) in rows.enumerate() {
            match self.rows.get_mut(slot) {
                Some(present) if Arc::ptr_eq(present, row) => continue,
                Some(present) => *present = row.clone(),
                None => self.rows.push(row.clone()),
            }
            if !self.fill(slot, row) {
                // Half filled: forget everything, so that the next pass starts clean.
                *self = JoinedConditioning::default();
                return None;
            }
        }
        self.rows.truncate(count);
        for tensor in &mut self.tensors {
            let row: usize = tensor.shape[1..].iter().product();
            tensor.shape[0] = count;
            tensor.data.truncate(count * row);
        }
        Some(&self.tensors)
    }

    /// What was joined last.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn fill(&mut self, slot: usize, row: &Conditioning) -> bool {
        if self.tensors.is_empty() {
            self.tensors = row
                .tensors
                .iter()
                .map(|tensor| Tensor {
                    shape: [&[0], tensor.shape.as_slice()].concat(),
                    data: tensor.data.empty_like(),
                })
                .collect();
        }
        self.tensors.len() == row.tensors.len()
            && self.tensors.iter_mut().zip(&row.tensors).all(|(joined, tensor)| {
                joined.shape[1..] == tensor.shape && joined.data.put(slot, &tensor.data)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f32) -> Arc<Conditioning> {
        let tensor = |shape: Vec<usize>, data| Tensor { shape, data };
        Arc::new(Conditioning {
            tensors: vec![
                tensor(vec![2], TensorData::F32(vec![value, value + 0.5])),
                tensor(vec![], TensorData::I64(vec![value as i64])),
            ],
        })
    }

    #[test]
    fn rows_are_joined_in_order_whatever_was_joined_before() {
        let rows: Vec<_> = (0..5).map(|value| row(value as f32)).collect();
        let mut joined = JoinedConditioning::default();
        for slots in [
            vec![0, 1, 2],
            vec![0, 1, 2],
            vec![0, 3],
            vec![4, 3, 0, 1],
            vec![],
            vec![2],
        ] {
            let picked: Vec<_> = slots.iter().map(|slot| &rows[*slot]).collect();
            let tensors = joined.join(picked.into_iter()).unwrap();
            if let [first, second] = tensors {
                let expected: Vec<f32> = slots
                    .iter()
                    .flat_map(|slot| [*slot as f32, *slot as f32 + 0.5])
                    .collect();
                assert_eq!(
                    first,
                    &Tensor {
                        shape: vec![slots.len(), 2],
                        data: TensorData::F32(expected)
                    }
                );
                let expected: Vec<i64> = slots.iter().map(|slot| *slot as i64).collect();
                assert_eq!(
                    second,
                    &Tensor {
                        shape: vec![slots.len()],
                        data: TensorData::I64(expected)
                    }
                );
            } else {
                panic!("{tensors:?}");
            }
        }
    }

    #[test]
    fn rows_of_different_shapes_are_not_joined() {
        let other = Arc::new(Conditioning {
            tensors: vec![
                Tensor {
                    shape: vec![3],
                    data: TensorData::F32(vec![0.0; 3]),
                },
                Tensor {
                    shape: vec![],
                    data: TensorData::I64(vec![0]),
                },
            ],
        });
        let mut joined = JoinedConditioning::default();
        assert_eq!(joined.join([&row(1.0), &other].into_iter()), None);
        assert!(joined.join([&other].into_iter()).is_some());
    }

    #[test]
    fn a_rows_size_counts_every_tensor() {
        assert_eq!(row(1.0).bytes(), 2 * 4 + 8);
    }
}
