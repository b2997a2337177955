//! `ghostserve classify`.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::locate::PullFlag;
use super::{RuntimeArgs, errors, values};
use crate::eval::{Classifier, image_files};
use crate::model::ModelFolder;

/// Classify image files without a server.
///
/// With --json, every file is one line: {"file", "image": {"format", "width", "height"}, "predictions": [{"class",
/// "label", "probability", …}]}, or {"file", "error"} if it cannot be classified. If any file fails, the exit status
/// is 1.
#[derive(Debug, Args)]
pub(super) struct ClassifyArgs {
    /// The embedded model's name, or a model folder.
    model: String,

    /// Image files, or folders. Of a folder and the folders in it, the files whose names end like an image are taken
    /// (jpg, png, webp, gif, bmp, tiff), sorted by path. Names that begin with a dot are left out.
    #[arg(required = true, value_name = "PATH")]
    files: Vec<PathBuf>,

    /// Number of predictions per file, at least 1.
    #[arg(long, default_value = "5", value_parser = values::at_least_one, value_name = "N")]
    top_k: usize,

    /// Print one JSON object per line instead of text.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pull: PullFlag,

    #[command(flatten)]
    runtime: RuntimeArgs,
}

impl ClassifyArgs {
    /// Tries all files, then fails if any of them failed.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let files = self.listed_files()?;
        let loaded = ModelFolder::resolve(&self.pull.locate(&self.model)?)?.load()?;
        let mut classifier = Classifier::new(&loaded, &self.runtime.load()?, self.runtime.backend())?;
        let mut out = stdout().lock();
        let mut code = ExitCode::SUCCESS;
        for file in &files {
            let result = std::fs::read(file).context("cannot read it").and_then(|bytes| {
                let (image, predictions) = classifier.classify(&bytes, self.top_k)?;
                Ok((image, predictions))
            });
            let name = file.display();
            match result {
                Ok((image, predictions)) if self.json => {
                    let line = json!({"file": file.to_string_lossy(), "image": image, "predictions": predictions});
                    writeln!(out, "{line}")?;
                }
                Ok((image, predictions)) => {
                    let format = image.format.map(|format| format!("{format}, ")).unwrap_or_default();
                    writeln!(out, "{name} ({format}{}x{})", image.width, image.height)?;
                    for p in predictions {
                        writeln!(out, "  {:>6.2} %  {}", p.probability * 100.0, p.label.name)?;
                    }
                }
                Err(error) => {
                    let error = errors::describe(&error);
                    if self.json {
                        writeln!(out, "{}", json!({"file": file.to_string_lossy(), "error": error}))?;
                    }
                    eprintln!("error: {name}: {error}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }

    /// The files to classify: those that are named, and the images in the folders that are named.
    fn listed_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for path in &self.files {
            if !path.is_dir() {
                files.push(path.clone());
                continue;
            }
            let found = image_files(path)?;
            if let Some(example) = found.others.first() {
                eprintln!("{}", skipped(path, found.others.len(), example));
            }
            files.extend(found.images);
        }
        Ok(files)
    }
}

fn skipped(folder: &Path, count: usize, example: &Path) -> String {
    let files = if count == 1 { "file" } else { "files" };
    let (folder, example) = (folder.display(), example.display());
    format!("warning: {folder}: left out {count} {files} whose names do not end like an image, such as {example}")
}
