//! What a run put out, image by image, where the runtime left it.

use std::sync::Arc;

use ort::value::DynValue;

use crate::batch::ModelFailure;

/// One image's part of the tensors that a run put out. They stay where the runtime wrote them, for as long as any image of the
/// batch is in use: an answer is written from there, without another copy.
#[derive(Clone, Debug)]
pub struct RowOutputs {
    batch: Arc<Vec<Tensor>>,
    row: usize,
}

#[derive(Debug)]
struct Tensor {
    value: DynValue,
    /// Of one image.
    shape: Vec<usize>,
    elements: usize,
}

impl RowOutputs {
    /// The first `rows` images of tensors that hold `batch`.
    pub(super) fn of_batch(
        tensors: Vec<DynValue>,
        batch: usize,
        rows: usize,
    ) -> Result<impl Iterator<Item = Self>, ModelFailure> {
        let of = |value: DynValue| {
            let (dims, data) = value.try_extract_tensor::<f32>().map_err(|e| ModelFailure(e.to_string()))?;
            let shape: Vec<usize> = dims.iter().skip(1).map(|d| usize::try_from(*d).unwrap_or_default()).collect();
            let elements = shape.iter().product();
            if dims.first().copied() != Some(batch as i64) || data.len() != batch * elements {
                return Err(ModelFailure(format!("expected {batch} rows, found a tensor of {dims:?}")));
            }
            Ok(Tensor { value, shape, elements })
        };
        let batch = Arc::new(tensors.into_iter().map(of).collect::<Result<Vec<_>, _>>()?);
        Ok((0..rows).map(move |row| Self { batch: Arc::clone(&batch), row }))
    }

    /// The shape of an output, without the batch's dimension.
    #[must_use]
    pub fn shape(&self, output: usize) -> &[usize] {
        self.batch.get(output).map_or(&[], |tensor| &tensor.shape)
    }

    /// The elements of an output, row-major; none if there is no such output.
    #[must_use]
    pub fn data(&self, output: usize) -> &[f32] {
        let Some(tensor) = self.batch.get(output) else { return &[] };
        let all = tensor.value.try_extract_tensor::<f32>().map(|(_, data)| data).unwrap_or_default();
        let start = self.row * tensor.elements;
        all.get(start..start + tensor.elements).unwrap_or_default()
    }
}
