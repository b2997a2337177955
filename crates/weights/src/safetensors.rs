//! Reads the safetensors format with the `safetensors` crate. F32, F16 and BF16 elements become f32.

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use super::{TensorSource, WeightsError};

/// Largest header accepted, bytes. An entry takes about a hundred: a network of a thousand tensors needs a tenth of a
/// mebibyte. The parsed header takes many times its length, and the `safetensors` crate alone accepts 100 MB.
const MAX_HEADER: u64 = 8 << 20;

/// An open safetensors file. It borrows the bytes and converts a tensor only when it is read.
#[derive(Debug)]
pub struct SafetensorsFile<'a>(SafeTensors<'a>);

impl<'a> SafetensorsFile<'a> {
    /// Parses the header of `bytes` and checks that every tensor lies inside the file.
    ///
    /// # Errors
    /// [`WeightsError::Format`]: it is not such a file, cut off, contradicts itself, or its header exceeds 8 MiB.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        if let Some(len) = bytes.first_chunk().map(|len| u64::from_le_bytes(*len))
            && len > MAX_HEADER
        {
            return Err(bad(format!("expected a header of at most {MAX_HEADER} bytes, found {len}")));
        }
        SafeTensors::deserialize(bytes).map(Self).map_err(unreadable)
    }
}

/// A [`WeightsError::Format`] of a safetensors file.
fn bad(reason: String) -> WeightsError {
    WeightsError::Format { kind: "safetensors", reason }
}

fn unreadable(error: SafeTensorError) -> WeightsError {
    bad(error.to_string())
}

impl TensorSource for SafetensorsFile<'_> {
    fn shape(&self, key: &str, _expected: &[usize]) -> Option<Vec<usize>> {
        self.0.tensor(key).ok().map(|t| t.shape().to_vec())
    }

    fn read(&self, key: &str, _shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.0.tensor(key).map_err(unreadable)?;
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

    #[test]
    fn a_header_of_more_than_8_mib_is_refused() {
        // One empty tensor, and spaces up to the length: valid but for its size.
        let file = |len: usize| {
            let mut header = br#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#.to_vec();
            header.resize(len, b' ');
            [&(len as u64).to_le_bytes()[..], &header].concat()
        };
        let largest = file(8 << 20);
        assert_eq!(SafetensorsFile::parse(&largest).unwrap().keys(), ["w"]);
        let error = SafetensorsFile::parse(&file((8 << 20) + 1)).unwrap_err().to_string();
        assert_eq!(error, "not a readable safetensors file: expected a header of at most 8388608 bytes, found 8388609");
    }
}
