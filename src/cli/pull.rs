//! `ghostserve pull`.

use std::cell::RefCell;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use ghostserve_ghostnet::PRESETS;
use ghostserve_hub::{
    CATALOGUE, DEFAULT_ENDPOINT, FolderOutcome, Hub, HubSettings, Proxies, PullEvent, PullReport, PullRequest,
    Reference, Token, TransferLimits,
};

/// Fetch published weights from a model hub and make a model folder of them.
///
/// Files are verified against the digests that the hub declares, and stored in a cache. An interrupted download
/// continues where it stopped. Proxies are taken from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, certificates
/// from the system, and an access token from HF_TOKEN.
#[derive(Debug, Args)]
#[command(after_help = format!("Known by name:\n  {}", CATALOGUE.join("\n  ")))]
pub(super) struct PullArgs {
    /// A name from the list below, or a repository: owner/name, owner/name@revision.
    name: String,

    /// The folder to make [default: the model's name, here].
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// A branch, a tag or a commit [default: main].
    #[arg(long, value_name = "REV")]
    revision: Option<String>,

    /// The file of weights, where the repository has several.
    #[arg(long, value_name = "NAME")]
    file: Option<String>,

    /// Replace the folder's model if it is a different one.
    #[arg(long)]
    force: bool,

    /// Use only files in the cache, and send no request. HF_HUB_OFFLINE=1 does the same.
    #[arg(long)]
    offline: bool,

    /// Folder that stores fetched files [default: ghostserve in XDG_CACHE_HOME or ~/.cache].
    #[arg(long, env = "GHOSTSERVE_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,

    /// Address of the hub.
    #[arg(long, env = "HF_ENDPOINT", default_value = DEFAULT_ENDPOINT, value_name = "URL")]
    endpoint: String,
}

impl PullArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut reference = Reference::parse(&self.name)?;
        if let Some(revision) = &self.revision {
            reference = reference.at(revision)?;
        }
        let folder = self.output.unwrap_or_else(|| PathBuf::from(reference.model_id()));
        let options = PullOptions {
            file: self.file,
            force: self.force,
            offline: self.offline,
            cache: self.cache,
            endpoint: self.endpoint,
        };
        let pulled = fetch(&reference, &folder, options)?;

        let mut out = stdout().lock();
        let network = &pulled.manifest.network;
        let done = match pulled.outcome {
            FolderOutcome::Written => "written",
            FolderOutcome::Unchanged => "already there, unchanged",
            FolderOutcome::Replaced => "replaced",
        };
        writeln!(out, "folder        {} ({done})", folder.display())?;
        writeln!(out, "from          {}@{}, {}", reference.repository(), pulled.commit, pulled.file)?;
        writeln!(out, "architecture  {}", network.architecture)?;
        writeln!(out, "weights       {} ({} bytes)", network.weights, pulled.size)?;
        if let Some(digest) = &network.digest {
            writeln!(out, "digest        {digest}")?;
        }
        writeln!(out, "\nserve it:     ghostserve serve --model {}", shell_word(&folder.display().to_string()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The parameters of a pull that have defaults.
pub(super) struct PullOptions {
    file: Option<String>,
    force: bool,
    offline: bool,
    cache: Option<PathBuf>,
    endpoint: String,
}

impl PullOptions {
    /// The settings of the environment, as `ghostserve pull` without flags uses them.
    pub(super) fn from_environment() -> Self {
        Self {
            file: None,
            force: false,
            offline: false,
            cache: variable("GHOSTSERVE_CACHE").map(PathBuf::from),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
        }
    }
}

/// Pulls `reference` into `folder` and prints progress and notes on standard error.
pub(super) fn fetch(reference: &Reference, folder: &Path, options: PullOptions) -> anyhow::Result<PullReport> {
    let cache = options.cache.or_else(super::default_cache);
    let hub = Hub::new(HubSettings {
        // As HF_TOKEN: a variable that is set to nothing is not set.
        endpoint: Some(options.endpoint)
            .filter(|endpoint| !endpoint.trim().is_empty())
            .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
        token: variable("HF_TOKEN").and_then(|token| Token::new(&token)),
        proxies: proxies(),
        cache: cache.context("no home folder: say where to keep files with --cache or GHOSTSERVE_CACHE")?,
        offline: options.offline || variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        limits: TransferLimits::default(),
    })?;
    let progress = DownloadProgress::default();
    let request =
        PullRequest { reference, file: options.file.as_deref(), folder, force: options.force, architectures: &PRESETS };
    let result = hub.pull(&request, &|event| progress.show(event));
    progress.clear();
    let pulled = result?;
    for note in &pulled.notes {
        eprintln!("note: {note}");
    }
    Ok(pulled)
}

/// An environment variable, if its value is not blank.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.trim().eq_ignore_ascii_case(yes))
}

/// The proxies of the environment, read as curl does: lower-case names first.
fn proxies() -> Proxies {
    let either = |name: &str| variable(&name.to_lowercase()).or_else(|| variable(name));
    Proxies {
        https: either("HTTPS_PROXY"),
        http: either("HTTP_PROXY"),
        all: either("ALL_PROXY"),
        none: either("NO_PROXY").unwrap_or_default(),
    }
}

/// A path as it can be typed in a shell.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The progress of the current download. The bar hides itself where standard error is not a terminal.
#[derive(Default)]
struct DownloadProgress(RefCell<Option<ProgressBar>>);

impl DownloadProgress {
    fn show(&self, event: PullEvent<'_>) {
        match event {
            PullEvent::Waiting { file } => eprintln!("another pull is fetching {file}: waiting for it"),
            PullEvent::Started { file, size } => {
                let bar = ProgressBar::new(size).with_message(file.to_owned());
                let template = "{msg} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                self.0.replace(Some(bar));
            }
            PullEvent::Position(bytes) => {
                if let Some(bar) = self.0.borrow().as_ref() {
                    bar.set_position(bytes);
                }
            }
            PullEvent::Retrying { reason, wait } => {
                let line = format!("{reason}; trying again in {:.1} s", wait.as_secs_f32());
                match self.0.borrow().as_ref().filter(|bar| !bar.is_hidden()) {
                    Some(bar) => bar.println(line),
                    None => eprintln!("{line}"),
                }
            }
            PullEvent::Finished => self.clear(),
        }
    }

    fn clear(&self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_path_can_be_typed_in_a_shell() {
        assert_eq!(shell_word("./a-b_1.in1k"), "./a-b_1.in1k");
        assert_eq!(shell_word("it's here"), r"'it'\''s here'");
    }

    #[test]
    fn offline_has_several_spellings() {
        assert!(["1", "ON", " yes ", "True"].into_iter().all(is_true));
        assert!(!["0", "off", "no"].into_iter().any(is_true));
    }
}
