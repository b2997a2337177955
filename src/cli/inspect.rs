//! `ghostserve inspect`.

use std::io::{Write, stdout};
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::locate::PullFlag;
use super::{build, values};
use crate::model::ModelFolder;
use ghostserve_ghostnet::{Form, ModulePacking, Network, Output, PRESETS, Size, Target, preset};
use ghostserve_kernels::native_block;
use ghostserve_weights::Synthetic;

/// The size of the images that the published networks were trained on.
const PRESET_SIZE: Size = Size { height: 224, width: 224 };

/// Print a network's stage table, parameters and multiply-adds.
///
/// MODEL is a preset (ghostnetv2_100; a wrong name lists all), a configuration file (.toml), the embedded model, or
/// a model folder. The last column shows how the blocked form arranges each Ghost module's channels.
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
}

impl InspectArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = stdout().lock();
        let is_file = Path::new(&self.model).extension().is_some_and(|e| e == "toml");
        let (network, own_size) = match preset(&self.model) {
            Some(config) => (Network::new(config)?, PRESET_SIZE),
            None if is_file => (Network::new(build::read_config(&self.model)?)?, PRESET_SIZE),
            None => {
                let loaded = match self.pull.locate(&self.model) {
                    Ok(model) => ModelFolder::resolve(&model)?.load()?,
                    Err(error) => bail!("{error:#}; or a preset: {}", PRESETS.join(", ")),
                };
                let size = loaded.input_size();
                writeln!(out, "model         {}", loaded.manifest.id)?;
                writeln!(out, "description   {}", loaded.manifest.description)?;
                writeln!(out, "digest        {}", loaded.digest)?;
                writeln!(out, "classes       {}", loaded.labels.len())?;
                let Some(backbone) = &loaded.backbone else {
                    writeln!(out, "architecture  onnx (a foreign graph: no stage table)")?;
                    return Ok(ExitCode::SUCCESS);
                };
                (backbone.network().clone(), size)
            }
        };
        let input = self.size.map_or(own_size, |[height, width]| Size { height, width });
        let block = self.block.map_or_else(|| native_block().unwrap_or(16), usize::from);
        let total = network.cost(input);
        writeln!(out, "architecture  {}", network.config().name)?;
        writeln!(out, "input         {}x{}x{}", network.config().input_channels, input.height, input.width)?;
        writeln!(out, "parameters    {}", thousands(total.parameters))?;
        writeln!(out, "MACs          {}\n", thousands(total.macs))?;

        // The arrangement follows from the shapes alone, so any weights will do.
        let target = Target { size: input, outputs: &[Output::Logits], form: Form::Blocked(block) };
        let notes = network.lower(&Synthetic, &target).map(|lowered| lowered.packings);
        let arranged = notes.as_ref().map_or(&[][..], |notes| &notes[..]);
        writeln!(
            out,
            "{:<15} {:<30} {:>8} {:>6} {:>9} {:>10} {:>12}  in blocks of {block}",
            "layer", "what", "channels", "stride", "output", "parameters", "MACs"
        )?;
        for row in network.table(input) {
            let stride = if row.stride == 0 { "-".to_owned() } else { row.stride.to_string() };
            let line = format!(
                "{:<15} {:<30} {:>8} {:>6} {:>9} {:>10} {:>12}  {}",
                row.key,
                row.description,
                row.channels,
                stride,
                format!("{}x{}", row.size.height, row.size.width),
                thousands(row.cost.parameters),
                thousands(row.cost.macs),
                arrangement(arranged, &row.key),
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        match notes {
            Err(error) => writeln!(out, "\nThis size does not run: {error}")?,
            Ok(notes) if !notes.is_empty() => {
                writeln!(out, "\n72+8: 72 channels and 8 of padding; *: intrinsic and ghost maps share a block")?;
            }
            Ok(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The Ghost modules of one row, first and second: channels, padding, whether the two kinds of maps share a block.
fn arrangement(notes: &[ModulePacking], key: &str) -> String {
    let of_row = notes.iter().filter(|n| n.key.strip_prefix(key).is_some_and(|rest| rest.starts_with(".ghost")));
    let modules = of_row.map(|note| {
        let padding = note.slots - note.channels;
        let padding = if padding == 0 { String::new() } else { format!("+{padding}") };
        format!("{}{padding}{}", note.channels, if note.shared_block { "*" } else { "" })
    });
    modules.collect::<Vec<_>>().join("  ")
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
