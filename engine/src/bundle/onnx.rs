//! The little of ONNX's file format that a bundle's check needs: which external files a graph's weights lie in.
//!
//! ONNX Runtime would open such a file without asking the manifest, so its digest would go unchecked.

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;

// Field numbers are those of onnx.proto; fields that do not matter here are skipped by the decoder.

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<TensorProto>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializers: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    nodes: Vec<NodeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(message, optional, tag = "5")]
    tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphProto>,
    #[prost(message, optional, tag = "22")]
    sparse_tensor: Option<SparseTensorProto>,
    #[prost(message, repeated, tag = "23")]
    sparse_tensors: Vec<SparseTensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct SparseTensorProto {
    #[prost(message, optional, tag = "1")]
    values: Option<TensorProto>,
    #[prost(message, optional, tag = "2")]
    indices: Option<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Why an ONNX file's references could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum OnnxError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("is not an ONNX file: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("is not an ONNX file: it holds no graph")]
    NoGraph,
}

/// The `location` of every external tensor of the ONNX file at `path`, each once.
pub(super) fn external_data(path: &Path) -> Result<BTreeSet<String>, OnnxError> {
    let bytes = std::fs::read(path)?;
    let model = ModelProto::decode(&*bytes)?;
    let graph = model.graph.as_ref().ok_or(OnnxError::NoGraph)?;
    let mut locations = BTreeSet::new();
    collect_graph(graph, &mut locations);
    for function in &model.functions {
        collect_nodes(&function.nodes, &mut locations);
    }
    Ok(locations)
}

// The decoder limits nesting to 100 levels, so this recursion is bounded.
fn collect_graph(graph: &GraphProto, locations: &mut BTreeSet<String>) {
    collect_nodes(&graph.nodes, locations);
    graph
        .initializers
        .iter()
        .for_each(|tensor| collect_tensor(tensor, locations));
    graph
        .sparse_initializers
        .iter()
        .for_each(|tensor| collect_sparse(tensor, locations));
}

fn collect_nodes(nodes: &[NodeProto], locations: &mut BTreeSet<String>) {
    for attribute in nodes.iter().flat_map(|node| &node.attributes) {
        attribute
            .tensor
            .iter()
            .chain(&attribute.tensors)
            .for_each(|tensor| collect_tensor(tensor, locations));
        attribute
            .graph
            .iter()
            .chain(&attribute.graphs)
            .for_each(|graph| collect_graph(graph, locations));
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        sparse.for_each(|tensor| collect_sparse(tensor, locations));
    }
}

fn collect_sparse(tensor: &SparseTensorProto, locations: &mut BTreeSet<String>) {
    tensor
        .values
        .iter()
        .chain(&tensor.indices)
        .for_each(|tensor| collect_tensor(tensor, locations));
}

fn collect_tensor(tensor: &TensorProto, locations: &mut BTreeSet<String>) {
    let named = tensor
        .external_data
        .iter()
        .filter(|entry| entry.key == "location");
    locations.extend(named.map(|entry| entry.value.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn external(location: &str) -> TensorProto {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        TensorProto {
            external_data: vec![entry("location", location), entry("offset", "0")],
        }
    }

    #[test]
    fn external_files_are_found_in_initializers_attributes_and_subgraphs() {
        let inner = GraphProto {
            initializers: vec![external("c.data")],
            ..Default::default()
        };
        let attribute = AttributeProto {
            tensor: Some(external("b.data")),
            graph: Some(inner),
            ..Default::default()
        };
        let model = ModelProto {
            ir_version: 10,
            graph: Some(GraphProto {
                nodes: vec![NodeProto {
                    attributes: vec![attribute],
                }],
                initializers: vec![external("a.data"), external("a.data"), TensorProto::default()],
                ..Default::default()
            }),
            ..Default::default()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), model.encode_to_vec()).unwrap();
        let found = external_data(file.path()).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["a.data", "b.data", "c.data"]
        );
    }

    #[test]
    fn a_text_file_is_no_onnx_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "this is not a graph").unwrap();
        let error = external_data(file.path()).unwrap_err().to_string();
        assert!(error.starts_with("is not an ONNX file"), "{error}");
    }
}
