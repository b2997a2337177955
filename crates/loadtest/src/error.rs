//! What keeps a measurement from starting.

use std::path::PathBuf;

/// Why there is nothing to measure.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A target's address cannot be used.
    #[error("`{url}`: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two targets have one name.
    #[error("two targets are called `{0}`: give them names, as in ours=http://…")]
    SameName(String),
    /// A header line cannot be sent.
    #[error("header `{0}`: expected `name: value`, in one line of visible ASCII characters")]
    Header(String),
    /// The server sets these itself, or the request would not be one.
    #[error("header `{0}` follows from the body and the connection, and cannot be set")]
    OwnHeader(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder without images.
    #[error("{0} holds no file that ends like an image (jpg, png, webp, gif, bmp, tiff)")]
    NoImages(PathBuf),
    /// More than should be held in memory.
    #[error("the images are more than {} MiB together: name fewer", .0 >> 20)]
    TooManyBytes(usize),
    /// Nobody listens.
    #[error("cannot connect to {url}: {reason}; is the server running? `ghostserve serve` starts one")]
    Unreachable {
        /// Whom we asked.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// The first request failed on its way.
    #[error("{url} did not answer the first request: {reason}")]
    NoAnswer {
        /// Whom we asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The first request was answered, but not with success.
    #[error("{url} answered the first request with status {status}: {body}")]
    Refused {
        /// Whom we asked.
        url: String,
        /// What it said.
        status: u16,
        /// The beginning of what it said about it.
        body: String,
    },
    /// A histogram cannot be made.
    #[error("histogram: {0}")]
    Histogram(#[from] hdrhistogram::CreationError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}
