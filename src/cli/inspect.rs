//! `ghostserve inspect`.

use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use super::locate::PullFlag;
use super::{build, errors, values};
use crate::model::ModelFolder;
use ghostserve_ghostnet::{Form, ModulePacking, Network, Output, PRESETS, Size, StageRow, Target, preset};
use ghostserve_kernels::native_block;
use ghostserve_weights::Synthetic;

/// The size of the images that the published networks were trained on.
const PRESET_SIZE: Size = Size { height: 224, width: 224 };

/// Print a network's stage table, parameters and multiply-adds.
///
/// MODEL is a preset (ghostnetv2_100; a wrong name lists all), a configuration file (.toml), the embedded model, or
/// a model folder. The last column shows how the blocked form arranges each Ghost module's channels. With --json, the
/// same is one object: {"model": {"id", "description", "digest", "classes"}, "architecture", "input": {"channels",
/// "height", "width"}, "parameters", "macs", "block", "layers": [{"layer", "description", "channels", "stride",
/// "height", "width", "parameters", "macs", "ghost_modules": [{"channels", "padding", "shared_block"}]}], "error"}.
/// Values that do not exist are null.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// The network to inspect.
    model: String,

    /// Height and width of the input in pixels: 224, 320x416 [default: the model's; 224 for a preset].
    #[arg(long, value_name = "SIZE", value_parser = values::image_size)]
    size: Option<[usize; 2]>,

    /// Channels per block in the last column [default: this processor's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    block: Option<u16>,

    #[command(flatten)]
    pull: PullFlag,

    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What is printed. The names of the fields are those of `--json`.
#[derive(Serialize)]
struct Inspection {
    /// The model folder, if it is one.
    model: Option<ModelDescription>,
    architecture: String,
    #[serde(flatten)]
    network: NetworkDescription,
}

#[derive(Serialize)]
struct ModelDescription {
    id: String,
    description: String,
    digest: String,
    classes: usize,
}

/// All `None` and empty for a foreign ONNX graph, whose layers are not known.
#[derive(Default, Serialize)]
struct NetworkDescription {
    input: Option<InputDescription>,
    parameters: Option<u64>,
    macs: Option<u64>,
    /// Channels per block.
    block: Option<usize>,
    layers: Vec<LayerDescription>,
    /// Why the network does not run at this size.
    error: Option<String>,
}

#[derive(Serialize)]
struct InputDescription {
    channels: usize,
    height: usize,
    width: usize,
}

#[derive(Serialize)]
struct LayerDescription {
    layer: String,
    description: String,
    channels: usize,
    /// `None` after the pooling.
    stride: Option<usize>,
    height: usize,
    width: usize,
    parameters: u64,
    macs: u64,
    ghost_modules: Vec<GhostModule>,
}

/// The arrangement of a Ghost module's channels in blocks.
#[derive(Serialize)]
struct GhostModule {
    channels: usize,
    /// Unused channels that fill the last block.
    padding: usize,
    /// Whether intrinsic and ghost maps share a block.
    shared_block: bool,
}

impl InspectArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let inspection = self.inspect()?;
        let mut out = stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&inspection)?)?;
        } else {
            print(&inspection, &mut out)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn inspect(&self) -> anyhow::Result<Inspection> {
        let is_file = Path::new(&self.model).extension().is_some_and(|e| e == "toml");
        let (model, network, own_size) = match preset(&self.model) {
            Some(config) => (None, Network::new(config)?, PRESET_SIZE),
            None if is_file => (None, Network::new(build::read_config(&self.model)?)?, PRESET_SIZE),
            None => {
                let loaded = match self.pull.locate(&self.model) {
                    Ok(model) => ModelFolder::resolve(&model)?.load()?,
                    // A model that could not be fetched is no misspelt preset.
                    Err(error) if self.pull.is_set() => return Err(error),
                    Err(error) => bail!("{}; or a preset: {}", errors::describe(&error), PRESETS.join(", ")),
                };
                let model = Some(ModelDescription {
                    id: loaded.manifest.id.clone(),
                    description: loaded.manifest.description.clone(),
                    digest: loaded.digest.to_string(),
                    classes: loaded.labels.len(),
                });
                let Some(backbone) = &loaded.backbone else {
                    let (architecture, network) = ("onnx".to_owned(), NetworkDescription::default());
                    return Ok(Inspection { model, architecture, network });
                };
                (model, backbone.network().clone(), loaded.input_size())
            }
        };
        let input = self.size.map_or(own_size, |[height, width]| Size { height, width });
        let block = self.block.map_or_else(|| native_block().unwrap_or(16), usize::from);
        let architecture = network.config().name.clone();
        Ok(Inspection { model, architecture, network: describe(&network, input, block) })
    }
}

