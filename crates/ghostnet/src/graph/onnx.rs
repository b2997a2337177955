//! Serialisation: a finished [`Graph`] becomes an ONNX `ModelProto`.

use std::collections::BTreeSet;

use prost::Message;

use super::{BATCH_DIM, Dim, Graph, Value};

/// The messages of `proto/onnx.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub(super) mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

use proto::attribute_proto::AttributeType;
use proto::tensor_proto::DataType;

/// The producer name in the written files.
const PRODUCER: &str = "ghostserve";

/// The ONNX IR version of the written files. Every runtime released since 2023 reads it.
const IR_VERSION: i64 = 8;

/// The version of ONNX's operator set in the written files. Every runtime released since 2023 reads it.
const OPSET: i64 = 18;

/// The identity of an operator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operator {
    /// The domain that defines the operator; empty for ONNX's own operators.
    pub(super) domain: &'static str,
    pub(super) name: &'static str,
}

impl Operator {
    /// An operator of ONNX's own domain.
    pub(super) const fn onnx(name: &'static str) -> Self {
        Self { domain: "", name }
    }
}

/// One use of an operator. It makes one value, whose name is also the node's name.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) operator: Operator,
    /// Names of the inputs; empty for an optional input that is absent.
    pub(super) inputs: Vec<String>,
    pub(super) output: String,
    pub(super) attributes: Vec<Attribute>,
}

/// A named constant of the graph.
#[derive(Debug)]
pub(super) struct Constant {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) data: ConstantData,
}

/// The elements of a [`Constant`], row-major.
#[derive(Debug)]
pub(super) enum ConstantData {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

/// A named parameter of an operator.
#[derive(Debug)]
pub(super) struct Attribute(proto::AttributeProto);

impl Attribute {
    pub(super) fn int(name: &str, value: usize) -> Self {
        Self(proto::AttributeProto { i: Some(value as i64), ..Self::typed(name, AttributeType::Int) })
    }

    pub(super) fn ints(name: &str, values: &[usize]) -> Self {
        let ints = values.iter().map(|&v| v as i64).collect();
        Self(proto::AttributeProto { ints, ..Self::typed(name, AttributeType::Ints) })
    }

    pub(super) fn float(name: &str, value: f32) -> Self {
        Self(proto::AttributeProto { f: Some(value), ..Self::typed(name, AttributeType::Float) })
    }

    pub(super) fn floats(name: &str, values: &[f32]) -> Self {
        Self(proto::AttributeProto { floats: values.to_vec(), ..Self::typed(name, AttributeType::Floats) })
    }

    pub(super) fn string(name: &str, value: &str) -> Self {
        Self(proto::AttributeProto { s: Some(value.into()), ..Self::typed(name, AttributeType::String) })
    }

    fn typed(name: &str, r#type: AttributeType) -> proto::AttributeProto {
        proto::AttributeProto { name: name.to_owned(), r#type: r#type.into(), ..Default::default() }
    }
}

impl Graph {
    /// Encodes the graph as the bytes of an ONNX file. `metadata` is stored as key-value pairs that other tools show.
    ///
    /// The file contains only the nodes and constants that an output needs.
    #[must_use]
    pub fn into_onnx(mut self, metadata: &[(&str, String)]) -> Vec<u8> {
        self.prune();
        let domains: BTreeSet<_> = self.nodes.iter().map(|n| n.operator.domain).filter(|d| !d.is_empty()).collect();
        let opset = |domain: &str, version| proto::OperatorSetIdProto { domain: domain.to_owned(), version };
        let opset_import = std::iter::once(opset("", OPSET)).chain(domains.into_iter().map(|d| opset(d, 1))).collect();
        let describe = |values: Vec<Value>| values.into_iter().map(value_info_proto).collect();
        let graph = proto::GraphProto {
            name: self.name,
            node: self.nodes.into_iter().map(node_proto).collect(),
            initializer: self.constants.into_iter().map(tensor_proto).collect(),
            input: describe(self.inputs),
            output: describe(self.outputs),
            ..Default::default()
        };
        let model = proto::ModelProto {
            ir_version: IR_VERSION,
            producer_name: PRODUCER.to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            opset_import,
            metadata_props: metadata
                .iter()
                .map(|(key, value)| proto::StringStringEntryProto { key: (*key).to_owned(), value: value.clone() })
                .collect(),
            ..Default::default()
        };
        model.encode_to_vec()
    }
}

fn node_proto(node: Node) -> proto::NodeProto {
    proto::NodeProto {
        input: node.inputs,
        name: node.output.clone(),
        output: vec![node.output],
        op_type: node.operator.name.to_owned(),
        domain: node.operator.domain.to_owned(),
        attribute: node.attributes.into_iter().map(|a| a.0).collect(),
        ..Default::default()
    }
}

fn tensor_proto(constant: Constant) -> proto::TensorProto {
    let (data_type, raw): (_, Vec<u8>) = match constant.data {
        ConstantData::F32(values) => (DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        ConstantData::I64(values) => (DataType::Int64, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    proto::TensorProto {
        name: constant.name,
        dims: constant.shape.iter().map(|&d| d as i64).collect(),
        data_type: data_type.into(),
        raw_data: raw.into(),
        ..Default::default()
    }
}

fn value_info_proto(value: Value) -> proto::ValueInfoProto {
    use proto::tensor_shape_proto::{Dimension, dimension};
    let dim = value
        .shape
        .0
        .iter()
        .map(|dim| Dimension {
            value: Some(match dim {
                Dim::Batch => dimension::Value::DimParam(BATCH_DIM.to_owned()),
                Dim::Fixed(n) => dimension::Value::DimValue(*n as i64),
            }),
        })
        .collect();
    let tensor =
        proto::type_proto::Tensor { elem_type: DataType::Float.into(), shape: Some(proto::TensorShapeProto { dim }) };
    proto::ValueInfoProto {
        name: value.name,
        r#type: Some(proto::TypeProto { value: Some(proto::type_proto::Value::TensorType(tensor)) }),
        ..Default::default()
    }
}
