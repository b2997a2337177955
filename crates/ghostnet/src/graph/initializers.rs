//! Reads the constants of a serialised model, for a runtime that shares them between sessions.

use prost::Message;

use super::Tensor;
use super::onnx::proto::ModelProto;
use super::onnx::proto::tensor_proto::{DataLocation, DataType};

/// The fewest elements of a returned constant. Sharing smaller ones saves nothing.
const MIN_ELEMENTS: usize = 256;

/// Names and values of a model's f32 constants with at least 256 elements. Returns none if `bytes` is not an ONNX
/// model.
#[must_use]
pub fn initializers(bytes: &[u8]) -> Vec<(String, Tensor)> {
    let Some(graph) = ModelProto::decode(bytes).ok().and_then(|model| model.graph) else { return Vec::new() };
    let mut tensors = Vec::new();
    for tensor in graph.initializer {
        let is_embedded_f32 =
            tensor.data_type == i32::from(DataType::Float) && tensor.data_location != i32::from(DataLocation::External);
        let (values, rest) = tensor.raw_data.as_chunks::<4>();
        let shape: Vec<usize> = tensor.dims.iter().filter_map(|d| usize::try_from(*d).ok()).collect();
        if is_embedded_f32
            && rest.is_empty()
            && values.len() >= MIN_ELEMENTS
            && shape.iter().product::<usize>() == values.len()
        {
            let data = values.iter().map(|v| f32::from_le_bytes(*v)).collect();
            tensors.push((tensor.name, Tensor { shape, data }));
        }
    }
    tensors
}
