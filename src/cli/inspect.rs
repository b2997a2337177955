//! `ghostserve inspect`.

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::ghostnet::{Network, PRESETS, Size, preset};
use crate::model::ModelFolder;

/// What the published networks were trained at.
const PRESET_SIZE: Size = Size { height: 224, width: 224 };

/// Print a network's stage table, parameters and multiply-adds.
///
/// MODEL is a preset (ghostnetv2_100, ghostnetv2_130, ghostnetv2_160), the embedded model, or a model folder.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// What to inspect.
    model: String,

    /// Height and width of the input, pixels [default: the model's; 224 for a preset].
    #[arg(long, value_name = "N")]
    size: Option<usize>,
}

impl InspectArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = stdout().lock();
        let (network, own_size) = match preset(&self.model) {
            Some(config) => (Network::new(config)?, PRESET_SIZE),
            None => {
                let loaded = match ModelFolder::resolve(&self.model) {
                    Ok(folder) => folder.load()?,
                    Err(error) => bail!("{error}; or a preset: {}", PRESETS.map(|(name, _)| name).join(", ")),
                };
                let size = loaded.input_size();
                writeln!(out, "model         {}", loaded.manifest.id)?;
                writeln!(out, "description   {}", loaded.manifest.description)?;
                writeln!(out, "digest        {}", loaded.manifest.network.digest)?;
                writeln!(out, "classes       {}", loaded.labels.len())?;
                let Some(network) = loaded.network else {
                    writeln!(out, "architecture  onnx (a foreign graph: no stage table)")?;
                    return Ok(ExitCode::SUCCESS);
                };
                (network, size)
            }
        };
        let input = self.size.map_or(own_size, |side| Size { height: side, width: side });
        let total = network.cost(input);
        writeln!(out, "architecture  {}", network.config().name)?;
        writeln!(out, "input         3x{}x{}", input.height, input.width)?;
        writeln!(out, "parameters    {}", thousands(total.parameters))?;
        writeln!(out, "MACs          {}\n", thousands(total.macs))?;

        writeln!(
            out,
            "{:<12} {:<28} {:>8} {:>6} {:>9} {:>10} {:>12}",
            "layer", "what", "channels", "stride", "output", "parameters", "MACs"
        )?;
        for row in network.table(input) {
            let stride = if row.stride == 0 { "-".to_owned() } else { row.stride.to_string() };
            writeln!(
                out,
                "{:<12} {:<28} {:>8} {:>6} {:>9} {:>10} {:>12}",
                row.key,
                row.what,
                row.channels,
                stride,
                format!("{}x{}", row.size.height, row.size.width),
                thousands(row.cost.parameters),
                thousands(row.cost.macs)
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `6156908` as `6,156,908`.
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
