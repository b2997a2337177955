//! The whole network: stem, stages, head.

use std::collections::BTreeMap;

use super::blocks::{Bottleneck, BottleneckShape, Settings, Site, load};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Pointwise, Size};
use super::lowering::{Blocked, Lowering, ModuleNote, NamedConv, Plain};
use super::mobile::InvertedResidual;
use super::{BlockKind, BuildError, Config, ConfigError, Cut, Dfc, Output, make_divisible};
use crate::graph::{Graph, Linear, Tensor};
use ghostserve_weights::{TensorSource, Weights};

/// A network with every channel count resolved.
#[derive(Clone, Debug)]
pub struct Network {
    config: Config,
    stem: ConvBn,
    pub(super) stages: Vec<Vec<Block>>,
    last: ConvBn,
    /// Between pooling and classifier.
    pub(super) hidden: Option<Pointwise>,
}

/// A row of the stage table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Ghost(Box<Bottleneck>),
    Inverted(Box<InvertedResidual>),
}

/// A row of the table that [`Network::table`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRow {
    /// The checkpoint's key prefix: `conv_stem`, `blocks.6.3`.
    pub key: String,
    /// What it is, in short.
    pub what: String,
    /// Channels that leave it.
    pub channels: usize,
    /// Input pixels per output pixel, in one direction; 0 behind the pooling, where there are no pixels.
    pub stride: usize,
    /// Size of the maps that leave it.
    pub size: Size,
    /// Parameters and multiply-adds.
    pub cost: Cost,
}

/// What a network is lowered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Standard ONNX, for any runtime.
    Plain,
    /// ONNX Runtime's blocked layout with the operators of the crate `ghostserve-kernels`, for blocks of this many channels.
    Blocked(usize),
}

/// What to make of a network.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Of the input image.
    pub size: Size,
    /// What the graph computes.
    pub outputs: &'a [Output],
    /// In which operators.
    pub form: Form,
}

/// A graph, and what was done to make it.
#[derive(Debug)]
pub struct Lowered {
    /// One input, `input` (N×C×H×W, f32, normalised), and the outputs asked for, by their names.
    pub graph: Graph,
    /// How each Ghost module was arranged; empty for [`Form::Plain`].
    pub notes: Vec<ModuleNote>,
}

impl Block {
    pub(super) fn output_size(&self, at: Size) -> Size {
        match self {
            Self::Ghost(block) => block.output_size(at),
            Self::Inverted(block) => block.output_size(at),
        }
    }

    fn cost(&self, at: Size) -> Cost {
        match self {
            Self::Ghost(block) => block.cost(at),
            Self::Inverted(block) => block.cost(at),
        }
    }

    /// The attention on its expanded features, and on those that leave it.
    pub(super) fn dfc(&self) -> [Option<&Dfc>; 2] {
        match self {
            Self::Ghost(block) => [block.ghost1().dfc(), block.ghost2().dfc()],
            Self::Inverted(block) => [block.dfc(), block.output_dfc()],
        }
    }

    fn lower<L: Lowering>(&self, to: &mut L, site: Site<'_>, x: &L::Map) -> Result<L::Map, BuildError> {
        match self {
            Self::Ghost(block) => block.lower(to, site, x),
            Self::Inverted(block) => block.lower(to, site, x),
        }
    }
}

