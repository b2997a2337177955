//! Errors that prevent a measurement from starting.

use std::path::PathBuf;

/// The reason why a measurement cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LoadTestError {
    /// A target's URL cannot be used.
    #[error("`{url}`: {reason}")]
    Url {
        /// The URL as it was given.
        url: String,
        /// The problem with it.
        reason: String,
    },
    /// Two targets have the same name.
    #[error("two targets are called `{0}`: give them names, as in ours=http://…")]
    SameName(String),
    /// A header line cannot be sent.
    #[error("header `{0}`: expected `name: value`, in one line of visible ASCII characters")]
    Header(String),
    /// A header that the load generator sets itself: another value would break the request's framing.
    #[error("header `{0}` follows from the body and the connection, and cannot be set")]
    OwnHeader(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A folder contains no images.
    #[error("{0} holds no file that ends like an image (jpg, png, webp, gif, bmp, tiff)")]
    NoImages(PathBuf),
    /// The images exceed the memory limit, bytes.
    #[error("the images are more than {} MiB together: name fewer", .0 >> 20)]
    TooManyBytes(usize),
    /// No connection to the target could be opened.
    #[error("cannot connect to {url}: {reason}; is the server running? `ghostserve serve` starts one")]
    Unreachable {
        /// The target's URL.
        url: String,
        /// The system's error.
        reason: String,
    },
    /// The first request had no usable response.
    #[error("{url} did not answer the first request: {reason}")]
    NoAnswer {
        /// The target's URL.
        url: String,
        /// The error.
        reason: String,
    },
    /// The response to the first request did not have a status 2xx.
    #[error("{url} answered the first request with status {status}: {body}")]
    Refused {
        /// The target's URL.
        url: String,
        /// Status of the response.
        status: u16,
        /// Beginning of the response's body.
        body: String,
    },
    /// A histogram cannot be created.
    #[error("histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}
