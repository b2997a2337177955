//! Describes a foreign ONNX file: its inputs and outputs, the files beside it, and whether its scores are already
//! probabilities.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use prost::Message;

use super::external::{ExternalDataError, check_external_data, external_locations};
use super::onnx::proto;
use proto::tensor_proto::DataType;

/// Number of nodes that are followed from an output to the function that makes its values.
const MAX_STEPS: usize = 16;

/// The parts of an ONNX file that say how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnnxSummary {
    /// What a run needs: the graph's inputs without those that have a default value.
    pub inputs: Vec<TensorSpec>,
    /// What a run returns.
    pub outputs: Vec<TensorSpec>,
    /// Paths of the files with further tensors, relative to the ONNX file.
    pub external_files: BTreeSet<String>,
}

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// ONNX's name of the element type in lower case, such as `float` or `uint8`.
    pub element: String,
    /// The dimensions; `None` if the file does not declare them.
    pub shape: Option<Vec<Dimension>>,
    /// The operator whose values an output has, such as `Softmax` or `Gemm`, past operators that only change the shape.
    /// `None` for an input.
    pub operator: Option<String>,
}

/// A dimension of a [`TensorSpec`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// A number.
    Fixed(usize),
    /// Any size; the file's name for it, which may be empty.
    Symbolic(String),
}

impl Dimension {
    /// The number; `None` for a dimension of any size.
    #[must_use]
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Self::Fixed(size) => Some(*size),
            Self::Symbolic(_) => None,
        }
    }
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dimension = |dimension: &Dimension| match dimension {
            Dimension::Fixed(size) => size.to_string(),
            Dimension::Symbolic(name) if name.is_empty() => "?".to_owned(),
            Dimension::Symbolic(name) => name.clone(),
        };
        let shape = self.shape.as_ref().map(|dims| dims.iter().map(dimension).collect::<Vec<_>>().join("x"));
        write!(f, "`{}`: {} {}", self.name, self.element, shape.unwrap_or_else(|| "of undeclared shape".to_owned()))
    }
}

impl OnnxSummary {
    /// Reads the ONNX file `bytes`. Checks that the files it names are beside it.
    ///
    /// # Errors
    /// The file is not an ONNX model, or keeps tensors outside its folder.
    pub fn parse(bytes: &[u8]) -> Result<Self, ExternalDataError> {
        check_external_data(bytes)?;
        let model = proto::ModelProto::decode(bytes)?;
        let external_files = external_locations(&model);
        let graph = model.graph.unwrap_or_default();
        let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| &tensor.name[..]).collect();
        let inputs = graph.input.iter().filter(|input| !constants.contains(&input.name[..]));
        let producers: HashMap<&str, &proto::NodeProto> =
            graph.node.iter().flat_map(|node| node.output.iter().map(move |name| (&name[..], node))).collect();
        let output = |value: &proto::ValueInfoProto| TensorSpec {
            operator: operator_of(&value.name, &producers),
            ..tensor_spec(value)
        };
        Ok(Self {
            inputs: inputs.map(tensor_spec).collect(),
            outputs: graph.output.iter().map(output).collect(),
            external_files,
        })
    }
}

