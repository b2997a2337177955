//! A tensor in a checkpoint: bytes of a storage, seen through an offset and strides.
//!
//! [`Tensor::resolve`] holds what the pickle says against the archive, once; after that reading cannot leave the storage.

use half::{bf16, f16};

use super::value::{Dtype, View};
use super::{bad, shown};
use crate::WeightsError;

/// A view that repeats its storage's elements (stride 0, as `expand` makes) may have this many. Only the file's size bounds
/// others.
const MAX_REPEATED: usize = 1 << 24;

/// A tensor whose elements are known to lie inside its storage.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    /// The whole storage, a whole number of elements.
    storage: &'a [u8],
    dtype: Dtype,
    offset: usize,
    /// Size of each dimension, outermost first.
    pub(super) shape: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a> Tensor<'a> {
    /// The tensor `key`, which the pickle describes as `view`; `storage` are the bytes of its storage's entry.
    ///
    /// # Errors
    /// [`WeightsError::Format`]: the storage has another length than the pickle says, or elements lie outside it.
    pub(super) fn resolve(key: &str, view: &View<'_>, storage: Option<&'a [u8]>) -> Result<Self, WeightsError> {
        let View { storage: named, dtype, offset, shape, strides } = view;
        let (key, entry) = (shown(key), format!("data/{}", shown(named.key)));
        let storage =
            storage.ok_or_else(|| bad(format!("tensor `{key}`: expected a zip entry `{entry}`, found none")))?;
        let expected = named.len.checked_mul(named.dtype.map_or(1, Dtype::size));
        if expected != Some(storage.len()) {
            let expected = expected.map_or("more than fits memory".to_owned(), |bytes| bytes.to_string());
            return Err(bad(format!(
                "tensor `{key}`: expected {expected} bytes in the zip entry `{entry}`, found {}",
                storage.len()
            )));
        }
        let there = storage.len() / dtype.size();
        let outside = || {
            bad(format!(
                "tensor `{key}`: expected its elements among the {there} of its storage, \
                 found offset {offset}, shape {shape:?}, strides {strides:?}"
            ))
        };
        // `None` stands for an empty tensor: no element can be outside.
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
        if last.is_some_and(|last| last >= there) || (count > there && count > MAX_REPEATED) {
            return Err(outside());
        }
        Ok(Self { storage, dtype: *dtype, offset: *offset, shape: shape.clone(), strides: strides.clone() })
    }

    /// The elements, row-major, as f32.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for types other than floats.
    pub(super) fn read(&self, key: &str) -> Result<Vec<f32>, WeightsError> {
        match self.dtype {
            Dtype::F32 => Ok(self.gather(f32::from_le_bytes)),
            Dtype::F16 => Ok(self.gather(|bytes| f16::from_le_bytes(bytes).to_f32())),
            Dtype::Bf16 => Ok(self.gather(|bytes| bf16::from_le_bytes(bytes).to_f32())),
            // Rounded to nearest; what is too large becomes infinite, and is refused where weights are asked for.
            Dtype::F64 => Ok(self.gather(|bytes| f64::from_le_bytes(bytes) as f32)),
            Dtype::Other(name, _) => Err(WeightsError::Dtype { key: key.to_owned(), found: name.to_owned() }),
        }
    }

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
            // Like an odometer: a dimension that is through goes back to its start, and the next one moves on.
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

    /// Whether the elements lie in order without gaps. Strides of dimensions of size 1 mean nothing.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}
