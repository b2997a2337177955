//! Pulls published weights from a model hub into a model folder on this machine.
//!
//! Uses the HTTP interface of the Hugging Face hub, which mirrors also serve. A pull has four steps:
//!
//! 1. It resolves a revision to a commit (`snapshot`).
//! 2. It fetches the commit's `config.json` and weights into a cache and verifies them with the digests that the hub
//!    declares (`cache`, `download`).
//! 3. It turns the configuration into a manifest (`timm`).
//! 4. It writes the folder in one step (`folder`).
//!
//! This crate does not know graphs or networks: the caller passes the architectures that can be served. It does not
//! read environment variables either: the caller passes token, proxies and cache folder.

mod cache;
mod catalogue;
mod client;
mod download;
mod error;
mod folder;
mod proxy;
mod reference;
mod snapshot;
mod timm;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use catalogue::{CATALOGUE, IMAGENET_LABELS, nearest_name};
pub use error::HubError;
pub use folder::FolderOutcome;
pub use proxy::Proxies;
pub use reference::Reference;

use cache::Cache;
use client::{Endpoint, HubClient};
use download::Fetcher;
use folder::FolderContent;
use ghostserve_manifest::{Manifest, NetworkSpec, OutputKind};
use snapshot::{ContentIdentity, RemoteFile, Snapshot};

/// The address of the public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The file of a repository with its configuration.
const CONFIG_FILE: &str = "config.json";

/// The settings of a [`Hub`].
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The hub's address, such as [`DEFAULT_ENDPOINT`]. Paths are appended to it.
    pub endpoint: String,
    /// Access token. It is sent to the endpoint's own host only, not to the targets of redirections.
    pub token: Option<Token>,
    /// Proxies through which hosts are reached.
    pub proxies: Proxies,
    /// The folder of the cache. It is created when needed and may be deleted at any time.
    pub cache: PathBuf,
    /// Whether to use only the cache and send nothing.
    pub offline: bool,
    /// Timeouts, retries and sizes.
    pub limits: TransferLimits,
}

/// Timeouts, retries and sizes of transfers.
#[derive(Clone, Copy, Debug)]
pub struct TransferLimits {
    /// Timeout of a connection, TLS included.
    pub connect_timeout: Duration,
    /// Timeout of the next bytes, and of the header of a response.
    pub stall_timeout: Duration,
    /// Attempts at one file. Attempts that brought a mebibyte or more do not count.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub initial_backoff: Duration,
    /// Longest wait before an attempt. If the hub requests a longer one, the pull ends with an error.
    pub max_backoff: Duration,
    /// Largest file, bytes.
    pub max_file_size: u64,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
            initial_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(60),
            max_file_size: 4 << 30,
        }
    }
}

/// An access token. Its `Debug` output does not show it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token in `text` without surrounding white space; `None` if nothing is left.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The parameters of a pull.
#[derive(Clone, Copy, Debug)]
pub struct PullRequest<'a> {
    /// Repository and revision to pull.
    pub reference: &'a Reference,
    /// The file of weights, if it is not the usual one.
    pub file: Option<&'a str>,
    /// The model folder to write.
    pub folder: &'a Path,
    /// Whether the files of a different model in that folder may be replaced.
    pub force: bool,
    /// Names of the architectures that can be served.
    pub architectures: &'a [&'a str],
}

/// The result of a successful pull.
#[derive(Clone, Debug)]
pub struct PullReport {
    /// The manifest in the folder.
    pub manifest: Manifest,
    /// The commit that all files are from.
    pub commit: String,
    /// Name of the weights' file in the repository.
    pub file: String,
    /// Size of the weights, bytes.
    pub size: u64,
    /// The change of the folder.
    pub outcome: FolderOutcome,
    /// Notes for the user: assumptions, and checks that were not possible.
    pub notes: Vec<String>,
}

