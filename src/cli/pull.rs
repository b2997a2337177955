//! `ghostserve pull`.

use std::cell::RefCell;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use ghostserve_ghostnet::PRESETS;
use ghostserve_hub::{
    CATALOGUE, DEFAULT_ENDPOINT, Event, Hub, HubSettings, Limits, Outcome, Proxies, PullRequest, Reference, Token,
};

/// Fetch published weights from a model hub and make a model folder of them.
///
/// Files are verified against the digests that the hub declares and kept in a cache; a download that breaks goes on where
/// it stopped. Proxies are taken from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, certificates from the system,
/// an access token from HF_TOKEN.
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

    /// Replace a different model in the folder.
    #[arg(long)]
    force: bool,

    /// Send nothing: only what is in the cache. HF_HUB_OFFLINE=1 says the same.
    #[arg(long)]
    offline: bool,

    /// Where fetched files are kept [default: ghostserve in XDG_CACHE_HOME or ~/.cache].
    #[arg(long, env = "GHOSTSERVE_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,

    /// The hub.
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
        let hub = Hub::new(HubSettings {
            endpoint: self.endpoint,
            token: variable("HF_TOKEN").and_then(|token| Token::new(&token)),
            proxies: proxies(),
            cache: self
                .cache
                .or_else(super::default_cache)
                .context("no home folder: say where to keep files with --cache")?,
            offline: self.offline || variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            limits: Limits::default(),
        })?;

        let bar = Bar::default();
        let request = PullRequest {
            reference: &reference,
            file: self.file.as_deref(),
            folder: &folder,
            force: self.force,
            architectures: &PRESETS,
        };
        let result = hub.pull(&request, &|event| bar.show(event));
        bar.clear();
        let pulled = result?;

        let mut out = stdout().lock();
        for note in &pulled.notes {
            eprintln!("note: {note}");
        }
        let network = &pulled.manifest.network;
        let done = match pulled.outcome {
            Outcome::Written => "written",
            Outcome::Unchanged => "already there, unchanged",
            Outcome::Replaced => "replaced",
        };
        writeln!(out, "folder        {} ({done})", folder.display())?;
        writeln!(out, "from          {}@{}, {}", reference.repository(), pulled.commit, pulled.file)?;
        writeln!(out, "architecture  {}", network.architecture)?;
        writeln!(out, "weights       {} ({} bytes)", network.weights, pulled.size)?;
        writeln!(out, "digest        {}", network.digest)?;
        writeln!(out, "\nserve it:     ghostserve serve --model {}", shell_word(&folder.display().to_string()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| value.trim().eq_ignore_ascii_case(yes))
}

/// As curl reads them: lower case first.
fn proxies() -> Proxies {
    let either = |name: &str| variable(&name.to_lowercase()).or_else(|| variable(name));
    Proxies {
        https: either("HTTPS_PROXY"),
        http: either("HTTP_PROXY"),
        all: either("ALL_PROXY"),
        none: either("NO_PROXY").unwrap_or_default(),
    }
}

/// A path as it can be typed.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A bar for the file that is being fetched. Hidden by itself where standard error is no terminal.
#[derive(Default)]
struct Bar(RefCell<Option<ProgressBar>>);

impl Bar {
    fn show(&self, event: Event<'_>) {
        match event {
            Event::Waiting { file } => eprintln!("another pull is fetching {file}: waiting for it"),
            Event::Started { file, size } => {
                let bar = ProgressBar::new(size).with_message(file.to_owned());
                let template = "{msg} {bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                self.0.replace(Some(bar));
            }
            Event::Position(bytes) => {
                if let Some(bar) = self.0.borrow().as_ref() {
                    bar.set_position(bytes);
                }
            }
            Event::Retrying { reason, wait } => {
                let line = format!("{reason}; trying again in {:.1} s", wait.as_secs_f32());
                match self.0.borrow().as_ref().filter(|bar| !bar.is_hidden()) {
                    Some(bar) => bar.println(line),
                    None => eprintln!("{line}"),
                }
            }
            Event::Finished => self.clear(),
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
    fn what_is_printed_can_be_typed() {
        assert_eq!(shell_word("./a-b_1.in1k"), "./a-b_1.in1k");
        assert_eq!(shell_word("it's here"), r"'it'\''s here'");
    }

    #[test]
    fn offline_is_said_in_several_ways() {
        assert!(["1", "ON", " yes ", "True"].into_iter().all(is_true));
        assert!(!["0", "off", "no"].into_iter().any(is_true));
    }
}
