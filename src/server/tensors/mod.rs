//! Tensors in answers: elements of the requested type, in one of three containers.
//!
//! An element is converted and written into the answer's body straight from the runtime's output. There is no other
//! copy.

mod json;
mod npz;
mod safetensors;

pub(super) use json::json;
pub(super) use npz::npz;
pub(super) use safetensors::safetensors;

use half::f16;
use half::slice::HalfFloatSliceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of a tensor's elements; little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Dtype")]
pub(super) enum ElementType {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE half precision: 11 bits of the fraction, up to 65,504.
    F16,
}

impl ElementType {
    /// Bytes of one element.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// How elements are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct ElementFormat {
    pub(super) dtype: ElementType,
    /// Whether each row is scaled to length 1.
    pub(super) unit: bool,
}

/// A tensor of an answer: a row for each image that has no error.
pub(super) struct AnswerTensor<'a> {
    pub(super) name: String,
    /// The shape of one row.
    pub(super) shape: Vec<usize>,
    /// Pixels of the input per pixel of a map; 0 for tensors that are no maps.
    pub(super) stride: usize,
    pub(super) rows: Vec<&'a [f32]>,
    /// Whether each row is scaled to length 1.
    pub(super) unit: bool,
}

impl AnswerTensor<'_> {
    fn bytes(&self, dtype: ElementType) -> usize {
        self.rows.iter().map(|row| row.len()).sum::<usize>() * dtype.bytes()
    }

    fn format(&self, dtype: ElementType) -> ElementFormat {
        ElementFormat { dtype, unit: self.unit }
    }

    /// The shape with the images as the first dimension.
    fn stacked(&self) -> Vec<usize> {
        std::iter::once(self.rows.len()).chain(self.shape.iter().copied()).collect()
    }
}

/// Number of elements that are converted at a time. They stay in the first-level cache.
const BLOCK: usize = 1024;

/// Calls `out` with the bytes of a row's elements, in blocks.
pub(super) fn write_row(row: &[f32], format: ElementFormat, mut out: impl FnMut(&[u8])) {
    let ElementFormat { dtype, unit } = format;
    let norm = if unit { row.iter().map(|v| v * v).sum::<f32>().sqrt() } else { 1.0 };
    // A row of zeros has no direction and stays as it is.
    let scale = if norm > 0.0 { 1.0 / norm } else { 1.0 };
    let (mut scaled, mut halves, mut bytes) = ([0.0; BLOCK], [f16::ZERO; BLOCK], [0; 4 * BLOCK]);
    for block in row.chunks(BLOCK) {
        let values = if unit {
            scaled.iter_mut().zip(block).for_each(|(out, value)| *out = value * scale);
            &scaled[..block.len()]
        } else {
            block
        };
        let bytes = &mut bytes[..block.len() * dtype.bytes()];
        match dtype {
            ElementType::F32 => {
                let elements = bytes.as_chunks_mut::<4>().0;
                elements.iter_mut().zip(values).for_each(|(element, value)| *element = value.to_le_bytes());
            }
            ElementType::F16 => {
                let halves = &mut halves[..block.len()];
                halves.convert_from_f32_slice(values);
                let elements = bytes.as_chunks_mut::<2>().0;
                elements.iter_mut().zip(halves).for_each(|(element, value)| *element = value.to_le_bytes());
            }
        }
        out(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(row: &[f32], dtype: ElementType, unit: bool) -> Vec<u8> {
        let mut all = Vec::new();
        write_row(row, ElementFormat { dtype, unit }, |bytes| all.extend_from_slice(bytes));
        all
    }

    #[test]
    fn elements_are_little_endian_and_of_their_type() {
        let row: Vec<f32> = (0..2500u16).map(|i| f32::from(i) * 0.5 - 3.0).collect();
        let single: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(bytes(&row, ElementType::F32, false), single);
        let half: Vec<u8> = row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(bytes(&row, ElementType::F16, false), half);
    }

    #[test]
    fn a_unit_row_has_length_one_and_zeros_stay() {
        let of = |row: &[f32]| -> Vec<f32> {
            bytes(row, ElementType::F32, true).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        assert_eq!(of(&[3.0, 0.0, -4.0]), [0.6, 0.0, -0.8]);
        assert_eq!(of(&[0.0; 3]), [0.0; 3]);
    }
}
