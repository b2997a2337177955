//! The gates of a network's DFC attention, and which of them a request means that names none.

use ghostserve_ghostnet::{Network, Output, OutputShape, Size};

use super::features::{MAX_SIDE, MIN_SIDE, STRIDE};

/// Cells in each direction from which a gate shows where in an image it is open.
const SHOWN_CELLS: usize = 7;
/// The shorter side of an input, pixels, at which GhostNet has such gates down to the features at stride 16.
const SHOWN_SIDE: usize = 224;

/// The gate of one bottleneck's attention at one size of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionGate {
    /// The output of the network.
    pub output: Output,
    /// Channels, height and width.
    pub shape: OutputShape,
}

impl AttentionGate {
    /// Height and width, in cells.
    #[must_use]
    pub fn cells(&self) -> [usize; 2] {
        match self.shape.shape[..] {
            [_, height, width] => [height, width],
            _ => [0, 0],
        }
    }

    /// The bottleneck: `6.4`, or `6.4.output` for the gate of its output features.
    #[must_use]
    pub fn layer(&self) -> String {
        Self::layer_of(self.output)
    }

    /// The bottleneck of an output that is a gate.
    #[must_use]
    pub fn layer_of(output: Output) -> String {
        output.to_string().trim_start_matches("attention.").to_owned()
    }

    /// The gates of a network at a size of its input, from the first to the deepest bottleneck.
    #[must_use]
    pub fn all(network: &Network, [height, width]: [usize; 2]) -> Vec<Self> {
        let shapes = network.shapes(Size { height, width });
        let is_gate = |output: &Output| matches!(output, Output::Attention { .. } | Output::OutputAttention { .. });
        let gate = |output| Some(Self { output, shape: shapes.of(output)? });
        network.outputs().into_iter().filter(is_gate).filter_map(gate).collect()
    }

    /// The gate that is shown if a request names none: the deepest of at least 7×7 cells. Where the input is too small
    /// for one, the deepest of those with the most cells.
    #[must_use]
    pub fn default_of(gates: &[Self]) -> Option<&Self> {
        let shown = gates.iter().rfind(|gate| gate.cells().iter().all(|side| *side >= SHOWN_CELLS));
        shown.or_else(|| gates.iter().max_by_key(|gate| gate.cells().iter().product::<usize>()))
    }
}

/// Height and width of the input for attention if a request names none: the model's own, `own`, enlarged to a shorter
/// side of 224, in multiples of 32. Where the limit of pixels forbids that, the largest below it.
pub(super) fn default_size(own: [usize; 2], max_pixels: usize) -> [usize; 2] {
    let short = own[0].min(own[1]).max(1);
    let multiple = |side: usize| side.div_ceil(STRIDE).max(1) * STRIDE;
    let enlarged = |target: usize| own.map(|side| multiple(side * target / short));
    let allowed = |size: &[usize; 2]| {
        size[0] * size[1] <= max_pixels && size.iter().all(|side| (MIN_SIDE..=MAX_SIDE).contains(side))
    };
    let targets = (1..=SHOWN_SIDE / STRIDE).rev().map(|n| n * STRIDE).take_while(|target| *target > short);
    targets.map(enlarged).find(allowed).unwrap_or(own)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn default_at(size: [usize; 2]) -> (String, [usize; 2]) {
        let network = Network::new(ghostserve_ghostnet::preset("ghostnetv2_100").unwrap()).unwrap();
        let gates = AttentionGate::all(&network, size);
        let gate = AttentionGate::default_of(&gates).unwrap();
        (gate.layer(), gate.cells())
    }

    #[test]
    fn the_default_is_the_deepest_gate_of_seven_by_seven_cells() {
        assert_eq!(default_at([224, 224]), ("7.0".into(), [7, 7]));
        assert_eq!(default_at([448, 448]), ("8.3".into(), [7, 7]));
        assert_eq!(default_at([448, 416]), ("7.0".into(), [14, 13]), "8.3 has 7x6");
        assert_eq!(default_at([64, 64]), ("3.0".into(), [8, 8]));
        assert_eq!(default_at([64, 96]), ("3.0".into(), [8, 12]));
        assert_eq!(default_at([32, 32]), ("3.0".into(), [4, 4]), "none has 7x7, so the most cells");
    }

    #[test]
    fn the_default_size_shows_such_a_gate() {
        let limit = 640 * 640;
        assert_eq!(default_size([64, 64], limit), [224, 224]);
        assert_eq!(default_size([32, 32], limit), [224, 224]);
        assert_eq!(default_size([64, 96], limit), [224, 352]);
        for own in [[224, 224], [240, 240], [256, 320]] {
            assert_eq!(default_size(own, limit), own, "large enough");
        }
        assert_eq!(default_size([64, 64], 200 * 200), [192, 192], "the limit");
        assert_eq!(default_size([64, 64], 64 * 64), [64, 64]);
        assert_eq!(default_size([64, 4096], limit), [64, 4096], "no enlarged size is allowed");
    }
}
