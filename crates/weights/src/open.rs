//! Chooses the reader of a file of weights by its first bytes, because names are ambiguous (`.bin`, `.pth.tar`).

use super::{PytorchFile, SafetensorsFile, TensorSource, WeightsError, pytorch};

/// Opens `bytes` with the reader for their format: a safetensors file or a PyTorch checkpoint.
///
/// # Errors
/// [`WeightsError::Unknown`] if they are neither; otherwise the reader's error.
pub fn open(bytes: &[u8]) -> Result<Box<dyn TensorSource + '_>, WeightsError> {
    // A safetensors file starts with the header's length in eight bytes, then JSON.
    if bytes.get(8) == Some(&b'{') {
        return Ok(Box::new(SafetensorsFile::parse(bytes)?));
    }
    if pytorch::looks_like(bytes) {
        return Ok(Box::new(PytorchFile::parse(bytes)?));
    }
    let found = match bytes {
        [] => "an empty file".to_owned(),
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "a pointer of Git LFS: fetch the file itself with `git lfs pull`".to_owned()
        }
        _ if bytes.trim_ascii_start().starts_with(b"<") => "a web page: download the file itself".to_owned(),
        _ => {
            let start: Vec<_> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("a file that starts with {}", start.join(" "))
        }
    };
    Err(WeightsError::Unknown(found))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        open(bytes).err().unwrap().to_string()
    }

    #[test]
    fn safetensors_are_recognised_by_their_header() {
        let data = 1.5f32.to_le_bytes();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &data).unwrap();
        let bytes = safetensors::serialize([("w", view)], None).unwrap();
        assert_eq!(open(&bytes).unwrap().read("w", &[1]).unwrap(), [1.5]);
        let text = error(b"\xff\xff\xff\xff\0\0\0\0{}");
        assert!(text.starts_with("not a readable safetensors file: "), "{text}");
    }

    #[test]
    fn zips_and_older_checkpoints_go_to_the_pytorch_reader() {
        for start in [&b"PK\x03\x04"[..], b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."] {
            let text = error(start);
            assert!(text.starts_with("not a readable PyTorch file: "), "{text}");
        }
    }

    #[test]
    fn the_error_describes_a_file_of_another_kind() {
        let expected = "expected a safetensors file or a PyTorch checkpoint, found";
        assert_eq!(error(b""), format!("{expected} an empty file"));
        assert_eq!(error(b"\x08\x0a\x12"), format!("{expected} a file that starts with 08 0a 12"));
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
        assert!(error(pointer.as_bytes()).ends_with("fetch the file itself with `git lfs pull`"));
        assert!(error(b"\n<!DOCTYPE html>").ends_with("a web page: download the file itself"));
    }
}