impl Network {
    /// Resolves a configuration.
    ///
    /// # Errors
    /// The configuration is no network.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let mobile = config.block == BlockKind::InvertedResidual;
        let settings = Settings { reparameterized: config.block == BlockKind::GhostReparameterized, dfc: &config.dfc };
        let activation = if mobile { Activation::Relu6 } else { Activation::Relu };
        // MobileNetV2's only layer between the bottlenecks and the classifier does not shrink with the width.
        let last = if mobile {
            config.head_features.max(config.scaled(config.head_features))
        } else {
            config.scaled(config.final_channels)
        };
        let stem = config.scaled(config.stem_channels);
        let mut input = stem;
        let (mut stride, mut dilation) = (2, 1);
        let mut stages = Vec::with_capacity(config.stages.len());
        for (s, rows) in config.stages.iter().enumerate() {
            let mut stage = Vec::with_capacity(rows.len());
            for row in rows {
                // Past the output stride, what a stride would have skipped is reached by dilation instead.
                let dilated = stride * row.stride > config.output_stride;
                let after = if dilated { dilation * row.stride } else { dilation };
                let expanded =
                    if mobile { make_divisible((input * row.expanded) as f64, 8) } else { config.scaled(row.expanded) };
                let shape = BottleneckShape {
                    input,
                    expanded: if mobile && row.expanded == 1 { input } else { expanded },
                    output: config.scaled(row.output),
                    kernel: row.kernel,
                    nominal_stride: row.stride,
                    stride: if dilated { 1 } else { row.stride },
                    dilation: [dilation, after],
                    squeezed: row.squeeze_excite.then(|| make_divisible(expanded as f64 * config.se_ratio, 4)),
                    dfc_kernel: config.dfc_kernel(s),
                    settings,
                };
                stage.push(if mobile {
                    Block::Inverted(Box::new(InvertedResidual::new(shape)))
                } else {
                    Block::Ghost(Box::new(Bottleneck::new(shape)))
                });
                input = shape.output;
                stride *= shape.stride;
                dilation = after;
            }
            stages.push(stage);
        }
        let image =
            ConvShape { input: config.input_channels, output: stem, kernel: [3, 3], stride: 2, dilation: 1, groups: 1 };
        let (last_conv, last_norm) = if mobile { ("conv_head", "bn2") } else { ("conv", "bn1") };
        Ok(Self {
            stem: ConvBn::new("conv_stem", "bn1", image, activation),
            stages,
            last: ConvBn::new(last_conv, last_norm, ConvShape::pointwise(input, last), activation),
            hidden: (!mobile).then_some(Pointwise { key: "conv_head", input: last, output: config.head_features }),
            config,
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Parameters and multiply-adds at an input size.
    #[must_use]
    pub fn cost(&self, input: Size) -> Cost {
        self.table(input).into_iter().map(|row| row.cost).sum()
    }

    /// Elements of the classifier's input, the embedding.
    #[must_use]
    pub fn features(&self) -> usize {
        self.hidden.as_ref().map_or(self.last.shape.output, |hidden| hidden.output)
    }

    /// The network layer by layer, at an input size.
    #[must_use]
    pub fn table(&self, input: Size) -> Vec<StageRow> {
        let config = &self.config;
        let mut at = input.strided(self.stem.shape.stride);
        let mut stride = self.stem.shape.stride;
        let relu = if self.hidden.is_some() { "ReLU" } else { "ReLU6" };
        let mut rows = vec![StageRow {
            key: "conv_stem".into(),
            what: format!("conv 3x3, {relu}"),
            channels: self.stem.shape.output,
            stride,
            size: at,
            cost: self.stem.cost(input),
        }];
        for ((s, stage), configs) in self.stages.iter().enumerate().zip(&config.stages) {
            for (b, (block, row)) in stage.iter().zip(configs).enumerate() {
                let cost = block.cost(at);
                let small = block.output_size(at);
                stride *= if small == at { 1 } else { row.stride };
                at = small;
                let mut what = match block {
                    Block::Ghost(_) => format!("bottleneck k{} x{}", row.kernel, config.scaled(row.expanded)),
                    Block::Inverted(_) => format!("inverted k{} x{}", row.kernel, row.expanded),
                };
                for (dfc, mark) in block.dfc().into_iter().zip(["", " out"]) {
                    if let Some(dfc) = dfc {
                        what.push_str(&format!(" DFC{}{mark}", dfc.kernel()));
                    }
                }
                if row.squeeze_excite {
                    what.push_str(" SE");
                }
                let channels = config.scaled(row.output);
                rows.push(StageRow { key: format!("blocks.{s}.{b}"), what, channels, stride, size: at, cost });
            }
        }
        let one = Size { height: 1, width: 1 };
        rows.push(StageRow {
            key: self.last_scope().map_or_else(|| self.last.key().to_owned(), |scope| scope + ".conv"),
            what: format!("conv 1x1, {relu}"),
            channels: self.last.shape.output,
            stride,
            size: at,
            cost: self.last.cost(at),
        });
        rows.extend(self.hidden.as_ref().map(|hidden| StageRow {
            key: hidden.key.into(),
            what: "mean, linear, ReLU".into(),
            channels: hidden.output,
            stride: 0,
            size: one,
            cost: hidden.cost(one),
        }));
        let classifier = (self.features() * config.classes) as u64;
        rows.push(StageRow {
            key: "classifier".into(),
            what: if self.hidden.is_some() { "linear" } else { "mean, linear" }.into(),
            channels: config.classes,
            stride: 0,
            size: one,
            cost: Cost { parameters: classifier + config.classes as u64, macs: classifier },
        });
        rows
    }

    /// Every output that this network's graph can have.
    #[must_use]
    pub fn outputs(&self) -> Vec<Output> {
        let levels = |cut| self.levels(cut).into_keys().map(move |level| Output::Features { cut, level });
        let timm = [Output::Features { cut: Cut::Timm, level: 1 }];
        let mut outputs: Vec<_> = [Output::Logits, Output::Embedding].into_iter().chain(levels(Cut::Deepest)).collect();
        outputs.extend(timm.into_iter().filter(|_| self.hidden.is_some()).chain(levels(Cut::Timm)));
        for (stage, blocks) in self.stages.iter().enumerate() {
            for (block, row) in blocks.iter().enumerate() {
                let [expanded, output] = row.dfc().map(|dfc| dfc.is_some());
                outputs.extend(expanded.then_some(Output::Attention { stage, block }));
                outputs.extend(output.then_some(Output::OutputAttention { stage, block }));
            }
        }
        outputs
    }

    /// The bottleneck behind which each level's maps are taken. timm's first level of the GhostNets is not here: it is
    /// the stem.
    pub(super) fn levels(&self, cut: Cut) -> BTreeMap<u8, (usize, usize)> {
        let mut levels = BTreeMap::new();
        let mut stride: usize = 2;
        for (s, rows) in self.config.stages.iter().enumerate() {
            for (b, row) in rows.iter().enumerate() {
                stride *= row.stride;
                let ends_stage = b + 1 == rows.len();
                let timm = cut == Cut::Timm && self.hidden.is_some();
                let level = u8::try_from(stride.ilog2()).unwrap_or(u8::MAX);
                if level <= 5 && (!timm || (ends_stage && row.stride > 1)) {
                    levels.insert(level, (s, b));
                }
            }
        }
        levels
    }

    /// Lowers the network to a graph. Batch norms are folded, parallel branches added up. Every tensor of `source` must
    /// be used; what no output needs is not in the graph.
    ///
    /// # Errors
    /// The weights do not fit, the input is too small for the network's strides, or an output is not to be had.
    pub fn lower(&self, source: &dyn TensorSource, target: &Target<'_>) -> Result<Lowered, BuildError> {
        let known = self.outputs();
        if let Some(output) = target.outputs.iter().find(|o| !known.contains(o)) {
            let known = known.iter().map(Output::to_string).collect::<Vec<_>>().join(", ");
            return Err(BuildError::Output { found: output.to_string(), known });
        }
        let mut graph = Graph::new(&self.config.name);
        let notes = match target.form {
            Form::Plain => {
                self.emit(&mut Plain(&mut graph), source, target)?;
                Vec::new()
            }
            Form::Blocked(block) => {
                let mut blocked = Blocked { graph: &mut graph, block, notes: Vec::new() };
                self.emit(&mut blocked, source, target)?;
                blocked.notes
            }
        };
        graph.prune();
        graph.order_outputs(&target.outputs.iter().map(Output::to_string).collect::<Vec<_>>());
        Ok(Lowered { graph, notes })
    }

    fn emit<L: Lowering>(&self, to: &mut L, source: &dyn TensorSource, target: &Target<'_>) -> Result<(), BuildError> {
        let config = &self.config;
        let weights = Weights::new(source);
        let root = weights.root();
        let wanted = |output: Output| target.outputs.contains(&output).then(|| output.to_string());
        let levels = [Cut::Deepest, Cut::Timm].map(|cut| (cut, self.levels(cut)));

        let image = to.image(config.input_channels, target.size)?;
        let mut x = to.conv(load(&self.stem, &root)?, &image, None)?;
        let first = Output::Features { cut: Cut::Timm, level: 1 };
        if let Some(name) = wanted(first).filter(|_| self.hidden.is_some()) {
            let stem = NamedConv {
                name: format!("{}.alone", self.stem.key()),
                conv: self.stem.load_without_norm(&root)?,
                activation: Activation::None,
            };
            let maps = to.conv(stem, &image, None)?;
            to.output_map(&name, &maps)?;
        }
        for (s, stage) in self.stages.iter().enumerate() {
            for (b, block) in stage.iter().enumerate() {
                let site = Site {
                    scope: root.sub("blocks").sub(&s.to_string()).sub(&b.to_string()),
                    attention: wanted(Output::Attention { stage: s, block: b }),
                    output_attention: wanted(Output::OutputAttention { stage: s, block: b }),
                };
                x = block.lower(to, site, &x)?;
                for (cut, levels) in &levels {
                    for (&level, _) in levels.iter().filter(|(_, at)| **at == (s, b)) {
                        if let Some(name) = wanted(Output::Features { cut: *cut, level }) {
                            to.output_map(&name, &x)?;
                        }
                    }
                }
            }
        }
        let scope = self.last_scope().map_or_else(|| weights.root(), |key| root.sub(&key));
        x = to.conv(load(&self.last, &scope)?, &x, None)?;
        let mut row = to.mean("global_pool", &x)?;
        if let Some(hidden) = &self.hidden {
            let (weight, bias) = hidden.load(&root)?;
            row = to.linear(hidden.key, &row, Linear { weight, bias }, true)?;
        }
        if let Some(name) = wanted(Output::Embedding) {
            to.output_row(&name, &row)?;
        }
        let shape = [config.classes, self.features()];
        let classifier = root.sub("classifier");
        let linear = Linear {
            weight: Tensor { shape: shape.to_vec(), data: classifier.get("weight", &shape)? },
            bias: classifier.get("bias", &[config.classes])?,
        };
        row = to.linear("classifier", &row, linear, false)?;
        if let Some(name) = wanted(Output::Logits) {
            to.output_row(&name, &row)?;
        }
        weights.finish()?;
        Ok(())
    }

    /// In the GhostNets' checkpoints the last 1×1 convolution is one more "stage"; in MobileNetV2's it is not.
    fn last_scope(&self) -> Option<String> {
        self.hidden.is_some().then(|| format!("blocks.{}.0", self.stages.len()))
    }
}
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::preset;
    use ghostserve_weights::{Synthetic, WeightsError};

    const IMAGENET: Size = Size { height: 224, width: 224 };

    #[test]
    fn attention_starts_with_the_third_bottleneck() {
        let table = Network::new(preset("ghostnetv2_100").unwrap()).unwrap().table(IMAGENET);
        let without: Vec<_> = table
            .iter()
            .filter(|r| r.key.starts_with("blocks") && !r.what.contains("DFC"))
            .map(|r| &r.key[..])
            .collect();
        assert_eq!(without, ["blocks.0.0", "blocks.1.0", "blocks.9.0.conv"]);
        let deepest = table.iter().find(|r| r.key == "blocks.8.3").unwrap();
        assert_eq!((deepest.channels, deepest.stride, deepest.size.height), (160, 32, 7));
    }

    fn lower(size: usize, source: &dyn TensorSource, outputs: &[Output]) -> Result<Lowered, BuildError> {
        let network = Network::new(preset("ghostnetv2_100").unwrap()).unwrap();
        network.lower(source, &Target { size: Size { height: size, width: size }, outputs, form: Form::Plain })
    }

    #[test]
    fn an_input_too_small_for_the_strides_is_an_error_with_the_layer_in_it() {
        let error = lower(16, &Synthetic, &[Output::Logits]).unwrap_err().to_string();
        assert!(error.contains("dfc.pool") && error.contains("2x2"), "{error}");
    }

    #[test]
    fn what_is_not_selected_is_not_in_the_graph() {
        let nodes = |outputs: &[Output]| lower(64, &Synthetic, outputs).unwrap().graph.node_count();
        let logits = nodes(&[Output::Logits]);
        let c3 = Output::Features { cut: Cut::Deepest, level: 3 };
        // One more node names an output; the maps are there anyway.
        assert_eq!(nodes(&[Output::Logits, c3]), logits + 1);
        assert!(nodes(&[c3]) < logits / 2, "{} of {logits}", nodes(&[c3]));
    }

    #[test]
    fn an_output_that_the_network_has_not_is_refused_with_those_it_has() {
        let error = lower(64, &Synthetic, &[Output::Attention { stage: 0, block: 0 }]).unwrap_err().to_string();
        assert!(
            error.starts_with("this network has no output `attention.0.0`: it has logits, embedding, c1"),
            "{error}"
        );
        assert!(error.contains("timm.c1") && error.contains("attention.8.3"), "{error}");
    }

    #[test]
    fn a_checkpoint_with_another_number_of_classes_is_refused_by_name() {
        struct Other;
        impl TensorSource for Other {
            fn shape(&self, key: &str, wanted: &[usize]) -> Option<Vec<usize>> {
                Some(if key == "classifier.weight" { vec![7, 1280] } else { wanted.to_vec() })
            }
            fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
                Synthetic.read(key, shape)
            }
            fn keys(&self) -> Vec<String> {
                Vec::new()
            }
        }
        let error = lower(64, &Other, &[Output::Logits]).unwrap_err().to_string();
        assert_eq!(error, "tensor `classifier.weight`: expected shape [1000, 1280], found [7, 1280]");
    }
}
