//! `ghostserve build`.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use super::values;
use ghostserve_ghostnet::{Config, Form, Network, Output, PRESETS, Size, Target, preset};
use ghostserve_kernels::native_block;
use ghostserve_manifest::{Digest, write_atomically};
use ghostserve_weights::{Seeded, TensorSource};

/// Write a network as an ONNX file.
///
/// The file has one input, `input` (N x channels x height x width, f32, normalised; N is symbolic, called `batch`),
/// and the requested outputs.
#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// A preset, or a configuration file (docs/networks.md).
    config: String,

    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Weights: safetensors with timm's keys, or a PyTorch checkpoint.
    #[arg(long, value_name = "FILE", conflicts_with = "init")]
    weights: Option<PathBuf>,

    /// Generate weights, for benchmarks.
    #[arg(long)]
    init: Option<Init>,

    /// Seed of the random weights.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "init")]
    seed: u64,

    /// Height and width of the input in pixels: 224, 320x416.
    #[arg(long, value_name = "SIZE", value_parser = values::image_size, default_value = "224")]
    size: [usize; 2],

    /// What the graph computes: logits, embedding, c1 to c5, timm.c1 to timm.c5, attention.STAGE.BLOCK; several
    /// with commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "logits")]
    outputs: Vec<Output>,

    /// Number of classes [default: the configuration's].
    #[arg(long, value_name = "N")]
    classes: Option<usize>,

    /// Standard operators for any runtime, or the form that this server runs on this processor, for inspection.
    #[arg(long, default_value = "plain")]
    form: FormName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Init {
    /// Pseudo-random values of a trained network's magnitude, the same on every machine.
    Random,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormName {
    /// Standard ONNX.
    Plain,
    /// ONNX Runtime's blocked layout and this server's own operators.
    Blocked,
}

impl BuildArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut config = read_config(&self.config)?;
        config.classes = self.classes.unwrap_or(config.classes);
        let network = Network::new(config)?;
        let form = match (self.form, native_block()) {
            (FormName::Plain, _) => Form::Plain,
            (FormName::Blocked, Some(block)) => Form::Blocked(block),
            (FormName::Blocked, None) => bail!("ONNX Runtime has no blocked layout for this processor"),
        };
        let mut outputs = self.outputs;
        outputs.dedup();
        let [height, width] = self.size;
        let target = Target { size: Size { height, width }, outputs: &outputs, form };

        let bytes;
        let file;
        let origin;
        let source: &dyn TensorSource = match &self.weights {
            Some(path) => {
                bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                origin = Digest::of(&bytes).to_string();
                file = ghostserve_weights::open(&bytes).with_context(|| path.display().to_string())?;
                &*file
            }
            None if self.init.is_none() => {
                bail!("which weights? `--weights FILE` reads them, `--init random` makes them up")
            }
            None => {
                origin = format!("random, seed {}", self.seed);
                &Seeded(self.seed)
            }
        };
        let lowered = network.lower(source, &target).with_context(|| match &self.weights {
            Some(path) => format!("{} does not make a {}", path.display(), network.config().name),
            None => network.config().name.clone(),
        })?;
        let nodes = lowered.graph.node_count();
        let names = outputs.iter().map(Output::to_string).collect::<Vec<_>>().join(",");
        let file = lowered.graph.into_onnx(&[
            ("architecture", network.config().name.clone()),
            ("weights", origin),
            ("outputs", names.clone()),
        ]);
        write_atomically(&self.output, &file).with_context(|| format!("cannot write {}", self.output.display()))?;
        let cost = network.cost(target.size);
        writeln!(
            stdout().lock(),
            "{}: {}, {height}x{width}, {names}; {nodes} nodes, {} parameters, {} multiply-adds, {} bytes",
            self.output.display(),
            network.config().name,
            cost.parameters,
            cost.macs,
            file.len(),
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A preset by name, or a configuration file by path.
pub(super) fn read_config(name: &str) -> anyhow::Result<Config> {
    if let Some(config) = preset(name) {
        return Ok(config);
    }
    let path = Path::new(name);
    if path.extension().is_none_or(|e| e != "toml") {
        bail!("no network `{name}`: expected a .toml file or one of {}", PRESETS.join(", "));
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    Config::parse(&text).with_context(|| name.to_owned())
}
