//! Why a pull ends without a model. Messages are for whoever typed the command: they say what to do where something can
//! be done, and never show a token or a signed address.

use std::io;

use ghostserve_manifest::Digest;

/// Why nothing was pulled.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Something typed, or told by the hub, that cannot be meant.
    #[error("{what}: expected {expected}, found `{found}`")]
    Invalid {
        /// What it should be.
        what: &'static str,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file or folder of this machine.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The hub does not have it.
    #[error("the hub has no {what}: check the name and the revision")]
    NotFound {
        /// Repository and revision, or file.
        what: String,
    },
    /// The hub does not give it to everybody.
    #[error("the hub refuses {repository} ({status}): {advice}")]
    Denied {
        /// Which.
        repository: String,
        /// 401 or 403.
        status: u16,
        /// What would help.
        advice: &'static str,
    },
    /// An answer that no attempt gets past.
    #[error("{url} answered {status}")]
    Status {
        /// What was asked, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The network did not hold, even after retries.
    #[error("{url}: {reason} (gave up after {attempts} attempts; what has arrived is kept, pull again to go on)")]
    Broken {
        /// What was asked, without its query.
        url: String,
        /// What happened the last time.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The connection cannot be made, and trying again would not change that.
    #[error("{url}: {reason}")]
    Connection {
        /// What was asked, without its query.
        url: String,
        /// Why.
        reason: String,
    },
    /// The hub wants a longer pause than anybody waits for.
    #[error("{url}: the hub asks to come back in {seconds} s")]
    Busy {
        /// What was asked, without its query.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// A redirection that is not followed.
    #[error("{url}: {reason}")]
    Redirect {
        /// What redirected, without its query.
        url: String,
        /// Why it is not followed.
        reason: String,
    },
    /// The hub's description of a repository is not understood.
    #[error("{url}: not a description of a repository: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More bytes than declared, or than are taken.
    #[error("{file}: expected {expected}, found {found}; nothing was kept")]
    Size {
        /// Its name in the repository.
        file: String,
        /// What was declared, or the limit.
        expected: String,
        /// What came.
        found: String,
    },
    /// Not the bytes that the hub declares.
    #[error("{file} is damaged: expected {expected}, found {found}; nothing was kept, pull again")]
    Digest {
        /// Its name in the repository.
        file: String,
        /// What the hub declares.
        expected: String,
        /// What came.
        found: Digest,
    },
    /// Offline, and not in the cache.
    #[error("{what} is not in the cache {cache}: pull it once without --offline and HF_HUB_OFFLINE")]
    Offline {
        /// What is missing.
        what: String,
        /// Where it was looked for.
        cache: String,
    },
    /// The repository has no file of weights, or several.
    #[error("{repository}: {reason}")]
    Weights {
        /// Which.
        repository: String,
        /// What there is instead.
        reason: String,
    },
    /// The repository's network cannot be served.
    #[error("{repository}: config.json: {reason}")]
    Config {
        /// Which.
        repository: String,
        /// What stands in the way.
        reason: String,
    },
    /// Another model, or something else, is where the folder should go.
    #[error(
        "{path} already holds something else ({difference}): choose another folder with -o, or replace it with --force"
    )]
    Exists {
        /// The folder.
        path: String,
        /// What differs.
        difference: String,
    },
}

impl HubError {
    /// For `map_err` on operations with files.
    pub(super) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { action, path, source }
    }
}