/// The operator that computes the values called `name`.
fn operator_of(name: &str, producers: &HashMap<&str, &proto::NodeProto>) -> Option<String> {
    const SHAPE_ONLY: [&str; 6] = ["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];
    let mut node = producers.get(name)?;
    for _ in 0..MAX_STEPS {
        if !SHAPE_ONLY.contains(&&node.op_type[..]) {
            break;
        }
        let Some(before) = node.input.first().and_then(|input| producers.get(&input[..])) else { break };
        node = before;
    }
    Some(node.op_type.clone())
}

fn tensor_spec(value: &proto::ValueInfoProto) -> TensorSpec {
    let tensor = value.r#type.as_ref().and_then(|kind| kind.value.as_ref()).map(|kind| match kind {
        proto::type_proto::Value::TensorType(tensor) => tensor,
    });
    let element = tensor.map(|tensor| match DataType::try_from(tensor.elem_type) {
        Ok(kind) => kind.as_str_name().to_lowercase(),
        Err(_) => format!("type {}", tensor.elem_type),
    });
    let dimension = |dim: &proto::tensor_shape_proto::Dimension| match &dim.value {
        Some(proto::tensor_shape_proto::dimension::Value::DimValue(size)) => match usize::try_from(*size) {
            Ok(size) if size > 0 => Dimension::Fixed(size),
            // Some exporters write −1 or 0 for a dimension of any size.
            _ => Dimension::Symbolic(String::new()),
        },
        Some(proto::tensor_shape_proto::dimension::Value::DimParam(name)) => Dimension::Symbolic(name.clone()),
        None => Dimension::Symbolic(String::new()),
    };
    let shape = tensor.and_then(|tensor| tensor.shape.as_ref());
    TensorSpec {
        name: value.name.clone(),
        element: element.unwrap_or_else(|| "no tensor".to_owned()),
        shape: shape.map(|shape| shape.dim.iter().map(dimension).collect()),
        operator: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(kind: &str, input: &str, output: &str) -> proto::NodeProto {
        proto::NodeProto {
            op_type: kind.into(),
            input: vec![input.into()],
            output: vec![output.into()],
            ..Default::default()
        }
    }

    fn value(name: &str, element: DataType, dims: &[i64]) -> proto::ValueInfoProto {
        use proto::tensor_shape_proto::{Dimension, dimension::Value};
        let dim = |size: &i64| match size {
            0 => Dimension { value: Some(Value::DimParam("batch".into())) },
            size => Dimension { value: Some(Value::DimValue(*size)) },
        };
        let shape = Some(proto::TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let tensor = proto::type_proto::Tensor { elem_type: element.into(), shape };
        let kind = proto::TypeProto { value: Some(proto::type_proto::Value::TensorType(tensor)) };
        proto::ValueInfoProto { name: name.into(), r#type: Some(kind), ..Default::default() }
    }

    fn encode(graph: proto::GraphProto) -> Vec<u8> {
        proto::ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn inputs_outputs_and_the_last_function_are_found() {
        let weight = proto::TensorProto {
            name: "w".into(),
            external_data: vec![proto::StringStringEntryProto { key: "location".into(), value: "net.data".into() }],
            ..Default::default()
        };
        let bytes = encode(proto::GraphProto {
            // Old files list constants as inputs, too.
            input: vec![value("x", DataType::Float, &[0, 3, 32, 48]), value("w", DataType::Float, &[4])],
            output: vec![value("y", DataType::Float, &[0, 4]), value("z", DataType::Uint8, &[-1])],
            initializer: vec![weight],
            node: vec![node("Softmax", "x", "s"), node("Reshape", "s", "t"), node("Identity", "t", "y")],
            ..Default::default()
        });
        let summary = OnnxSummary::parse(&bytes).unwrap();
        assert_eq!(summary.inputs.len(), 1);
        assert_eq!(summary.inputs[0].to_string(), "`x`: float batchx3x32x48");
        assert_eq!(summary.outputs[0].operator.as_deref(), Some("Softmax"));
        assert_eq!((summary.outputs[1].to_string(), &summary.outputs[1].operator), ("`z`: uint8 ?".into(), &None));
        assert_eq!(summary.external_files, ["net.data".to_owned()].into());
    }

    #[test]
    fn circles_and_files_that_are_no_models_end() {
        let circle = encode(proto::GraphProto {
            output: vec![value("y", DataType::Float, &[0, 4])],
            node: vec![node("Identity", "y", "y")],
            ..Default::default()
        });
        assert_eq!(OnnxSummary::parse(&circle).unwrap().outputs[0].operator.as_deref(), Some("Identity"));
        assert!(OnnxSummary::parse(b"not a model").is_err());
    }
}
