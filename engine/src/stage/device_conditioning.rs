//! The conditioning of a pass's rows on a device. A row is sent when it first comes; afterwards it is taken from where it lies.

use std::sync::Arc;

use super::conditioning::{Conditioning, JoinedConditioning, TensorData, for_each_type};
use super::{InputError, StageError};
use crate::runtime::{DeviceRows, RowGatherer, RuntimeError, Session};

/// What the device holds for the next pass.
#[derive(Debug, Default)]
pub(super) struct DeviceConditioning {
    /// Whose conditioning each row is.
    slots: Vec<Arc<Conditioning>>,
    rows: Option<DeviceRows>,
}

/// Where the rows of a pass come from.
#[derive(Debug, PartialEq)]
struct Plan {
    /// Whether what is held is needed.
    keeps: bool,
    /// Places among those wanted of rows that must be sent, each conditioning once.
    new: Vec<usize>,
    /// For each row that is wanted, its place in what is held, if that is needed, followed by what is sent.
    sources: Vec<i64>,
}

// === impl DeviceConditioning ===

impl DeviceConditioning {
    /// Has the device hold `wanted`, in order; a conditioning may be there several times.
    pub(super) fn join(
        &mut self,
        gatherer: &RowGatherer,
        wanted: &[&Arc<Conditioning>],
    ) -> Result<(), StageError> {
        let Some(plan) = Plan::make(&self.slots, wanted) else {
            return Ok(());
        };
        // Should anything fail, the next pass begins with nothing.
        let mut before = std::mem::take(self);
        if !plan.keeps {
            // Its memory is free for the rows that come.
            before.rows = None;
        }
        let mut sent = JoinedConditioning::default();
        let new = plan.new.iter().map(|place| wanted[*place]);
        let sent = sent.join(new).ok_or(InputError::Conditioning)?;
        let sent = sent
            .iter()
            .map(|tensor| for_each_type!(&tensor.data, values => Session::view(&tensor.shape, values)))
            .collect::<Result<Vec<_>, RuntimeError>>()?;
        let rows = gatherer.gather(before.rows.as_ref(), sent, &plan.sources)?;
        *self = DeviceConditioning {
            slots: wanted.iter().map(|row| Arc::clone(row)).collect(),
            rows: Some(rows),
        };
        Ok(())
    }

    /// What was joined last.
    pub(super) fn rows(&self) -> Option<&DeviceRows> {
        self.rows.as_ref()
    }
}

// === impl Plan ===

