//! The error type, whose texts are for the person who sent the file.

use std::fmt;

/// The reason why a JPEG file cannot be decoded. The texts are short phrases about the file, without its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JpegError {
    /// The file, or a scan's data within it, ends before the image is complete.
    Truncated,
    /// The file breaks the format's rules. The text says which one.
    Corrupt(&'static str),
    /// The file is valid but uses a part of the format that this decoder does not support. The text names that part.
    Unsupported(&'static str),
}

impl fmt::Display for JpegError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("it ends before the picture is complete"),
            Self::Corrupt(what) => f.write_str(what),
            Self::Unsupported(what) => write!(f, "{what} is not supported"),
        }
    }
}

impl std::error::Error for JpegError {}

/// The result of every step of decoding.
pub(super) type Result<T> = std::result::Result<T, JpegError>;
