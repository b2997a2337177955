//! The outputs of a run, image by image, in the memory where the runtime wrote them.

use std::sync::Arc;

use ort::value::DynValue;

use crate::batch::ModelFailure;

/// One image's part of the output tensors of a run. The tensors stay where the runtime wrote them while any image of
/// the batch is in use, so that a response is written from there without another copy.
#[derive(Clone, Debug)]
pub struct RowOutputs {
    batch: Arc<Vec<BatchTensor>>,
    row: usize,
}

/// An output tensor of a whole batch.
#[derive(Debug)]
struct BatchTensor {
    value: DynValue,
    /// The shape of one image's part.
    shape: Vec<usize>,
    /// Elements of one image's part.
    elements: usize,
}

impl RowOutputs {
    /// The outputs of the first `rows` images, from tensors of `batch` images.
    pub(super) fn of_batch(
        tensors: Vec<DynValue>,
        batch: usize,
        rows: usize,
    ) -> Result<impl Iterator<Item = Self>, ModelFailure> {
        let batch_tensor = |value: DynValue| {
            let (dims, data) = value.try_extract_tensor::<f32>().map_err(|e| ModelFailure(e.to_string()))?;
            let shape: Vec<usize> = dims.iter().skip(1).map(|d| usize::try_from(*d).unwrap_or_default()).collect();
            let elements = shape.iter().product();
            if dims.first().copied() != Some(batch as i64) || data.len() != batch * elements {
                return Err(ModelFailure(format!("expected {batch} rows, found a tensor of {dims:?}")));
            }
            Ok(BatchTensor { value, shape, elements })
        };
        let batch = Arc::new(tensors.into_iter().map(batch_tensor).collect::<Result<Vec<_>, _>>()?);
        Ok((0..rows).map(move |row| Self { batch: Arc::clone(&batch), row }))
    }

    /// The shape of an output, without the batch dimension.
    #[must_use]
    pub fn shape(&self, output: usize) -> &[usize] {
        self.batch.get(output).map_or(&[], |tensor| &tensor.shape)
    }

    /// The elements of an output, row-major; empty if there is no such output.
    #[must_use]
    pub fn data(&self, output: usize) -> &[f32] {
        let Some(tensor) = self.batch.get(output) else { return &[] };
        let all = tensor.value.try_extract_tensor::<f32>().map(|(_, data)| data).unwrap_or_default();
        let start = self.row * tensor.elements;
        all.get(start..start + tensor.elements).unwrap_or_default()
    }
}