impl Plan {
    /// `None` if what is wanted is held.
    fn make(held: &[Arc<Conditioning>], wanted: &[&Arc<Conditioning>]) -> Option<Plan> {
        let same = |(held, wanted): (&Arc<Conditioning>, &&Arc<Conditioning>)| Arc::ptr_eq(held, wanted);
        if held.len() == wanted.len() && held.iter().zip(wanted).all(same) {
            return None;
        }
        let place = |row: &Arc<Conditioning>| held.iter().position(|held| Arc::ptr_eq(held, row));
        let places: Vec<Option<usize>> = wanted.iter().map(|row| place(row)).collect();
        let keeps = places.iter().any(Option::is_some);
        let first = if keeps { held.len() } else { 0 };
        let mut new: Vec<usize> = Vec::new();
        let mut sources = Vec::with_capacity(wanted.len());
        for (index, found) in places.into_iter().enumerate() {
            let source = found.unwrap_or_else(|| {
                let known = new
                    .iter()
                    .position(|known| Arc::ptr_eq(wanted[*known], wanted[index]));
                first
                    + known.unwrap_or_else(|| {
                        new.push(index);
                        new.len() - 1
                    })
            });
            sources.push(source as i64);
        }
        Some(Plan { keeps, new, sources })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::conditioning::Tensor;
    use super::*;
    use crate::runtime::signature::{Dimension, TensorSignature};
    use crate::runtime::{Element, Provider, Runtime, SessionOptions};

    fn row(value: usize) -> Arc<Conditioning> {
        let tensor = |shape: Vec<usize>, data| Tensor { shape, data };
        let number = value as f32;
        Arc::new(Conditioning {
            tensors: vec![
                tensor(vec![2], TensorData::F32(vec![number, number + 0.5])),
                tensor(vec![1], TensorData::I32(vec![value as i32])),
            ],
        })
    }

    fn gatherer() -> RowGatherer {
        Runtime::of_the_workspace();
        let tensors = [
            TensorSignature::new("k0", Element::F32, [Dimension::Batch, Dimension::Fixed(2)]),
            TensorSignature::new("mask", Element::I32, [Dimension::Batch, Dimension::Any]),
        ];
        RowGatherer::open(&tensors, Provider::Cpu, &SessionOptions::default()).unwrap()
    }

    fn check(passes: &[Vec<usize>]) {
        let gatherer = gatherer();
        let rows: Vec<_> = (0..8).map(row).collect();
        let mut conditioning = DeviceConditioning::default();
        for slots in passes {
            let wanted: Vec<_> = slots.iter().map(|slot| &rows[*slot]).collect();
            conditioning.join(&gatherer, &wanted).unwrap();
            let [first, second] = conditioning.rows().unwrap().tensors() else {
                panic!("two tensors")
            };
            let (shape, values) = first.try_extract_tensor::<f32>().unwrap();
            let expected = slots
                .iter()
                .flat_map(|slot| [*slot as f32, *slot as f32 + 0.5])
                .collect::<Vec<_>>();
            assert_eq!(shape.iter().copied().collect::<Vec<_>>(), [slots.len() as i64, 2]);
            assert_eq!(values, expected, "{passes:?}");
            let (_, values) = second.try_extract_tensor::<i32>().unwrap();
            let expected: Vec<i32> = slots.iter().map(|slot| *slot as i32).collect();
            assert_eq!(values, expected, "{passes:?}");
        }
    }

    #[test]
    fn only_rows_that_are_not_held_are_sent_and_each_once() {
        let rows: Vec<_> = (0..4).map(row).collect();
        let plan = |held: &[usize], wanted: &[usize]| {
            let held: Vec<_> = held.iter().map(|slot| Arc::clone(&rows[*slot])).collect();
            let wanted: Vec<_> = wanted.iter().map(|slot| &rows[*slot]).collect();
            Plan::make(&held, &wanted)
        };
        let made = |keeps, new: &[usize], sources: &[i64]| {
            Some(Plan {
                keeps,
                new: new.to_vec(),
                sources: sources.to_vec(),
            })
        };
        assert_eq!(plan(&[0, 1], &[0, 1]), None);
        assert_eq!(plan(&[0, 1, 2], &[0, 2]), made(true, &[], &[0, 2]));
        assert_eq!(plan(&[0, 1], &[1, 3, 3]), made(true, &[1], &[1, 2, 2]));
        assert_eq!(plan(&[0], &[1, 2, 1]), made(false, &[0, 1], &[0, 1, 0]));
        assert_eq!(plan(&[], &[0, 0]), made(false, &[0], &[0, 0]));
    }

    #[test]
    fn rows_of_other_shapes_are_refused_and_the_next_pass_is_whole() {
        let gatherer = gatherer();
        let (good, other) = (row(1), {
            let mut tensors = row(2).tensors.clone();
            tensors.pop();
            Arc::new(Conditioning { tensors })
        });
        let mut conditioning = DeviceConditioning::default();
        conditioning.join(&gatherer, &[&good]).unwrap();
        assert!(conditioning.join(&gatherer, &[&good, &other]).is_err());
        assert!(conditioning.rows().is_none());
        conditioning.join(&gatherer, &[&good, &good]).unwrap();
        assert_eq!(conditioning.rows().unwrap().tensors().len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn rows_lie_in_order_whatever_was_held_before(
            passes in prop::collection::vec(prop::collection::vec(0..8_usize, 1..7), 1..8),
        ) {
            check(&passes);
        }
    }
}
