//! Large matrix products in f32: what the machine's cores can do.

use std::{borrow::Cow, fs};

use muse_engine::{SessionOptions, runtime::open_graph};
use ort::{
    session::{Session, SessionInputValue},
    value::Tensor,
};
use prost::Message;
use serde::Serialize;

use crate::{loops::Loaded, measure::timed};

/// Sides of the square matrices that are tried.
pub(super) const SIDES: [usize; 3] = [512, 1024, 2048];
/// Floating-point operations of one measurement, about.
const OPERATIONS: f64 = 40e9;

/// What a peer is asked for, a line of JSON.
#[derive(Serialize)]
pub(super) struct Task {
    side: usize,
    repeats: usize,
}

/// Products in ONNX Runtime. The right matrix is a weight, as in a step graph.
pub(super) struct Products {
    sessions: Vec<(usize, Session)>,
}

impl Products {
    pub(super) fn open(options: &SessionOptions) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let sessions = SIDES
            .into_iter()
            .map(|side| {
                let path = folder.path().join(format!("product_{side}.onnx"));
                fs::write(&path, model(side).encode_to_vec())?;
                Ok((side, open_graph(&path, options, None)?))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { sessions })
    }

    /// GFLOP/s at each side.
    pub(super) fn rates(&mut self, quick: bool) -> anyhow::Result<Vec<(usize, f64)>> {
        self.sessions
            .iter_mut()
            .map(|(side, session)| {
                let count = repeats(*side, quick);
                let left = Tensor::from_array(([*side, *side], values(*side)))?;
                let mut once = || -> anyhow::Result<()> {
                    let inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> =
                        vec![(Cow::Borrowed("left"), (&left).into())];
                    session.run(inputs)?;
                    Ok(())
                };
                once()?;
                let ((), seconds) = timed(|| (0..count).try_for_each(|_| once()))?;
                Ok((*side, rate(*side, count, seconds)))
            })
            .collect()
    }
}

/// GFLOP/s of another library at each side.
pub(super) fn peer_rates(peer: &mut Loaded, quick: bool) -> anyhow::Result<Vec<(usize, f64)>> {
    SIDES
        .into_iter()
        .map(|side| {
            let repeats = repeats(side, quick);
            let seconds = peer.ask(&Task { side, repeats }, repeats)?;
            Ok((side, rate(side, repeats, seconds)))
        })
        .collect()
}

fn repeats(side: usize, quick: bool) -> usize {
    if quick {
        return 1;
    }
    (OPERATIONS / operations(side)).ceil() as usize
}

fn operations(side: usize) -> f64 {
    2.0 * (side as f64).powi(3)
}

fn rate(side: usize, repeats: usize, seconds: f64) -> f64 {
    operations(side) * repeats as f64 / seconds / 1e9
}

/// Between -1 and 1.
fn values(side: usize) -> Vec<f32> {
    (0..side * side)
        .map(|index| (index % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

// The part of onnx.proto that one product needs; names and numbers are that file's.

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorTypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<DimensionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct DimensionProto {
    #[prost(int64, tag = "1")]
    dim_value: i64,
}

/// TensorProto.FLOAT.
const FLOAT: i32 = 1;
/// Any version of this or newer has a product, and ONNX Runtime reads them all.
const IR_VERSION: i64 = 10;
const OPSET: i64 = 20;

/// `product` = `left` × a weight, all [side, side].
fn model(side: usize) -> ModelProto {
    let sides = [side as i64; 2];
    let value = |name: &str| ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: FLOAT,
                shape: Some(TensorShapeProto {
                    dim: sides.map(|dim_value| DimensionProto { dim_value }).to_vec(),
                }),
            }),
        }),
    };
    ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { version: OPSET }],
        graph: Some(GraphProto {
            name: "product".to_owned(),
            node: vec![NodeProto {
                input: vec!["left".to_owned(), "right".to_owned()],
                output: vec!["product".to_owned()],
                op_type: "MatMul".to_owned(),
            }],
            initializer: vec![TensorProto {
                dims: sides.to_vec(),
                data_type: FLOAT,
                name: "right".to_owned(),
                raw_data: values(side).into_iter().flat_map(f32::to_le_bytes).collect(),
            }],
            input: vec![value("left")],
            output: vec![value("product")],
        }),
    }
}

#[cfg(test)]
mod tests {
    use muse_engine::Runtime;
    use musectl::cluster::find_onnxruntime;

    use super::*;

    #[test]
    fn the_graph_multiplies() {
        let options = SessionOptions {
            onnxruntime: Some(find_onnxruntime().unwrap()),
            threads: 1,
            ..SessionOptions::default()
        };
        Runtime::initialise(options.onnxruntime.as_deref()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), model(2).encode_to_vec()).unwrap();
        let mut session = open_graph(file.path(), &options, None).unwrap();
        let left = Tensor::from_array(([2_usize, 2], vec![1.0_f32, 0.0, 2.0, 1.0])).unwrap();
        let outputs = session.run(ort::inputs!["left" => left]).unwrap();
        let (_, product) = outputs["product"].try_extract_tensor::<f32>().unwrap();
        let [a, b, c, d] = values(2).try_into().unwrap();
        assert_eq!(product, [a, b, 2.0 * a + c, 2.0 * b + d]);
    }

    #[test]
    fn a_rate_counts_a_multiplication_and_an_addition_for_each_element() {
        assert_eq!(rate(1000, 3, 2.0), 3.0);
    }
}
