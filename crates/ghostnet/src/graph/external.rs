//! A check of foreign ONNX files: tensors that are stored in separate files must stay inside the model's folder.
//!
//! An ONNX file may name a path such as `../../etc/something` for its weights. A runtime that follows the path reads
//! any file that the server may read. The check visits every field in which the format permits a tensor, before the
//! runtime reads the file.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use prost::Message;

use super::onnx::proto;

/// Reasons why a foreign ONNX file is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ExternalDataError {
    /// The file is not an ONNX file, or is damaged.
    #[error("it is not a readable ONNX model: {0}")]
    NotOnnx(#[from] prost::DecodeError),
    /// A tensor's data is outside the folder of the model.
    #[error(
        "tensor `{tensor}` keeps its data in `{location}`, which is outside the model's folder; save the model with \
         its external data beside it"
    )]
    Outside {
        /// The tensor's name.
        tensor: String,
        /// The path in the file.
        location: String,
    },
}

/// Checks that every external-data location in the ONNX file `bytes` is a relative path that stays below the file's
/// folder.
///
/// # Errors
/// The file is not an ONNX model, or a location is absolute or leaves the folder with `..`.
pub fn check_external_data(bytes: &[u8]) -> Result<(), ExternalDataError> {
    visit_tensors(&proto::ModelProto::decode(bytes)?, &mut check_tensor)
}

/// The paths of all files in which `model` keeps tensors.
pub(super) fn external_locations(model: &proto::ModelProto) -> BTreeSet<String> {
    let mut locations = BTreeSet::new();
    let collected: Result<(), ExternalDataError> = visit_tensors(model, &mut |tensor| {
        locations.extend(locations_of(tensor).map(str::to_owned));
        Ok(())
    });
    // The closure returns no error.
    let _ = collected;
    locations
}

/// A function that is called for each tensor until one is refused.
type Visitor<'a> = &'a mut dyn FnMut(&proto::TensorProto) -> Result<(), ExternalDataError>;

/// Calls `visit` for every tensor of a model.
fn visit_tensors(model: &proto::ModelProto, visit: Visitor<'_>) -> Result<(), ExternalDataError> {
    if let Some(graph) = &model.graph {
        visit_graph(graph, visit)?;
    }
    model.functions.iter().try_for_each(|f| visit_nodes(&f.node, visit))
}

fn visit_graph(graph: &proto::GraphProto, visit: Visitor<'_>) -> Result<(), ExternalDataError> {
    graph.initializer.iter().try_for_each(&mut *visit)?;
    graph.sparse_initializer.iter().try_for_each(|sparse| visit_sparse(sparse, visit))?;
    visit_nodes(&graph.node, visit)
}

fn visit_nodes(nodes: &[proto::NodeProto], visit: Visitor<'_>) -> Result<(), ExternalDataError> {
    for attribute in nodes.iter().flat_map(|n| &n.attribute) {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(&mut *visit)?;
        let mut sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        sparse.try_for_each(|sparse| visit_sparse(sparse, visit))?;
        attribute.g.iter().chain(&attribute.graphs).try_for_each(|graph| visit_graph(graph, visit))?;
    }
    Ok(())
}

fn visit_sparse(sparse: &proto::SparseTensorProto, visit: Visitor<'_>) -> Result<(), ExternalDataError> {
    sparse.values.iter().chain(&sparse.indices).try_for_each(visit)
}

/// The paths that a tensor names. An entry counts for every `data_location`: a reader may look only at its presence.
fn locations_of(tensor: &proto::TensorProto) -> impl Iterator<Item = &str> {
    tensor.external_data.iter().filter(|e| e.key == "location").map(|e| &e.value[..])
}

fn check_tensor(tensor: &proto::TensorProto) -> Result<(), ExternalDataError> {
    for location in locations_of(tensor) {
        let inside = Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(ExternalDataError::Outside { tensor: tensor.name.clone(), location: location.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn model_with_location(location: &str) -> Vec<u8> {
        let tensor = proto::TensorProto {
            name: "w".into(),
            external_data: vec![proto::StringStringEntryProto { key: "location".into(), value: location.into() }],
            ..Default::default()
        };
        let inner = proto::GraphProto { initializer: vec![tensor], ..Default::default() };
        let branch = proto::AttributeProto { name: "then_branch".into(), g: Some(inner), ..Default::default() };
        let node = proto::NodeProto { op_type: "If".into(), attribute: vec![branch], ..Default::default() };
        let graph = proto::GraphProto { node: vec![node], ..Default::default() };
        proto::ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn data_beside_the_model_is_accepted() {
        check_external_data(&model_with_location("weights.bin")).unwrap();
        check_external_data(&model_with_location("./parts/weights.bin")).unwrap();
    }

    #[test]
    fn data_elsewhere_is_refused_by_name_even_in_a_subgraph() {
        for location in ["../secret", "/etc/passwd", "parts/../../secret"] {
            let error = check_external_data(&model_with_location(location)).unwrap_err().to_string();
            assert!(error.contains('w') && error.contains(location), "{error}");
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(check_external_data(b"not a model"), Err(ExternalDataError::NotOnnx(_))));
    }
}
