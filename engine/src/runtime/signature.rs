//! What a graph's inputs and outputs must be (docs/bundle.md, "The graphs"), and the check against what they are.

use std::fmt;

use ort::value::{Outlet, TensorElementType, ValueType};

/// Element types that cross the border to ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    F32,
    F16,
    I64,
    I32,
    Bool,
}

/// One axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dimension {
    /// The batch: must be dynamic.
    Batch,
    /// Must be dynamic.
    Dynamic,
    /// The same, by its name in docs/bundle.md.
    Named(&'static str),
    /// This many, or dynamic.
    Fixed(usize),
    /// Anything.
    Any,
}

/// One input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSignature {
    pub(crate) name: String,
    pub(crate) element: Element,
    pub(crate) dimensions: Vec<Dimension>,
}

/// All inputs, and all outputs unless they are the graph's own affair. The order does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) inputs: Vec<TensorSignature>,
    pub(crate) outputs: Option<Vec<TensorSignature>>,
}

// === impl Element ===

impl Element {
    pub(crate) fn from_onnx(element: TensorElementType) -> Option<Element> {
        match element {
            TensorElementType::Float32 => Some(Element::F32),
            TensorElementType::Float16 => Some(Element::F16),
            TensorElementType::Int64 => Some(Element::I64),
            TensorElementType::Int32 => Some(Element::I32),
            TensorElementType::Bool => Some(Element::Bool),
            _ => None,
        }
    }

    pub(crate) fn to_onnx(self) -> TensorElementType {
        match self {
            Element::F32 => TensorElementType::Float32,
            Element::F16 => TensorElementType::Float16,
            Element::I64 => TensorElementType::Int64,
            Element::I32 => TensorElementType::Int32,
            Element::Bool => TensorElementType::Bool,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::I64 => "i64",
            Element::I32 => "i32",
            Element::Bool => "bool",
        })
    }
}

// === impl TensorSignature ===

impl TensorSignature {
    pub(crate) fn new(
        name: &str,
        element: Element,
        dimensions: impl Into<Vec<Dimension>>,
    ) -> TensorSignature {
        TensorSignature {
            name: name.to_owned(),
            element,
            dimensions: dimensions.into(),
        }
    }

    fn admits(&self, found: &ValueType) -> bool {
        let ValueType::Tensor { ty, shape, .. } = found else {
            return false;
        };
        Element::from_onnx(*ty) == Some(self.element)
            && shape.len() == self.dimensions.len()
            && shape
                .iter()
                .zip(&self.dimensions)
                .all(|(found, wanted)| match wanted {
                    Dimension::Batch | Dimension::Dynamic | Dimension::Named(_) => *found < 0,
                    Dimension::Any => true,
                    Dimension::Fixed(size) => *found < 0 || usize::try_from(*found) == Ok(*size),
                })
    }
}

impl fmt::Display for TensorSignature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dimensions: Vec<String> = self
            .dimensions
            .iter()
            .map(|dimension| match dimension {
                Dimension::Batch => "B".to_owned(),
                Dimension::Dynamic => "dynamic".to_owned(),
                Dimension::Named(name) => (*name).to_owned(),
                Dimension::Any => "any".to_owned(),
                Dimension::Fixed(size) => size.to_string(),
            })
            .collect();
        write!(formatter, "{} [{}]", self.element, dimensions.join(", "))
    }
}

// === impl Signature ===

impl Signature {
    /// Compares with a graph's inputs and outputs. The error is one line without the file's name.
    pub(crate) fn check(&self, inputs: &[Outlet], outputs: &[Outlet]) -> Result<(), String> {
        check_side("input", &self.inputs, inputs)?;
        match &self.outputs {
            Some(wanted) => check_side("output", wanted, outputs),
            None => Ok(()),
        }
    }
}

fn check_side(side: &str, wanted: &[TensorSignature], found: &[Outlet]) -> Result<(), String> {
    for signature in wanted {
        let Some(outlet) = found.iter().find(|outlet| outlet.name() == signature.name) else {
            let names: Vec<&str> = found.iter().map(Outlet::name).collect();
            return Err(format!(
                "has no {side} `{}` ({signature}); its {side}s are {}",
                signature.name,
                names.join(", ")
            ));
        };
        if !signature.admits(outlet.dtype()) {
            return Err(format!(
                "its {side} `{}` is {}, but must be {signature}",
                signature.name,
                describe(outlet.dtype())
            ));
        }
    }
    match found
        .iter()
        .find(|outlet| wanted.iter().all(|signature| signature.name != outlet.name()))
    {
        Some(outlet) => Err(format!(
            "has an {side} `{}` that docs/bundle.md does not know",
            outlet.name()
        )),
        None => Ok(()),
    }
}

/// A graph's input or output in the words of docs/bundle.md.
pub(crate) fn describe(found: &ValueType) -> String {
    match found {
        ValueType::Tensor { ty, shape, .. } => {
            let element =
                Element::from_onnx(*ty).map_or_else(|| format!("{ty:?}"), |element| element.to_string());
            let sides: Vec<String> = shape
                .iter()
                .map(|side| {
                    if *side < 0 {
                        "dynamic".to_owned()
                    } else {
                        side.to_string()
                    }
                })
                .collect();
            format!("{element} [{}]", sides.join(", "))
        }
        _ => "no tensor".to_owned(),
    }
}
