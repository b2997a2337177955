//! `ghostserve classify`.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::RuntimeArgs;
use super::locate::PullFlag;
use crate::eval::Classifier;
use crate::model::ModelFolder;

/// Classify image files without a server.
#[derive(Debug, Args)]
pub(super) struct ClassifyArgs {
    /// The embedded model's name, or a model folder.
    model: String,

    /// Image files.
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Number of predictions per file.
    #[arg(long, default_value_t = 5, value_name = "N")]
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
        let loaded = ModelFolder::resolve(&self.pull.locate(&self.model)?)?.load()?;
        let mut classifier = Classifier::new(&loaded, &self.runtime.load()?, self.runtime.backend())?;
        let mut out = stdout().lock();
        let mut code = ExitCode::SUCCESS;
        for file in &self.files {
            let result = std::fs::read(file).context("cannot read it").and_then(|bytes| {
                let (image, predictions) = classifier.classify(&bytes, self.top_k)?;
                Ok((image, predictions))
            });
            let name = file.display();
            match result {
                Ok((image, predictions)) if self.json => {
                    let line = serde_json::json!({"file": file, "image": image, "predictions": predictions});
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
                    eprintln!("error: {name}: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}
