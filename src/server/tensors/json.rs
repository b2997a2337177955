//! JSON with base64, for clients that have only a JSON parser.

use std::io::Write;

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::Serialize;

use super::{AnswerTensor, ElementType, write_row};

#[derive(Serialize)]
struct TensorHead<'a> {
    name: &'a str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    channels: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stride: Option<usize>,
    dtype: ElementType,
}

/// `{…head, "results": [{…item, "features": [{…, "data": "<base64>"}]}]}`. Items are JSON objects that are not empty.
/// An item with a row gets that row of every tensor.
pub(in crate::server) fn json(
    head: &impl Serialize,
    items: &[(impl Serialize, Option<usize>)],
    tensors: &[AnswerTensor<'_>],
    dtype: ElementType,
) -> Vec<u8> {
    let data: usize = tensors.iter().map(|tensor| tensor.bytes(dtype) * 4 / 3 + 256).sum();
    let mut out = Vec::with_capacity(data + 2048 * (items.len() + 1));
    open_object(&mut out, head, "\"results\":[");
    for (i, (item, row)) in items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        let Some(row) = row else {
            // Strings and finite numbers always serialise.
            let _ = serde_json::to_writer(&mut out, item);
            continue;
        };
        open_object(&mut out, item, "\"features\":[");
        for (i, tensor) in tensors.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            let map = (tensor.stride > 0).then_some(());
            let head = TensorHead {
                name: &tensor.name,
                shape: &tensor.shape,
                channels: map.and(tensor.shape.first().copied()),
                stride: map.map(|()| tensor.stride),
                dtype,
            };
            open_object(&mut out, &head, "\"data\":\"");
            let mut base64 = EncoderWriter::new(&mut out, &STANDARD);
            let elements = tensor.rows.get(*row).copied().unwrap_or_default();
            write_row(elements, tensor.format(dtype), |bytes| {
                // Writing to memory does not fail.
                let _ = base64.write_all(bytes);
            });
            let _ = base64.finish();
            drop(base64);
            out.extend_from_slice(b"\"}");
        }
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"]}");
    out
}

/// Writes an object without its closing brace, and the name of one more member.
fn open_object(out: &mut Vec<u8>, object: &impl Serialize, member: &str) {
    let _ = serde_json::to_writer(&mut *out, object);
    out.pop();
    out.push(b',');
    out.extend_from_slice(member.as_bytes());
}
