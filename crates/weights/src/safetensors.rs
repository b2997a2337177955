//! The safetensors file format, through the `safetensors` crate: F32, F16 and BF16 elements become f32.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::{TensorSource, WeightsError};

/// An open safetensors file; borrows the bytes, converts a tensor only when it is read.
#[derive(Debug)]
pub struct SafetensorsFile<'a>(SafeTensors<'a>);

impl<'a> SafetensorsFile<'a> {
    /// Parses the header of `bytes` and checks that every tensor lies inside the file.
    ///
    /// # Errors
    /// [`WeightsError::Format`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        SafeTensors::deserialize(bytes).map(Self).map_err(bad)
    }
}

fn bad(error: SafeTensorError) -> WeightsError {
    WeightsError::Format { kind: "safetensors", reason: error.to_string() }
}

impl TensorSource for SafetensorsFile<'_> {
    fn shape(&self, key: &str, _wanted: &[usize]) -> Option<Vec<usize>> {
        self.0.tensor(key).ok().map(|t| t.shape().to_vec())
    }

    fn read(&self, key: &str, _shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.0.tensor(key).map_err(bad)?;
        let bytes = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::BF16 => Ok(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            other => Err(WeightsError::Dtype { key: key.to_owned(), found: format!("{other:?}") }),
        }
    }

    fn keys(&self) -> Vec<String> {
        self.0.names().into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use safetensors::serialize;
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn all_three_float_types_read_as_f32_and_others_are_refused() {
        let values = [1.5f32, -0.25];
        let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let bf16s: Vec<u8> = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let ints = [0u8; 16];
        let view = |dtype, data| TensorView::new(dtype, vec![2], data).unwrap();
        let file = serialize(
            [
                ("a", view(Dtype::F32, &f32s)),
                ("b", view(Dtype::F16, &f16s)),
                ("c", view(Dtype::BF16, &bf16s)),
                ("d", view(Dtype::I64, &ints)),
            ],
            None,
        )
        .unwrap();
        let file = SafetensorsFile::parse(&file).unwrap();
        for key in ["a", "b", "c"] {
            assert_eq!(file.read(key, &[2]).unwrap(), values, "{key}");
        }
        assert_eq!(file.read("d", &[2]), Err(WeightsError::Dtype { key: "d".into(), found: "I64".into() }));
        assert_eq!(file.shape("a", &[]), Some(vec![2]));
        assert_eq!(file.shape("nothing", &[]), None);
    }

    #[test]
    fn a_header_longer_than_the_file_is_refused_without_allocating_it() {
        let mut bytes = (u64::from(u32::MAX)).to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        assert!(matches!(SafetensorsFile::parse(&bytes), Err(WeightsError::Format { .. })));
    }
}
