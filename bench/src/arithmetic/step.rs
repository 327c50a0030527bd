//! A step graph by itself, fed with made-up values of the right shapes: what a product takes does not depend on them.

use std::{borrow::Cow, fs, path::Path};

use anyhow::{Context as _, bail};
use muse_engine::{Bundle, SessionOptions, StageSpec, runtime::open_graph};
use ort::{
    session::{Session, SessionInputValue},
    value::{Tensor, TensorElementType, ValueType},
};

use super::profile::{Run, runs};

/// The input of graphs that compute only some positions' logits.
const POSITIONS: &str = "positions";
/// The input of graphs whose rows may share a grid.
const GRIDS: &str = "grids";

/// How much one pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: usize,
    /// Positions, of all rows together, whose logits are wanted. Of graphs that leave no choice: ignored.
    pub(super) wanted: usize,
}

type Inputs = Vec<(Cow<'static, str>, SessionInputValue<'static>)>;

/// An open step graph.
pub(super) struct Step {
    session: Session,
    mask_id: i64,
}

impl Step {
    pub(super) fn open(
        bundle: &Bundle,
        spec: &StageSpec,
        options: &SessionOptions,
        profile: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let session = open_graph(&bundle.path(&spec.step), options, profile)?;
        Ok(Self {
            session,
            mask_id: i64::from(spec.mask_id),
        })
    }

    /// Whether it can leave positions out.
    pub(super) fn chooses(&self) -> bool {
        self.session
            .inputs()
            .iter()
            .any(|input| input.name() == POSITIONS)
    }

    pub(super) fn pass(&mut self, size: Size) -> anyhow::Result<()> {
        let inputs = self.inputs(size)?;
        self.run(inputs)
    }

    /// For [`Step::run`], so that making them is not timed.
    pub(super) fn inputs(&self, size: Size) -> anyhow::Result<Inputs> {
        self.session
            .inputs()
            .iter()
            .map(|input| {
                let ValueType::Tensor { ty, shape, .. } = input.dtype() else {
                    bail!("its input {} is no tensor", input.name());
                };
                let free = if input.name() == POSITIONS {
                    size.wanted
                } else {
                    size.rows
                };
                let shape: Vec<usize> = shape
                    .iter()
                    .map(|side| usize::try_from(*side).unwrap_or(free))
                    .collect();
                let count = shape.iter().product();
                let value: SessionInputValue<'static> = match ty {
                    TensorElementType::Float32 => Tensor::from_array((shape, floats(count)))?.into(),
                    TensorElementType::Int64 => {
                        let values = match input.name() {
                            "tokens" => vec![self.mask_id; count],
                            // Each row its own grid, so that nothing is shared.
                            POSITIONS | GRIDS => (0..).take(count).collect(),
                            _ => vec![1; count],
                        };
                        Tensor::from_array((shape, values))?.into()
                    }
                    TensorElementType::Int32 => Tensor::from_array((shape, vec![1_i32; count]))?.into(),
                    other => bail!(
                        "its input {} is {other:?}, neither f32 nor whole numbers",
                        input.name()
                    ),
                };
                Ok((Cow::Owned(input.name().to_owned()), value))
            })
            .collect()
    }

    pub(super) fn run(&mut self, inputs: Inputs) -> anyhow::Result<()> {
        self.session.run(inputs)?;
        Ok(())
    }
}

/// What ONNX Runtime says of passes of these sizes, one after another, each run `times`.
pub(super) fn profiled(
    bundle: &Bundle,
    spec: &StageSpec,
    options: &SessionOptions,
    sizes: &[Size],
    times: usize,
) -> anyhow::Result<Vec<Vec<Run>>> {
    let folder = tempfile::tempdir()?;
    let mut step = Step::open(bundle, spec, options, Some(&folder.path().join("profile")))?;
    for size in sizes {
        for _ in 0..times {
            step.pass(*size)?;
        }
    }
    let file = step.session.end_profiling()?;
    let runs = runs(&fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?)?;
    if runs.len() != sizes.len() * times {
        bail!(
            "the profile tells of {} passes instead of {}",
            runs.len(),
            sizes.len() * times
        );
    }
    Ok(runs.chunks(times).map(<[Run]>::to_vec).collect())
}

/// Between -1 and 1, the same on every machine.
fn floats(count: usize) -> Vec<f32> {
    (0..count)
        .map(|index| (index.wrapping_mul(7919) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use muse_engine::Runtime;
    use musectl::cluster::find_onnxruntime;

    use super::*;

    #[test]
    fn the_operations_of_a_pass_are_what_one_counts_by_hand() {
        let options = SessionOptions {
            onnxruntime: Some(find_onnxruntime().unwrap()),
            threads: 1,
            ..SessionOptions::default()
        };
        Runtime::initialise(options.onnxruntime.as_deref()).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bundles/tiny");
        let bundle = Bundle::load(&root).unwrap();
        let sizes = [1, 3].map(|rows| Size {
            rows,
            wanted: rows * 24,
        });
        let runs = profiled(&bundle, bundle.base(), &options, &sizes, 2).unwrap();
        // 24 positions of 32 values; 21 keys of text; two layers; a head for 40 logits. A layer has query, key and value of
        // 32 → 96, attention among the 24, a product of 32 → 32, a query for the text, attention to it, another product, and
        // the perceptron 32 → 64 → 32.
        let products = 24 * 32 * (96 + 32 + 32 + 32 + 64) + 24 * 64 * 32;
        let attention = 2 * 24 * (24 + 21) * 32;
        let row = 2.0 * f64::from(2 * (products + attention) + 24 * 32 * 40);
        assert_eq!(row, 1_320_960.0);
        for (runs, rows) in runs.iter().zip([1.0, 3.0]) {
            assert_eq!(runs.len(), 2);
            for run in runs {
                assert_eq!(run.operations, rows * row);
                assert!(run.time["MatMul"] >= 0.0);
            }
        }
    }
}
