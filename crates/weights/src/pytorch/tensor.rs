//! A tensor in a checkpoint: bytes of a storage, seen through an offset and strides.
//!
//! [`StoredTensor::resolve`] checks the pickle's description against the archive once. After that, reading cannot leave
//! the storage.

use half::{bf16, f16};

use super::value::{ElementType, TensorDescription};
use super::{bad, shown};
use crate::WeightsError;

/// Largest number of elements of a view that repeats its storage's elements (stride 0, as `expand` makes). Other views
/// are bounded by the file's size.
const MAX_REPEATED: usize = 1 << 24;

/// A tensor whose elements are known to lie inside its storage.
#[derive(Debug)]
pub(super) struct StoredTensor<'a> {
    /// The whole storage, a whole number of elements.
    storage: &'a [u8],
    dtype: ElementType,
    /// Position of the first element in the storage, in elements.
    offset: usize,
    /// Size of each dimension, outermost first.
    pub(super) shape: Vec<usize>,
    /// For each dimension, the distance between neighbours, in elements.
    strides: Vec<usize>,
}

impl<'a> StoredTensor<'a> {
    /// The tensor `key` of the pickle's `description`; `storage` is the data of its storage's entry.
    ///
    /// # Errors
    /// [`WeightsError::Format`]: the storage has another length than the pickle says, or elements lie outside it.
    pub(super) fn resolve(
        key: &str,
        description: &TensorDescription<'_>,
        storage: Option<&'a [u8]>,
    ) -> Result<Self, WeightsError> {
        let TensorDescription { storage: reference, dtype, offset, shape, strides } = description;
        let (key, entry) = (shown(key), format!("data/{}", shown(reference.key)));
        let storage =
            storage.ok_or_else(|| bad(format!("tensor `{key}`: expected a zip entry `{entry}`, found none")))?;
        let expected = reference.len.checked_mul(reference.dtype.map_or(1, ElementType::size));
        if expected != Some(storage.len()) {
            let expected = expected.map_or("more than fits memory".to_owned(), |bytes| bytes.to_string());
            return Err(bad(format!(
                "tensor `{key}`: expected {expected} bytes in the zip entry `{entry}`, found {}",
                storage.len()
            )));
        }
        let available = storage.len() / dtype.size();
        let outside = || {
            bad(format!(
                "tensor `{key}`: expected its elements among the {available} of its storage, \
                 found offset {offset}, shape {shape:?}, strides {strides:?}"
            ))
        };
        // Position of the last element; `None` for an empty tensor, of which no element can be outside.
        let mut last = Some(*offset);
        let mut count = 1usize;
        for (&size, &stride) in shape.iter().zip(strides) {
            count = count.checked_mul(size).ok_or_else(outside)?;
            last = match (last, size.checked_sub(1)) {
                (Some(last), Some(steps)) => {
                    let step = steps.checked_mul(stride).ok_or_else(outside)?;
                    Some(last.checked_add(step).ok_or_else(outside)?)
                }
                _ => None,
            };
        }
        if last.is_some_and(|last| last >= available) || (count > available && count > MAX_REPEATED) {
            return Err(outside());
        }
        Ok(Self { storage, dtype: *dtype, offset: *offset, shape: shape.clone(), strides: strides.clone() })
    }

    /// The elements, row-major, as f32.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for types other than floating point.
    pub(super) fn read(&self, key: &str) -> Result<Vec<f32>, WeightsError> {
        match self.dtype {
            ElementType::F32 => Ok(self.gather(f32::from_le_bytes)),
            ElementType::F16 => Ok(self.gather(|bytes| f16::from_le_bytes(bytes).to_f32())),
            ElementType::Bf16 => Ok(self.gather(|bytes| bf16::from_le_bytes(bytes).to_f32())),
            // Rounds to nearest. A value that is too large becomes infinite, which `Scope::get` refuses.
            ElementType::F64 => Ok(self.gather(|bytes| f64::from_le_bytes(bytes) as f32)),
            ElementType::Other(name, _) => Err(WeightsError::Dtype { key: key.to_owned(), found: name.to_owned() }),
        }
    }

    /// Converts the elements, `N` bytes each, in row-major order.
    fn gather<const N: usize>(&self, convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        let elements = self.storage.as_chunks::<N>().0;
        let count = self.shape.iter().product();
        if count == 0 {
            return Vec::new();
        }
        if self.is_contiguous() {
            return elements[self.offset..self.offset + count].iter().map(|bytes| convert(*bytes)).collect();
        }
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0; self.shape.len()];
        let mut position = self.offset;
        for _ in 0..count {
            values.push(convert(elements[position]));
            // Like an odometer: a dimension at its end returns to its start, and the next outer one advances.
            for dim in (0..index.len()).rev() {
                index[dim] += 1;
                if index[dim] < self.shape[dim] {
                    position += self.strides[dim];
                    break;
                }
                position -= (self.shape[dim] - 1) * self.strides[dim];
                index[dim] = 0;
            }
        }
        values
    }

    /// Whether the elements lie in order without gaps. Strides of dimensions of size 1 have no meaning.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}
