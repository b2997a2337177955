//! Published weights: from a name on a model hub to a model folder on this machine.
//!
//! Speaks the HTTP interface of the Hugging Face hub, also served by mirrors. A pull asks which commit a revision means
//! (`snapshot`), fetches that commit's `config.json` and weights into a cache (`cache`, `download`) and holds them
//! against the digests that the hub declares, turns the configuration into a manifest (`timm`), and writes the folder in
//! one step (`folder`). This module knows no graph and no network: which architectures are known is told to it, and the
//! environment is read by `cli`.

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

pub use catalogue::{CATALOGUE, IMAGENET_LABELS};
pub use error::HubError;
pub use folder::Outcome;
pub use proxy::Proxies;
pub use reference::Reference;

use cache::Cache;
use client::{Client, Endpoint};
use download::Fetcher;
use folder::Content;
use ghostserve_manifest::{Manifest, NetworkSpec, OutputKind};
use snapshot::{Identity, RemoteFile, Snapshot};

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// What a repository keeps its configuration in.
const CONFIG_FILE: &str = "config.json";

/// Where the hub is, what to say to it, and where its files are kept.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The hub's address, without a path at its end: [`DEFAULT_ENDPOINT`].
    pub endpoint: String,
    /// Sent to the endpoint's own host, never to where it redirects.
    pub token: Option<Token>,
    /// Through which proxies hosts are reached.
    pub proxies: Proxies,
    /// The folder of the cache; made when needed, may be deleted at any time.
    pub cache: PathBuf,
    /// Only what is in the cache.
    pub offline: bool,
    /// Patience and sizes.
    pub limits: Limits,
}

/// How long to wait, how often to try, how much to take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the next bytes, and for the head of an answer.
    pub stall: Duration,
    /// Attempts at one file; those that brought a mebibyte or more do not count.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles from one to the next.
    pub backoff: Duration,
    /// The longest wait, also when the hub asks for a longer one: then the pull ends with a message.
    pub longest_wait: Duration,
    /// The largest file, bytes.
    pub max_file: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            attempts: 5,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            max_file: 4 << 30,
        }
    }
}

/// An access token. Its `Debug` does not show it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token in `text`, if there is one in it.
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

/// What to pull, and to where.
#[derive(Clone, Copy, Debug)]
pub struct PullRequest<'a> {
    /// Repository and revision.
    pub reference: &'a Reference,
    /// The weights' file, where it is not the usual one.
    pub file: Option<&'a str>,
    /// The model folder to make.
    pub folder: &'a Path,
    /// Whether the files of a different model in that folder may be replaced.
    pub force: bool,
    /// The architectures that can be served.
    pub architectures: &'a [&'a str],
}

/// What a pull has done.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The model's contract, as written.
    pub manifest: Manifest,
    /// The commit that everything is from.
    pub commit: String,
    /// The weights' name in the repository.
    pub file: String,
    /// Their size, bytes.
    pub size: u64,
    /// What was done to the folder.
    pub outcome: Outcome,
    /// What the user should know: what was assumed, what could not be checked.
    pub notes: Vec<String>,
}

/// What happens during a pull, for whoever shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Another process is fetching the same file; it is waited for.
    Waiting {
        /// Its name in the repository.
        file: &'a str,
    },
    /// A file is being fetched.
    Started {
        /// Its name in the repository.
        file: &'a str,
        /// Its size, bytes.
        size: u64,
    },
    /// So much of the file is there, bytes. Goes back when a server makes the download start over.
    Position(u64),
    /// An attempt has failed; there will be another.
    Retrying {
        /// Why.
        reason: &'a str,
        /// After this wait.
        wait: Duration,
    },
    /// The file is there and verified.
    Finished,
}

/// Told of every [`Event`].
pub type Observer<'a> = &'a dyn Fn(Event<'_>);

/// A hub, with the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
    limits: Limits,
}

impl Hub {
    /// Makes ready; sends nothing.
    ///
    /// # Errors
    /// The endpoint or a proxy is no address.
    pub fn new(settings: HubSettings) -> Result<Self, HubError> {
        let endpoint = Endpoint::parse(&settings.endpoint)?;
        let cache = Cache::new(settings.cache, &endpoint);
        let client = Client::new(endpoint, settings.token, settings.proxies, &settings.limits)?;
        Ok(Self { client, cache, offline: settings.offline, limits: settings.limits })
    }

    /// Makes a model folder of a repository. What is there already is not fetched again, and a folder that already holds
    /// this model stays as it is.
    ///
    /// # Errors
    /// The repository, the network or the disk says no; or what was fetched is not what the hub declares, or no model that
    /// can be served. The folder is then as it was.
    pub fn pull(&self, request: &PullRequest<'_>, observer: Observer<'_>) -> Result<Pulled, HubError> {
        let reference = request.reference;
        let fetcher = Fetcher { hub: self, reference, observer };
        let snapshot = fetcher.snapshot()?;

        // The small file first: most repositories that cannot be served are told apart by it.
        let config = snapshot.file(reference, CONFIG_FILE)?;
        let weights = snapshot.weights(reference, request.file)?;
        let text = fetcher.small_text(&snapshot, config)?;
        let recipe = timm::Recipe::parse(&text, reference, request.architectures)?;
        let blob = fetcher.blob(&snapshot, weights)?;

        let mut notes = recipe.notes;
        if matches!(weights.identity, Identity::Undeclared) {
            notes.push(format!("the hub declares no digest for {}: only its size was checked", weights.name));
        }
        let weights_file = format!("weights.{}", weights.extension());
        let manifest = Manifest {
            id: reference.model_id(),
            description: format!("{} from {}", recipe.architecture, reference.repository()),
            network: NetworkSpec {
                architecture: ghostserve_manifest::Architecture::Preset(recipe.architecture),
                weights: weights_file,
                digest: blob.digest,
                output: OutputKind::Logits,
            },
            input: recipe.input,
            labels_file: "labels.txt".to_owned(),
        };
        let text = manifest.to_toml(&source_comment(reference, &snapshot, weights));
        // What is written must be what will be read: whatever the hub said has passed the manifest's own checks.
        let read = Manifest::parse(&text)
            .map_err(|source| HubError::Config { repository: reference.repository(), reason: source.to_string() })?;
        let content = Content { manifest: &read, text: &text, labels: &recipe.labels, weights: &blob.path };
        let outcome = folder::write(request.folder, &content, request.force)?;
        Ok(Pulled {
            manifest: read,
            commit: snapshot.commit.clone(),
            file: weights.name.clone(),
            size: blob.size,
            outcome,
            notes,
        })
    }
}

/// Where a folder's files are from, for the head of its manifest.
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
