//! What a graph's weights take in memory, read off its file.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use muse_engine::{Bundle, Stage};
use prost::Message;

// The little of onnx.proto that tells it; the rest is skipped.

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, tag = "4")]
    operator: String,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    sides: Vec<i64>,
    #[prost(int32, tag = "2")]
    element: i32,
}

/// Bytes of the weights that a worker of `stage` opens: its `condition` and `step` graphs, and the last stage's decoder.
pub(crate) fn of_worker(bundle: &Bundle, stage: Stage) -> anyhow::Result<u64> {
    let spec = bundle
        .stage(stage)
        .with_context(|| format!("the bundle has no stage {stage}"))?;
    let decoder = (bundle.last_stage().stage == stage)
        .then_some(spec.decoder.as_deref())
        .flatten();
    [Some(spec.condition.as_str()), Some(spec.step.as_str()), decoder]
        .into_iter()
        .flatten()
        .map(|file| {
            let path = bundle.path(file);
            of_file(&path).with_context(|| format!("cannot read the weights of {}", path.display()))
        })
        .sum()
}

fn of_file(path: &Path) -> anyhow::Result<u64> {
    let model = Model::decode(fs::read(path)?.as_slice())?;
    let Some(graph) = model.graph else {
        bail!("it holds no graph");
    };
    // Where activations are quantised, weights are multiplied as they are stored; everywhere else they are widened to f32
    // when the graph is opened.
    let integers = graph.nodes.iter().any(|node| node.operator == "QuantizeLinear");
    graph
        .initializers
        .iter()
        .map(|tensor| bytes(tensor, integers))
        .sum()
}

fn bytes(tensor: &Tensor, integers: bool) -> anyhow::Result<u64> {
    // TensorProto.DataType.
    let width = match tensor.element {
        // float, int32, uint32
        1 | 6 | 12 => 4,
        // float16, bfloat16
        10 | 16 => 4,
        // uint8, int8
        2 | 3 => {
            if integers {
                1
            } else {
                4
            }
        }
        // uint16, int16
        4 | 5 => 2,
        // int64, double, uint64
        7 | 11 | 13 => 8,
        // bool
        9 => 1,
        other => bail!("no width is known for elements of type {other}"),
    };
    tensor.sides.iter().try_fold(width, |bytes: u64, side| {
        let side = u64::try_from(*side).context("a side is negative")?;
        bytes.checked_mul(side).context("a tensor is too large")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(operators: &[&str], tensors: &[(&[i64], i32)]) -> tempfile::NamedTempFile {
        let graph = Graph {
            nodes: operators
                .iter()
                .map(|operator| Node {
                    operator: (*operator).to_owned(),
                })
                .collect(),
            initializers: tensors
                .iter()
                .map(|(sides, element)| Tensor {
                    sides: sides.to_vec(),
                    element: *element,
                })
                .collect(),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), Model { graph: Some(graph) }.encode_to_vec()).unwrap();
        file
    }

    #[test]
    fn stored_integers_count_as_what_is_computed_with() {
        let tensors: &[(&[i64], i32)] = &[(&[10, 3], 3), (&[3], 1), (&[], 7)];
        let widened = file(&["DequantizeLinear", "MatMul"], tensors);
        assert_eq!(of_file(widened.path()).unwrap(), 30 * 4 + 3 * 4 + 8);
        let kept = file(&["QuantizeLinear", "MatMul"], tensors);
        assert_eq!(of_file(kept.path()).unwrap(), 30 + 3 * 4 + 8);
        assert!(of_file(file(&[], &[(&[-1], 1)]).path()).is_err());
        assert!(of_file(file(&[], &[(&[1], 99)]).path()).is_err());
    }

    #[test]
    fn a_worker_opens_two_graphs_and_the_last_stages_a_decoder() {
        let bundle = Bundle::load(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/bundles/tiny"
        )))
        .unwrap();
        let own = |file: &str| of_file(&bundle.path(file)).unwrap();
        let base = bundle.base();
        assert_eq!(
            of_worker(&bundle, Stage::Base).unwrap(),
            own(&base.condition) + own(&base.step)
        );
        let last = bundle.last_stage();
        assert_eq!(
            of_worker(&bundle, last.stage).unwrap(),
            own(&last.condition) + own(&last.step) + own(last.decoder.as_deref().unwrap())
        );
    }
}
