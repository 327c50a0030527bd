//! A step graph by itself, fed with made-up values of the right shapes: what a product takes does not depend on them.

use std::{
    borrow::Cow,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, bail};
use muse_engine::{
    Bundle, SessionOptions, StageSpec,
    runtime::{Lanes, open_graph},
};
use ort::{
    session::{Session, SessionInputValue},
    value::{Outlet, Tensor, TensorElementType, ValueType},
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

/// An open step graph, once for each lane: ONNX Runtime's sessions are shared by lanes in the engine alone.
pub(super) struct Step {
    sessions: Vec<Session>,
    lanes: Lanes,
    mask_id: i64,
}

impl Step {
    /// With `profile`, of one lane.
    pub(super) fn open(
        bundle: &Bundle,
        spec: &StageSpec,
        options: &SessionOptions,
        profile: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let lanes = options.lanes()?;
        let of_a_lane = SessionOptions {
            threads: lanes.threads,
            ..options.clone()
        };
        let path = bundle.path(&spec.step);
        Ok(Self {
            sessions: (0..lanes.count)
                .map(|_| open_graph(&path, &of_a_lane, profile))
                .collect::<Result<_, _>>()?,
            lanes,
            mask_id: i64::from(spec.mask_id),
        })
    }

    /// How its passes are computed, in words.
    pub(super) fn lanes(&self) -> String {
        match self.lanes.count {
            1 => "all threads in each operator".to_owned(),
            count => format!(
                "its rows in {count} lanes, as a stage computes them: parts of at most {} rows side by side",
                self.lanes.rows
            ),
        }
    }

    fn signature(&self) -> &[Outlet] {
        self.sessions.first().map_or(&[], Session::inputs)
    }

    /// Whether it can leave positions out.
    pub(super) fn chooses(&self) -> bool {
        self.signature().iter().any(|input| input.name() == POSITIONS)
    }

    /// For [`Step::run`], so that making them is not timed: those of each part of a pass.
    pub(super) fn inputs(&self, size: Size) -> anyhow::Result<Vec<Inputs>> {
        self.lanes
            .parts(size.rows)
            .into_iter()
            .map(|rows| {
                let wanted = size.wanted * rows / size.rows;
                self.inputs_of_part(Size { rows, wanted })
            })
            .collect()
    }

    fn inputs_of_part(&self, size: Size) -> anyhow::Result<Inputs> {
        self.signature()
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

    /// Each lane takes part after part, as the engine's do.
    pub(super) fn run(&mut self, parts: Vec<Inputs>) -> anyhow::Result<()> {
        let needed = parts.len();
        let parts = Mutex::new(parts);
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let work = |session: &mut Session| {
            while let Some(inputs) = next() {
                session.run(inputs)?;
            }
            anyhow::Ok(())
        };
        let (own, others) = self.sessions.split_first_mut().context("no lane")?;
        thread::scope(|scope| {
            let lanes: Vec<_> = others
                .iter_mut()
                .take(needed.saturating_sub(1))
                .map(|session| scope.spawn(|| work(session)))
                .collect();
            work(own)?;
            lanes
                .into_iter()
                .try_for_each(|lane| lane.join().unwrap_or_else(|_| bail!("a lane panicked")))
        })
    }
}

/// What ONNX Runtime says of passes of these sizes, one after another, each run `times` by all threads together.
pub(super) fn profiled(
    bundle: &Bundle,
    spec: &StageSpec,
    options: &SessionOptions,
    sizes: &[Size],
    times: usize,
) -> anyhow::Result<Vec<Vec<Run>>> {
    let folder = tempfile::tempdir()?;
    let whole = SessionOptions {
        lanes: 1,
        ..options.clone()
    };
    let mut step = Step::open(bundle, spec, &whole, Some(&folder.path().join("profile")))?;
    for size in sizes {
        for _ in 0..times {
            let inputs = step.inputs(*size)?;
            step.run(inputs)?;
        }
    }
    let file = step.sessions.first_mut().context("no session")?.end_profiling()?;
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
