//! Splits an input tensor into images.

use bytes::{BufMut, Bytes, BytesMut};

use super::INPUT;
use crate::preprocess::Source;
use crate::server::problem::Problem;
use crate::service::{Code, Error};
use crate::text::shortened;

/// An input tensor of a request.
#[derive(Debug)]
pub(in crate::server) struct InputTensor {
    pub(in crate::server) name: String,
    pub(in crate::server) datatype: String,
    pub(in crate::server) shape: Vec<i64>,
    pub(in crate::server) elements: Elements,
}

/// The elements of a tensor.
#[derive(Debug)]
pub(in crate::server) enum Elements {
    /// Little-endian bytes. Each element of BYTES has its length before it, in four bytes.
    Raw(Bytes),
    /// The elements of a type of numbers.
    Numbers(Vec<f32>),
    /// The elements of BYTES.
    Texts(Vec<Result<Bytes, Error>>),
}

fn invalid(detail: String) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

impl InputTensor {
    /// Splits the tensor into images, at most `max_images`.
    pub(super) fn images(self, max_images: usize) -> Result<Vec<Result<Source, Error>>, Problem> {
        let Self { name, datatype, shape, elements } = self;
        if name != INPUT {
            let name = shortened(&name, 100);
            return Err(invalid(format!("the model's input is `{INPUT}`, found `{name}`")));
        }
        let sides: Option<Vec<usize>> = shape.iter().map(|side| usize::try_from(*side).ok()).collect();
        let wrong = || {
            invalid(format!(
                "`{INPUT}` is BYTES [images, 1] (image files), UINT8 [images, height, width, 3] or FP32 [images, 3, \
                 height, width]; found {} {shape:?}",
                shortened(&datatype, 20)
            ))
        };
        let sides = sides.ok_or_else(wrong)?;
        let count = sides.first().copied().unwrap_or(0);
        if count > max_images {
            return Err(Problem::too_many_images(count, max_images));
        }
        match (datatype.as_str(), &sides[..]) {
            ("BYTES", [_] | [_, 1]) => files(elements, count),
            ("UINT8", [_, height, width, 3]) => {
                let (height, width) = side(*height).zip(side(*width)).ok_or_else(wrong)?;
                let bytes = elements.bytes_of(count, 3 * height as usize * width as usize, 1)?;
                Ok(bytes.into_iter().map(|rgb| Ok(Source::Pixels { width, height, rgb })).collect())
            }
            ("FP32", [_, 3, height, width]) => {
                let (height, width) = side(*height).zip(side(*width)).ok_or_else(wrong)?;
                let bytes = elements.bytes_of(count, 3 * height as usize * width as usize, 4)?;
                Ok(bytes.into_iter().map(|values| Ok(Source::Tensor { width, height, values })).collect())
            }
            _ => Err(wrong()),
        }
    }

    /// Height and width of a tensor that is the network's own input.
    pub(super) fn size(&self) -> Option<[usize; 2]> {
        match (self.datatype.as_str(), &self.shape[..]) {
            ("FP32", [_, _, height, width]) => Some([usize::try_from(*height).ok()?, usize::try_from(*width).ok()?]),
            _ => None,
        }
    }
}

/// A side of an image, if it is not out of range. The maximum is far above what is accepted, and far below an overflow.
fn side(side: usize) -> Option<u32> {
    (1..=65_535).contains(&side).then_some(side as u32)
}

fn files(elements: Elements, count: usize) -> Result<Vec<Result<Source, Error>>, Problem> {
    let texts = match elements {
        Elements::Texts(texts) => texts,
        Elements::Raw(bytes) => texts_of(bytes, count)?.into_iter().map(Ok).collect(),
        Elements::Numbers(_) => return Err(invalid("a tensor of BYTES holds texts, found numbers".to_owned())),
    };
    if texts.len() != count {
        return Err(invalid(format!("the shape of `{INPUT}` says {count} images, its data are {}", texts.len())));
    }
    Ok(texts.into_iter().map(|text| text.map(Source::File)).collect())
}

/// The elements of a tensor of BYTES, at most `max_texts`.
pub(in crate::server) fn texts_of(mut bytes: Bytes, max_texts: usize) -> Result<Vec<Bytes>, Problem> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        // Each of millions of empty elements would take ten times its four bytes.
        if texts.len() == max_texts {
            return Err(invalid(format!(
                "the shape of a tensor of BYTES says {max_texts} elements, its data are more"
            )));
        }
        let broken = || {
            invalid(
                "the data of a tensor of BYTES must be, for each element, four bytes of length and the element"
                    .to_owned(),
            )
        };
        let length = u32::from_le_bytes(*bytes.first_chunk().ok_or_else(broken)?) as usize;
        if bytes.len() - 4 < length {
            return Err(broken());
        }
        let _ = bytes.split_to(4);
        texts.push(bytes.split_to(length));
    }
    Ok(texts)
}

