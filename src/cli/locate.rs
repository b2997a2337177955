//! Finds the model that a command names: a folder, the embedded model, or one that has to be pulled first.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::BoolishValueParser;

use super::pull::{PullOptions, fetch, shell_word};
use crate::model::{EMBEDDED_MODEL, ModelFolder};
use ghostserve_hub::{CATALOGUE, FolderOutcome, Reference, nearest_name};
use ghostserve_manifest::MANIFEST_FILE;

/// Whether a model that is not on disk is fetched.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct PullFlag {
    /// Fetch the model as `ghostserve pull` does, if it is not on disk.
    #[arg(long, env = "GHOSTSERVE_PULL", value_parser = BoolishValueParser::new())]
    pull: bool,
}

impl PullFlag {
    /// Whether the flag is given.
    pub(super) fn is_set(self) -> bool {
        self.pull
    }

    /// The embedded model's name or a model folder. With the flag, fetches a model that the hub has and that is not
    /// on disk, into the folder that `ghostserve pull` would make.
    ///
    /// # Errors
    /// There is no such model, with what to do about it; or it cannot be fetched.
    pub(super) fn locate(self, model: &str) -> anyhow::Result<String> {
        if ModelFolder::resolve(model).is_ok() {
            return Ok(model.to_owned());
        }
        let path = Path::new(model);
        if path.is_file() {
            bail!(
                "{model} is a file, and a model is a folder: `ghostserve init {} --labels labels.txt` makes one of it",
                shell_word(model)
            );
        }
        if path.is_dir() && CATALOGUE.contains(&model) {
            bail!(
                "{model} is a folder without a {MANIFEST_FILE}: remove it, or choose another with `ghostserve pull \
                 {model} -o DIR`"
            );
        }
        // A path that only looks like owner/name: its folder is there, without a manifest.
        let reference = Reference::parse(model).ok().filter(|_| !path.is_dir());
        let Some(reference) = reference else { bail!(unknown(model)) };
        let folder = PathBuf::from(reference.model_id());
        let command = format!("ghostserve pull {}", shell_word(model));
        // A revision may be another one than that of the folder.
        if is_pulled_from(&folder, &reference) && !model.contains('@') {
            if self.pull {
                return Ok(folder.display().to_string());
            }
            let found = folder.display();
            bail!("no model `{model}` on disk; {found} was pulled from there: give `{found}`, or add --pull");
        }
        if !self.pull {
            let known = CATALOGUE.contains(&model);
            bail!(match nearest_name(model) {
                _ if known => format!("no model `{model}` on disk; fetch it with `{command}`, or add --pull"),
                Some(name) =>
                    format!("no model `{model}` on disk: did you mean {name}? `{command}` asks the hub for it"),
                None => format!(
                    "no model `{model}` on disk, which is a folder with a {MANIFEST_FILE}; if it is a repository of \
                     the hub, fetch it with `{command}`, or add --pull"
                ),
            });
        }
        let pulled = fetch(&reference, &folder, PullOptions::from_environment());
        let pulled = pulled.with_context(|| format!("--pull {model}"))?;
        if pulled.outcome != FolderOutcome::Unchanged {
            eprintln!("pulled {model} into {}", folder.display());
        }
        Ok(folder.display().to_string())
    }
}

/// Whether `folder` is a model that was pulled from this repository, at any commit.
fn is_pulled_from(folder: &Path, reference: &Reference) -> bool {
    let manifest = fs::read_to_string(folder.join(MANIFEST_FILE)).unwrap_or_default();
    let origin = manifest.lines().take_while(|line| line.starts_with('#'));
    origin.filter_map(|line| line.strip_prefix("# repository: ")).any(|name| name == reference.repository())
}

/// The message for a name that is neither on disk nor at the hub.
fn unknown(model: &str) -> String {
    if let Some(name) = nearest_name(model) {
        return format!(
            "no model `{model}`: did you mean {name}? `ghostserve pull {name}` fetches it, and so does --pull"
        );
    }
    format!(
        "no model `{model}`: give the embedded `{EMBEDDED_MODEL}`, a folder that holds a {MANIFEST_FILE} (`ghostserve \
         init` makes one of your own ONNX file or weights), or one that `ghostserve pull` fetches: {}, or owner/name",
        CATALOGUE.join(", ")
    )
}
