//! `ghostserve eval`.

use std::borrow::Cow;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::locate::PullFlag;
use super::{RuntimeArgs, values};
use crate::eval::{EvalReport, Samples, evaluate};
use crate::model::ModelFolder;

/// Measure a model's accuracy over a folder of images.
///
/// FOLDER holds one folder per class, named by label or by WordNet id, with images in it: FOLDER/cat/0001.jpg. Files
/// elsewhere are left out, with a warning. With --json, the report is one object: {"model", "digest", "all": {"label",
/// "images", "top1", "top5"}, "classes": [as "all", in the order of the outputs], "failed": [{"file", "error"}],
/// "left_out": ["path"]}. If any file fails, the exit status is 1.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// The embedded model's name, or a model folder.
    model: String,

    /// The images.
    folder: PathBuf,

    /// Number of threads, each with a session [default: one per core].
    #[arg(long, value_parser = values::at_least_one, value_name = "N")]
    threads: Option<usize>,

    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pull: PullFlag,

    #[command(flatten)]
    runtime: RuntimeArgs,
}

impl EvalArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let loaded = ModelFolder::resolve(&self.pull.locate(&self.model)?)?.load()?;
        let samples = Samples::find(&self.folder, &loaded.labels)?;
        if let Some(example) = samples.left_out().first() {
            let count = samples.left_out().len();
            let entries = if count == 1 { "entry that is" } else { "entries that are" };
            eprintln!(
                "warning: left out {count} {entries} no image in a folder of a class, such as {}",
                example.display()
            );
        }
        let (runtime, backend) = (self.runtime.load()?, self.runtime.backend());
        let threads = self.threads.unwrap_or_else(|| available_parallelism().map_or(1, std::num::NonZero::get));

        // The bar hides itself where standard error is not a terminal.
        let bar = ProgressBar::new(samples.len() as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} images, {per_sec}, {eta} left") {
            bar.set_style(style);
        }
        let report = evaluate(&loaded, &samples, &runtime, backend, threads, &|| bar.inc(1))?;
        bar.finish_and_clear();

        let mut out = stdout().lock();
        if self.json {
            let report = JsonReport {
                model: &loaded.manifest.id,
                digest: loaded.digest.as_str(),
                report: &report,
                left_out: samples.left_out().iter().map(|path| path.to_string_lossy()).collect(),
            };
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            print(&report, &mut out)?;
        }
        Ok(if report.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct JsonReport<'a> {
    model: &'a str,
    digest: &'a str,
    #[serde(flatten)]
    report: &'a EvalReport,
    left_out: Vec<Cow<'a, str>>,
}

fn print(report: &EvalReport, out: &mut impl Write) -> std::io::Result<()> {
    let width = report.classes.iter().map(|c| c.label.chars().count()).max().unwrap_or(0).max(5);
    writeln!(out, "{:<width$}  {:>7}  {:>8}  {:>8}", "class", "images", "top-1 %", "top-5 %")?;
    let rows = report.classes.iter().filter(|class| class.images > 0);
    for class in rows.chain([&report.all]) {
        let (top1, top5) = (class.top1_percent(), class.top5_percent());
        writeln!(out, "{:<width$}  {:>7}  {top1:>8.2}  {top5:>8.2}", class.label, class.images)?;
    }
    for failure in &report.failed {
        writeln!(out, "not read: {}: {}", failure.file.display(), failure.error)?;
    }
    Ok(())
}