impl Elements {
    /// The bytes of each image of a tensor of numbers.
    fn bytes_of(self, images: usize, elements: usize, size: usize) -> Result<Vec<Bytes>, Problem> {
        let expected = images * elements;
        let bytes = match self {
            Self::Raw(bytes) => bytes,
            Self::Numbers(numbers) if size == 4 => {
                let mut bytes = BytesMut::with_capacity(numbers.len() * size);
                numbers.iter().for_each(|number| bytes.put_f32_le(*number));
                bytes.freeze()
            }
            Self::Numbers(numbers) => {
                let byte =
                    |number: &f32| (number.fract() == 0.0 && (0.0..=255.0).contains(number)).then_some(*number as u8);
                let bytes: Option<Vec<u8>> = numbers.iter().map(byte).collect();
                let bytes = bytes.ok_or_else(|| invalid("UINT8 is 0 to 255, whole numbers".to_owned()))?;
                bytes.into()
            }
            Self::Texts(_) => return Err(invalid("a tensor of numbers holds no texts".to_owned())),
        };
        if bytes.len() != expected * size {
            let found = bytes.len() / size;
            return Err(invalid(format!("the shape of `{INPUT}` says {expected} elements, its data are {found}")));
        }
        let bytes_each = elements * size;
        Ok((0..images).map(|i| bytes.slice(i * bytes_each..(i + 1) * bytes_each)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(datatype: &str, shape: &[i64], elements: Elements) -> Result<Vec<Result<Source, Error>>, Code> {
        let tensor =
            InputTensor { name: INPUT.to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec(), elements };
        tensor.images(4).map_err(|problem| problem.code)
    }

    fn raw(bytes: &'static [u8]) -> Elements {
        Elements::Raw(Bytes::from_static(bytes))
    }

    #[test]
    fn bytes_are_files() {
        let two = b"\x02\0\0\0ab\0\0\0\0";
        let files = vec![Ok(Source::File(Bytes::from_static(b"ab"))), Ok(Source::File(Bytes::new()))];
        assert_eq!(images("BYTES", &[2], raw(two)), Ok(files.clone()));
        assert_eq!(images("BYTES", &[2, 1], raw(two)), Ok(files));
        for (shape, bytes) in [(1, &two[..]), (2, &two[..9]), (1, b"\xff\xff\xff\xffab"), (1, b"\x01\0\0")] {
            assert_eq!(images("BYTES", &[shape], raw(bytes)), Err(Code::InvalidRequest), "{bytes:?}");
        }
        assert_eq!(images("BYTES", &[5], raw(two)), Err(Code::TooManyImages));
    }

    #[test]
    fn pixels_and_values_are_split_into_images() {
        let pixels = images("UINT8", &[2, 1, 1, 3], raw(&[1, 2, 3, 4, 5, 6]));
        let second = Source::Pixels { width: 1, height: 1, rgb: Bytes::from_static(&[4, 5, 6]) };
        assert_eq!(pixels.as_ref().map(|images| &images[1]), Ok(&Ok(second)));
        let numbers = Elements::Numbers(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(images("UINT8", &[2, 1, 1, 3], numbers), pixels);
        let values = images("FP32", &[1, 3, 1, 1], Elements::Numbers(vec![0.5, 1.0, -2.0]));
        let expected = Bytes::from_static(&[0, 0, 0, 63, 0, 0, 128, 63, 0, 0, 0, 192]);
        assert_eq!(values, Ok(vec![Ok(Source::Tensor { width: 1, height: 1, values: expected })]));
    }

    #[test]
    fn what_does_not_fit_its_shape_is_refused() {
        for (datatype, shape) in [
            ("UINT8", &[1, 1, 1, 3][..]),
            ("UINT8", &[1, 3, 1, 1]),
            ("UINT8", &[1, 0, 0, 3]),
            ("UINT8", &[1, i64::MAX, i64::MAX, 3]),
            ("FP32", &[1, 3, 1, 1]),
            ("FP32", &[-1, 3, 1, 1]),
            ("FP32", &[]),
            ("INT64", &[1, 1]),
        ] {
            assert_eq!(images(datatype, shape, raw(&[0; 5])), Err(Code::InvalidRequest), "{datatype} {shape:?}");
        }
        let half = Elements::Numbers(vec![0.5, 1.0, 2.0]);
        assert_eq!(images("UINT8", &[1, 1, 1, 3], half), Err(Code::InvalidRequest));
        let large = Elements::Numbers(vec![256.0, 1.0, 2.0]);
        assert_eq!(images("UINT8", &[1, 1, 1, 3], large), Err(Code::InvalidRequest));
    }
}
