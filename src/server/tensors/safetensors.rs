//! The safetensors container: eight bytes of length, a JSON header, the data.

use serde_json::{Map, Value, json};

use super::{AnswerTensor, ElementType, write_row};

/// A file of tensors whose first dimension is the images; `metadata` is text by name.
pub(in crate::server) fn safetensors(
    metadata: &[(&str, String)],
    tensors: &[AnswerTensor<'_>],
    dtype: ElementType,
) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<Value>());
    let name = match dtype {
        ElementType::F32 => "F32",
        ElementType::F16 => "F16",
    };
    let mut end = 0;
    for tensor in tensors {
        let begin = end;
        end += tensor.bytes(dtype);
        let entry = json!({ "dtype": name, "shape": tensor.stacked(), "data_offsets": [begin, end] });
        header.insert(tensor.name.clone(), entry);
    }
    // Maps of strings and numbers always serialise.
    let mut header = serde_json::to_vec(&header).unwrap_or_default();
    // Readers that map the file need aligned data.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(8 + header.len() + end);
    out.extend_from_slice(&(header.len() as u64).to_le_bytes());
    out.extend_from_slice(&header);
    for tensor in tensors {
        for row in &tensor.rows {
            write_row(row, tensor.format(dtype), |bytes| out.extend_from_slice(bytes));
        }
    }
    out
}
