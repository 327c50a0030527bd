//! What ONNX Runtime's own profile tells of a pass: the time of each operator, and the shapes it had, from which its
//! multiplications are counted.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// One run of a graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Run {
    /// Floating-point operations of its matrix products, attention's included: a multiplication and an addition are two.
    pub(super) operations: f64,
    /// Microseconds by operator.
    pub(super) time: BTreeMap<String, f64>,
}

/// An entry of the profile, as far as it is of use.
#[derive(Deserialize)]
struct Event {
    name: String,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Arguments,
}

#[derive(Default, Deserialize)]
struct Arguments {
    op_name: Option<String>,
    /// An object for each tensor with its type and shape. What was packed when the session opened is not told, nor what is
    /// left out.
    #[serde(default)]
    input_type_shape: Vec<BTreeMap<String, Vec<u64>>>,
    #[serde(default)]
    output_type_shape: Vec<BTreeMap<String, Vec<u64>>>,
}

/// The runs of a profile, in order.
pub(super) fn runs(profile: &str) -> anyhow::Result<Vec<Run>> {
    let events: Vec<Event> =
        serde_json::from_str(profile).context("ONNX Runtime's profile is not what it was")?;
    let mut runs = Vec::new();
    let mut run = Run::default();
    for event in events {
        if event.name == "model_run" {
            runs.push(std::mem::take(&mut run));
        } else if let (true, Some(kind)) = (event.name.ends_with("_kernel_time"), &event.args.op_name) {
            run.operations += operations(kind, &event.args)?;
            *run.time.entry(kind.clone()).or_default() += event.dur;
        }
    }
    Ok(runs)
}

fn operations(kind: &str, arguments: &Arguments) -> anyhow::Result<f64> {
    let inputs = shapes(&arguments.input_type_shape);
    let output = shapes(&arguments.output_type_shape).into_iter().next();
    let unknown = || format!("{kind} has shapes {inputs:?} → {output:?}");
    let elements = |shape: &[u64]| shape.iter().map(|side| *side as f64).product::<f64>();
    match kind {
        "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm" => {
            // Each element of the left matrix meets each column of the right one, of which only the result tells.
            let left = inputs.first().with_context(unknown)?;
            let columns = output
                .as_ref()
                .and_then(|shape| shape.last())
                .with_context(unknown)?;
            Ok(2.0 * elements(left) * *columns as f64)
        }
        "MultiHeadAttention" => {
            // Queries [B, S, D], keys [B, T, D], values [B, T, D']: scores, and their mean of the values.
            let [query, key, value, ..] = inputs.as_slice() else {
                bail!(unknown());
            };
            let (Some(&[batch, queries, width]), Some(&[_, keys, _]), Some(&[_, _, out])) = (
                query.first_chunk::<3>().filter(|_| query.len() == 3),
                key.first_chunk::<3>().filter(|_| key.len() == 3),
                value.first_chunk::<3>().filter(|_| value.len() == 3),
            ) else {
                bail!(unknown());
            };
            Ok(2.0 * (batch * queries * keys) as f64 * (width + out) as f64)
        }
        // Not the arithmetic that is measured here.
        _ if kind.contains("Integer")
            || kind.contains("QLinear")
            || kind.contains("Quantize")
            || kind == "MatMulNBits" =>
        {
            bail!("the graph multiplies integers ({kind})")
        }
        _ => Ok(0.0),
    }
}

fn shapes(told: &[BTreeMap<String, Vec<u64>>]) -> Vec<Vec<u64>> {
    told.iter()
        .filter_map(|tensor| tensor.values().next().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, inputs: &str, output: &str, microseconds: u32) -> String {
        format!(
            r#"{{"cat": "Node", "dur": {microseconds}, "name": "node_x_kernel_time", "args": {{"op_name": "{kind}",
               "input_type_shape": [{inputs}], "output_type_shape": [{{"float": {output}}}]}}}}"#
        )
    }

    fn profile(events: &[String]) -> String {
        let end = r#"{"cat": "Session", "dur": 9, "name": "model_run", "args": {}}"#;
        format!(
            r#"[{{"name": "session_initialization", "dur": 1}}, {}, {end}]"#,
            events.join(",")
        )
    }

    #[test]
    fn products_are_counted_from_their_shapes_and_times_added_by_kind() {
        let text = profile(&[
            event("MatMul", r#"{"float": [2, 3, 5]}"#, "[2, 3, 7]", 4),
            event("MatMul", r#"{"float": [6, 5]}, {"float": [5, 7]}"#, "[6, 7]", 6),
            event("Gelu", r#"{"float": [2, 3, 7]}"#, "[2, 3, 7]", 1),
            event(
                "MultiHeadAttention",
                r#"{"float": [2, 3, 8]}, {"float": [2, 4, 8]}, {"float": [2, 4, 8]}, {"int32": [2, 4]}"#,
                "[2, 3, 8]",
                2,
            ),
        ]);
        let runs = runs(&text).unwrap();
        // Products: 2·6·5·7 each. Attention: scores and mean, 2·(2·3·4)·8 each.
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].operations, f64::from(2 * 420 + 2 * 384));
        assert_eq!(runs[0].time["MatMul"], 10.0);
        assert_eq!(runs[0].time["Gelu"], 1.0);
    }

    #[test]
    fn integer_products_are_not_taken_for_others() {
        let text = profile(&[event("MatMulIntegerToFloat", r#"{"uint8": [6, 5]}"#, "[6, 7]", 4)]);
        assert!(runs(&text).unwrap_err().to_string().contains("integers"));
        assert!(runs("{").is_err());
    }
}
