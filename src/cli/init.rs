//! `ghostserve init`.

use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::pull::shell_word;
use super::{RuntimeArgs, values};
use crate::init::{InitReport, InitRequest, InputOptions, InputPreset, PresetGuess, init};
use crate::runtime::{LIBRARY_ENV, Runtime, RuntimeError};
use ghostserve_hub::FolderOutcome;
use ghostserve_manifest::{CropMode, InputSpec, Interpolation, OutputKind};

/// Number of labels in the summary.
const SHOWN_LABELS: usize = 4;

/// Make a model folder of your own ONNX file or weights, ready for `serve --model`.
///
/// FILE is an ONNX classifier of any architecture, or weights (safetensors, PyTorch checkpoint) of a network of timm's
/// GhostNet family. Its architecture, size and classes are read from the file, the model is loaded and run once, and
/// only then is the folder written. What was guessed is printed, with the flag that changes it.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The ONNX file, safetensors file or PyTorch checkpoint.
    file: PathBuf,

    /// Text file with one class a line, in the order of the outputs [default: ImageNet's, if it is one of its models].
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,

    /// The network that the weights belong to: a preset or a .toml file (docs/networks.md) [default: identified].
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,

    /// Pre-processing of a library's models [default: asked on a terminal, else guessed from names].
    #[arg(long, value_enum)]
    preset: Option<PresetName>,

    /// The folder to make [default: the model's name, here].
    #[arg(short = 'o', long, value_name = "DIR")]
    folder: Option<PathBuf>,

    /// The name that clients see [default: the folder's or the file's].
    #[arg(long)]
    id: Option<String>,

    /// One line that describes the model.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// Height and width of the input in pixels: 224, 320x416 [default: the graph's, else 224].
    #[arg(long, value_name = "SIZE", value_parser = values::image_size)]
    size: Option<[usize; 2]>,

    /// The shorter side before the crop, pixels.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u16).range(1..=4096))]
    resize: Option<u16>,

    /// The filter of the resize, antialiased.
    #[arg(long, value_enum)]
    interpolation: Option<InterpolationName>,

    /// How a photograph that is not square becomes the input.
    #[arg(long, value_enum)]
    crop_mode: Option<CropModeName>,

    /// Mean of R, G, B on a scale of 0 to 1: 0.485,0.456,0.406, or one number for all.
    #[arg(long, value_name = "R,G,B", value_parser = values::three_numbers)]
    mean: Option<[f32; 3]>,

    /// Standard deviation of R, G, B.
    #[arg(long, value_name = "R,G,B", value_parser = values::three_numbers)]
    std: Option<[f32; 3]>,

    /// Whether the network ends in a softmax [default: probabilities if the graph does].
    #[arg(long, value_enum)]
    output: Option<OutputName>,

    /// Replace files of the folder.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetName {
    /// Bicubic to size / 0.875, centre crop, ImageNet's mean and standard deviation.
    Timm,
    /// Bilinear to 256 for 224, centre crop, ImageNet's mean and standard deviation.
    Torchvision,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InterpolationName {
    Bicubic,
    Bilinear,
    Lanczos,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CropModeName {
    Center,
    Squash,
    Border,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OutputName {
    Logits,
    Probabilities,
}

impl InitArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = match self.runtime.load() {
            Ok(runtime) => Some(runtime),
            // A library that was named must be there; otherwise the model can be checked without.
            Err(RuntimeError::Library { .. }) if self.runtime.onnxruntime.is_none() => None,
            Err(error) => return Err(error.into()),
        };
        let interactive = stdin().is_terminal() && stderr().is_terminal();
        let choose = |guess: &PresetGuess| if interactive { ask(guess) } else { Ok(guess.preset) };
        let request = InitRequest {
            file: &self.file,
            labels: self.labels.as_deref(),
            architecture: self.architecture.as_deref(),
            folder: self.folder.as_deref(),
            id: self.id.as_deref(),
            description: self.description.as_deref(),
            input: self.input_options(),
            output: self.output.map(|output| match output {
                OutputName::Logits => OutputKind::Logits,
                OutputName::Probabilities => OutputKind::Probabilities,
            }),
            force: self.force,
        };
        let backend = self.runtime.backend();
        let report = init(&request, &choose, runtime.as_ref().map(|runtime| (runtime, backend)))?;
        for note in &report.notes {
            eprintln!("note: {note}");
        }
        print(&report, &self.file.display().to_string(), runtime.as_ref())?;
        Ok(ExitCode::SUCCESS)
    }

    fn input_options(&self) -> InputOptions {
        InputOptions {
            preset: self.preset.map(|preset| match preset {
                PresetName::Timm => InputPreset::Timm,
                PresetName::Torchvision => InputPreset::Torchvision,
            }),
            size: self.size,
            resize: self.resize.map(usize::from),
            interpolation: self.interpolation.map(|interpolation| match interpolation {
                InterpolationName::Bicubic => Interpolation::Bicubic,
                InterpolationName::Bilinear => Interpolation::Bilinear,
                InterpolationName::Lanczos => Interpolation::Lanczos,
            }),
            crop_mode: self.crop_mode.map(|mode| match mode {
                CropModeName::Center => CropMode::Center,
                CropModeName::Squash => CropMode::Squash,
                CropModeName::Border => CropMode::Border,
            }),
            mean: self.mean,
            std: self.std,
        }
    }
}