/// An event during a pull, for progress displays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullEvent<'a> {
    /// Another process is fetching the same file; this pull waits for it.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
    /// The download of a file starts.
    Started {
        /// Its name in the repository.
        file: &'a str,
        /// Its size, bytes.
        size: u64,
    },
    /// Number of bytes of the file that have arrived. It decreases if the server makes the download start over.
    Position(u64),
    /// An attempt has failed, and another one follows.
    Retrying {
        /// The cause of the failure.
        reason: &'a str,
        /// The wait before the next attempt.
        wait: Duration,
    },
    /// The file is complete and verified.
    Finished,
}

/// A callback that receives every [`PullEvent`].
pub type PullObserver<'a> = &'a dyn Fn(PullEvent<'_>);

/// A client of one hub, with a cache of its files.
#[derive(Debug)]
pub struct Hub {
    client: HubClient,
    cache: Cache,
    offline: bool,
    limits: TransferLimits,
}

impl Hub {
    /// Prepares the client; sends nothing.
    ///
    /// # Errors
    /// [`HubError::Invalid`]: the endpoint or a proxy is not an address.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        let endpoint = Endpoint::parse(&settings.endpoint)?;
        let cache = Cache::new(settings.cache, &endpoint);
        let client = HubClient::new(endpoint, settings.token, settings.proxies, &settings.limits)?;
        Ok(Self { client, cache, offline: settings.offline, limits: settings.limits })
    }

    /// Writes a model folder from a repository. Cached files are not fetched again, and a folder that already holds
    /// this model is not changed.
    ///
    /// # Errors
    /// The hub, the network or the disk fails; or the files do not match the hub's declarations, or are not a model
    /// that can be served. A new folder is then not created. An existing one is unchanged, unless the disk fails
    /// while its files are replaced.
    pub fn pull(&self, request: &PullRequest<'_>, observer: PullObserver<'_>) -> Result<PullReport, HubError> {
        let reference = request.reference;
        let fetcher = Fetcher { hub: self, reference, observer };
        let snapshot = fetcher.snapshot()?;

        // The small file first: it rules out most repositories that cannot be served.
        let config_file = snapshot.file(reference, CONFIG_FILE)?;
        let weights = snapshot.weights(reference, request.file)?;
        let config_text = fetcher.small_text(&snapshot, config_file)?;
        let config = timm::TimmConfig::parse(&config_text, reference, request.architectures)?;
        let blob = fetcher.blob(&snapshot, weights)?;

        let mut notes = config.notes;
        if matches!(weights.identity, ContentIdentity::Undeclared) {
            notes.push(format!("the hub declares no digest for {}: only its size was checked", weights.name));
        }
        let weights_file = format!("weights.{}", weights.extension());
        let manifest = Manifest {
            id: reference.model_id(),
            description: format!("{} from {}", config.architecture, reference.repository()),
            network: NetworkSpec {
                architecture: ghostserve_manifest::Architecture::Preset(config.architecture),
                weights: weights_file,
                digest: Some(blob.digest),
                output: OutputKind::Logits,
            },
            input: config.input,
            labels_file: "labels.txt".to_owned(),
        };
        let text = manifest.to_toml(&source_comment(reference, &snapshot, weights));
        // The written text must be readable: parsing it applies the manifest's own checks to the hub's values.
        let manifest = Manifest::parse(&text)
            .map_err(|source| HubError::Config { repository: reference.repository(), reason: source.to_string() })?;
        let content = FolderContent { manifest: &manifest, text: &text, labels: &config.labels, weights: &blob.path };
        let outcome = folder::write(request.folder, &content, request.force)?;
        Ok(PullReport {
            manifest,
            commit: snapshot.commit.clone(),
            file: weights.name.clone(),
            size: blob.size,
            outcome,
            notes,
        })
    }
}

/// The origin of a folder's files, as comment lines at the head of its manifest.
fn source_comment(reference: &Reference, snapshot: &Snapshot, weights: &RemoteFile) -> Vec<String> {
    let licence = snapshot.licence.as_deref().unwrap_or("not declared: see the repository");
    vec![
        "Written by `ghostserve pull`. What each field means: docs/models.md.".to_owned(),
        format!("repository: {}", reference.repository()),
        format!("commit:     {}", snapshot.commit),
        format!("file:       {}", weights.name),
        format!("licence:    {licence}"),
    ]
}
