//! The constants of a serialised model, for a runtime that shares them between sessions.

use prost::Message;

use super::Tensor;
use super::onnx::proto::ModelProto;
use super::onnx::proto::tensor_proto::{DataLocation, DataType};

/// Constants of fewer elements are not worth sharing.
const FEW: usize = 256;

/// The names and values of a model's larger f32 constants; none if `bytes` is no ONNX model.
#[must_use]
pub fn initializers(bytes: &[u8]) -> Vec<(String, Tensor)> {
    let Some(graph) = ModelProto::decode(bytes).ok().and_then(|model| model.graph) else { return Vec::new() };
    let mut tensors = Vec::new();
    for tensor in graph.initializer {
        let here =
            tensor.data_type == i32::from(DataType::Float) && tensor.data_location != i32::from(DataLocation::External);
        let (values, rest) = tensor.raw_data.as_chunks::<4>();
        let shape: Vec<usize> = tensor.dims.iter().filter_map(|d| usize::try_from(*d).ok()).collect();
        if here && rest.is_empty() && values.len() >= FEW && shape.iter().product::<usize>() == values.len() {
            let data = values.iter().map(|v| f32::from_le_bytes(*v)).collect();
            tensors.push((tensor.name, Tensor { shape, data }));
        }
    }
    tensors
}