/// Asks on the terminal which pre-processing the network was trained with. An empty line takes the guess.
fn ask(guess: &PresetGuess) -> std::io::Result<InputPreset> {
    let mut err = stderr();
    writeln!(err, "Which library's pre-processing was the network trained with?")?;
    writeln!(err, "  timm         bicubic, size / 0.875")?;
    writeln!(err, "  torchvision  bilinear, 256 for 224")?;
    loop {
        write!(err, "[{}] ", guess.preset.name())?;
        err.flush()?;
        let mut line = String::new();
        let end = stdin().read_line(&mut line)? == 0;
        match line.trim().to_lowercase().as_str() {
            "" => {
                if end {
                    writeln!(err)?;
                }
                return Ok(guess.preset);
            }
            "timm" => return Ok(InputPreset::Timm),
            "torchvision" => return Ok(InputPreset::Torchvision),
            _ if end => return Ok(guess.preset),
            _ => writeln!(err, "timm or torchvision; for other values end this with Ctrl-C and give flags (--help)")?,
        }
    }
}

fn print(report: &InitReport, file: &str, runtime: Option<&Runtime>) -> std::io::Result<()> {
    let mut out = stdout().lock();
    let done = match report.outcome {
        FolderOutcome::Written => "written",
        FolderOutcome::Unchanged => "already there, unchanged",
        FolderOutcome::Replaced => "replaced",
    };
    let (network, input) = (&report.manifest.network, &report.manifest.input);
    let shown = report.labels.iter().take(SHOWN_LABELS).cloned().collect::<Vec<_>>().join(", ");
    let more = if report.labels.len() > SHOWN_LABELS { ", …" } else { "" };
    let [height, width] = input.crop;
    let output = match network.output {
        OutputKind::Logits => "logits",
        OutputKind::Probabilities => "probabilities",
    };
    let InputSpec { resize, interpolation, crop_mode, mean, std, .. } = input;
    writeln!(out, "folder        {} ({done})", report.folder.display())?;
    writeln!(out, "from          {file}")?;
    writeln!(out, "architecture  {}", network.architecture)?;
    writeln!(out, "weights       {} ({} bytes)", network.weights, report.size)?;
    writeln!(out, "digest        {}", report.digest)?;
    writeln!(out, "labels        {}: {shown}{more}", report.labels.len())?;
    writeln!(out, "input         {height}x{width}: resize {resize} {interpolation}, crop {crop_mode}")?;
    writeln!(out, "              mean {mean:?}, std {std:?}")?;
    writeln!(out, "output        {output}")?;
    match runtime {
        Some(runtime) => writeln!(out, "checked       one image classified with ONNX Runtime {}", runtime.version())?,
        None => writeln!(out, "checked       loaded; not run: no ONNX Runtime ({LIBRARY_ENV})")?,
    }
    writeln!(out, "\nserve it:     ghostserve serve --model {}", shell_word(&report.folder.display().to_string()))
}