fn describe(network: &Network, input: Size, block: usize) -> NetworkDescription {
    let total = network.cost(input);
    // The arrangement follows from the shapes alone, so any weights will do.
    let target = Target { size: input, outputs: &[Output::Logits], form: Form::Blocked(block) };
    let (packings, error) = match network.lower(&Synthetic, &target) {
        Ok(lowered) => (lowered.packings, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let layer = |row: StageRow| LayerDescription {
        ghost_modules: ghost_modules(&packings, &row.key),
        layer: row.key,
        description: row.description,
        channels: row.channels,
        stride: (row.stride != 0).then_some(row.stride),
        height: row.size.height,
        width: row.size.width,
        parameters: row.cost.parameters,
        macs: row.cost.macs,
    };
    NetworkDescription {
        input: Some(InputDescription {
            channels: network.config().input_channels,
            height: input.height,
            width: input.width,
        }),
        parameters: Some(total.parameters),
        macs: Some(total.macs),
        block: Some(block),
        layers: network.table(input).into_iter().map(layer).collect(),
        error,
    }
}

/// The Ghost modules of one row, first and second.
fn ghost_modules(packings: &[ModulePacking], key: &str) -> Vec<GhostModule> {
    let of_row = packings.iter().filter(|n| n.key.strip_prefix(key).is_some_and(|rest| rest.starts_with(".ghost")));
    let module = |packing: &ModulePacking| GhostModule {
        channels: packing.channels,
        padding: packing.slots - packing.channels,
        shared_block: packing.shared_block,
    };
    of_row.map(module).collect()
}

fn print(inspection: &Inspection, out: &mut impl Write) -> std::io::Result<()> {
    if let Some(model) = &inspection.model {
        writeln!(out, "model         {}", model.id)?;
        writeln!(out, "description   {}", model.description)?;
        writeln!(out, "digest        {}", model.digest)?;
        writeln!(out, "classes       {}", model.classes)?;
    }
    let NetworkDescription { input, parameters, macs, block, layers, error } = &inspection.network;
    let (Some(input), Some(parameters), Some(macs), Some(block)) = (input, parameters, macs, block) else {
        return writeln!(out, "architecture  {} (a foreign graph: no stage table)", inspection.architecture);
    };
    writeln!(out, "architecture  {}", inspection.architecture)?;
    writeln!(out, "input         {}x{}x{}", input.channels, input.height, input.width)?;
    writeln!(out, "parameters    {}", thousands(*parameters))?;
    writeln!(out, "MACs          {}\n", thousands(*macs))?;
    writeln!(
        out,
        "{:<15} {:<30} {:>8} {:>6} {:>9} {:>10} {:>12}  in blocks of {block}",
        "layer", "what", "channels", "stride", "output", "parameters", "MACs"
    )?;
    for row in layers {
        let line = format!(
            "{:<15} {:<30} {:>8} {:>6} {:>9} {:>10} {:>12}  {}",
            row.layer,
            row.description,
            row.channels,
            row.stride.map_or("-".to_owned(), |stride| stride.to_string()),
            format!("{}x{}", row.height, row.width),
            thousands(row.parameters),
            thousands(row.macs),
            row.ghost_modules.iter().map(arrangement).collect::<Vec<_>>().join("  "),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    if let Some(error) = error {
        writeln!(out, "\nThis size does not run: {error}")?;
    } else if layers.iter().any(|layer| !layer.ghost_modules.is_empty()) {
        writeln!(out, "\n72+8: 72 channels and 8 of padding; *: intrinsic and ghost maps share a block")?;
    }
    Ok(())
}

/// A module in the last column: channels, padding, whether the two kinds of maps share a block.
fn arrangement(module: &GhostModule) -> String {
    let padding = if module.padding == 0 { String::new() } else { format!("+{}", module.padding) };
    format!("{}{padding}{}", module.channels, if module.shared_block { "*" } else { "" })
}

/// Groups digits: `6156908` becomes `6,156,908`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 6_156_908].map(thousands), ["0", "999", "1,000", "6,156,908"]);
    }
}
