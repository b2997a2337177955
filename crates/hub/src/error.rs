//! The errors of a pull. Messages are for the user who typed the command: they say what to do where something can be
//! done, and do not show a token or a signed address.

use std::io;

use ghostserve_manifest::Digest;

/// The reason why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// An invalid value from the user or from the hub.
    #[error("{what}: expected {expected}, found `{found}`")]
    Invalid {
        /// The kind of value.
        what: &'static str,
        /// Description of a valid value.
        expected: String,
        /// The invalid value.
        found: String,
    },
    /// An operation on a file or folder of this machine failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The hub does not have the repository, the revision or the file.
    #[error("the hub has no {what}: check the name and the revision")]
    NotFound {
        /// Repository and revision, or file.
        what: String,
    },
    /// The hub refuses access to the repository.
    #[error("the hub refuses {repository} ({status}): {advice}")]
    Denied {
        /// Its name.
        repository: String,
        /// HTTP status: 401 or 403.
        status: u16,
        /// What the user can do.
        advice: &'static str,
    },
    /// An HTTP status that further attempts would not change.
    #[error("{url} answered {status}")]
    Status {
        /// The address, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// All attempts of a transfer failed.
    #[error("{url}: {reason} (gave up after {attempts} attempts; what has arrived is kept, pull again to go on)")]
    Broken {
        /// The address, without its query.
        url: String,
        /// The cause of the last failure.
        reason: String,
        /// Number of attempts.
        attempts: u32,
    },
    /// The connection cannot be made, and further attempts would not change that.
    #[error("{url}: {reason}")]
    Connection {
        /// The address, without its query.
        url: String,
        /// The connection's error.
        reason: String,
    },
    /// The hub requests a longer wait than [`TransferLimits::max_backoff`](crate::TransferLimits::max_backoff).
    #[error("{url}: the hub asks to come back in {seconds} s")]
    Busy {
        /// The address, without its query.
        url: String,
        /// The requested wait, seconds.
        seconds: u64,
    },
    /// A redirection that is not followed.
    #[error("{url}: {reason}")]
    Redirect {
        /// The address that redirects, without its query.
        url: String,
        /// The reason why it is not followed.
        reason: String,
    },
    /// The hub's description of a repository is invalid.
    #[error("{url}: not a description of a repository: {reason}")]
    InvalidDescription {
        /// The address.
        url: String,
        /// The defect of the description.
        reason: String,
    },
    /// A file has another size than declared, no declared size, or exceeds the limit.
    #[error("{file}: expected {expected}, found {found}; nothing was kept")]
    Size {
        /// Its name in the repository.
        file: String,
        /// The declared size, or the limit.
        expected: String,
        /// The actual size.
        found: String,
    },
    /// A file does not have the digest that the hub declares.
    #[error("{file} is damaged: expected {expected}, found {found}; nothing was kept, pull again")]
    Digest {
        /// Its name in the repository.
        file: String,
        /// The declared digest.
        expected: String,
        /// The digest of the received bytes.
        found: Digest,
    },
    /// A file or revision is not in the cache, and the pull is offline.
    #[error("{what} is not in the cache {cache}: pull it once without --offline and HF_HUB_OFFLINE")]
    Offline {
        /// The missing item.
        what: String,
        /// The cache's folder.
        cache: String,
    },
    /// The repository has no file of weights, or several candidates.
    #[error("{repository}: {reason}")]
    Weights {
        /// Its name.
        repository: String,
        /// The candidates, or that there are none.
        reason: String,
    },
    /// The repository's network cannot be served.
    #[error("{repository}: config.json: {reason}")]
    Config {
        /// Its name.
        repository: String,
        /// The unsupported setting.
        reason: String,
    },
    /// The target folder holds another model or something else.
    #[error(
        "{path} already holds something else ({difference}): choose another folder with -o, or replace it with --force"
    )]
    Exists {
        /// The folder.
        path: String,
        /// The first difference.
        difference: String,
    },
}

impl HubError {
    /// Makes [`HubError::Io`] in `map_err`.
    pub(super) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}
