//! The whole network: stem, stages, head; its cost, its stage table, its lowering to a graph.

use std::collections::BTreeMap;

use super::blocks::{BlockContext, Bottleneck, BottleneckShape, NetworkSettings};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Pointwise, Size};
use super::lowering::{BlockedLowering, Lowering, ModulePacking, NamedConv, PlainLowering};
use super::mobile::InvertedResidual;
use super::{BlockKind, BuildError, Config, ConfigError, Cut, Dfc, Output, make_divisible};
use crate::graph::{Graph, Linear, Tensor};
use ghostserve_weights::{TensorSource, Weights};

/// A network with every channel count resolved.
#[derive(Clone, Debug)]
pub struct Network {
    config: Config,
    stem: ConvBn,
    pub(super) stages: Vec<Vec<StageBlock>>,
    /// The last 1×1 convolution before pooling.
    last_conv: ConvBn,
    /// The hidden layer between pooling and classifier; `None` in MobileNetV2.
    pub(super) hidden: Option<Pointwise>,
}

/// The resolved block of one row of the configuration's stage table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StageBlock {
    Ghost(Box<Bottleneck>),
    Inverted(Box<InvertedResidual>),
}

/// A row of the table that [`Network::table`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRow {
    /// The key prefix in the checkpoint: `conv_stem`, `blocks.6.3`.
    pub key: String,
    /// A short description: `bottleneck k5 x120 DFC5 SE`.
    pub description: String,
    /// Number of output channels.
    pub channels: usize,
    /// Pixels of the image per output pixel, in one direction; 0 after the pooling, where there are no pixels.
    pub stride: usize,
    /// Size of the output maps.
    pub size: Size,
    /// Parameters and multiply-adds of the row.
    pub cost: Cost,
}

/// The form of graph that a network is lowered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Standard ONNX, for any runtime.
    Plain,
    /// ONNX Runtime's blocked layout with the operators of the crate `ghostserve-kernels`. Holds the number of channels
    /// per block.
    Blocked(usize),
}

/// The graph to build of a network.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Size of the input image.
    pub size: Size,
    /// The outputs that the graph computes.
    pub outputs: &'a [Output],
    /// The form of the graph.
    pub form: Form,
}

/// The result of [`Network::lower`].
#[derive(Debug)]
pub struct LoweredGraph {
    /// The graph. It has one input, `input` (N×C×H×W, f32, normalised), and the requested outputs under their names.
    pub graph: Graph,
    /// The packing of each Ghost module; empty for [`Form::Plain`].
    pub packings: Vec<ModulePacking>,
}

impl StageBlock {
    pub(super) fn output_size(&self, input: Size) -> Size {
        match self {
            Self::Ghost(block) => block.output_size(input),
            Self::Inverted(block) => block.output_size(input),
        }
    }

    fn cost(&self, input: Size) -> Cost {
        match self {
            Self::Ghost(block) => block.cost(input),
            Self::Inverted(block) => block.cost(input),
        }
    }

    /// The attention on the expanded features, and the attention on the output features.
    pub(super) fn dfc(&self) -> [Option<&Dfc>; 2] {
        match self {
            Self::Ghost(block) => [block.ghost1().dfc(), block.ghost2().dfc()],
            Self::Inverted(block) => [block.dfc(), block.output_dfc()],
        }
    }

    fn lower<L: Lowering>(
        &self,
        lowering: &mut L,
        context: BlockContext<'_>,
        x: &L::Map,
    ) -> Result<L::Map, BuildError> {
        match self {
            Self::Ghost(block) => block.lower(lowering, context, x),
            Self::Inverted(block) => block.lower(lowering, context, x),
        }
    }
}

impl Network {
    /// Resolves a configuration: computes every channel count, stride and dilation.
    ///
    /// # Errors
    /// The configuration is not a valid network.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let mobile = config.block == BlockKind::InvertedResidual;
        let reparameterized = config.block == BlockKind::GhostReparameterized;
        let settings = NetworkSettings { reparameterized, dfc: &config.dfc };
        let activation = if mobile { Activation::Relu6 } else { Activation::Relu };
        // MobileNetV2 has one layer between the bottlenecks and the classifier, and a width below 1 does not shrink it.
        let last_channels = if mobile {
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
                // Past the output stride, a stride is replaced by dilation of the layers after it.
                let dilated = stride * row.stride > config.output_stride;
                let dilation_after = if dilated { dilation * row.stride } else { dilation };
                let expanded =
                    if mobile { make_divisible((input * row.expanded) as f64, 8) } else { config.scaled(row.expanded) };
                let shape = BottleneckShape {
                    input,
                    expanded: if mobile && row.expanded == 1 { input } else { expanded },
                    output: config.scaled(row.output),
                    kernel: row.kernel,
                    nominal_stride: row.stride,
                    stride: if dilated { 1 } else { row.stride },
                    dilation: [dilation, dilation_after],
                    squeezed: row.squeeze_excite.then(|| make_divisible(expanded as f64 * config.se_ratio, 4)),
                    dfc_kernel: config.dfc_kernel(s),
                    settings,
                };
                stage.push(if mobile {
                    StageBlock::Inverted(Box::new(InvertedResidual::new(shape)))
                } else {
                    StageBlock::Ghost(Box::new(Bottleneck::new(shape)))
                });
                input = shape.output;
                stride *= shape.stride;
                dilation = dilation_after;
            }
            stages.push(stage);
        }
        let image =
            ConvShape { input: config.input_channels, output: stem, kernel: [3, 3], stride: 2, dilation: 1, groups: 1 };
        let (last_key, last_norm) = if mobile { ("conv_head", "bn2") } else { ("conv", "bn1") };
        Ok(Self {
            stem: ConvBn::new("conv_stem", "bn1", image, activation),
            stages,
            last_conv: ConvBn::new(last_key, last_norm, ConvShape::pointwise(input, last_channels), activation),
            hidden: (!mobile).then_some(Pointwise {
                key: "conv_head",
                input: last_channels,
                output: config.head_features,
            }),
            config,
        })
    }

    /// The configuration that the network was made from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Parameters and multiply-adds at an input size.
    #[must_use]
    pub fn cost(&self, input: Size) -> Cost {
        self.table(input).into_iter().map(|row| row.cost).sum()
    }

    /// Number of elements of the embedding, the classifier's input.
    #[must_use]
    pub fn features(&self) -> usize {
        self.hidden.as_ref().map_or(self.last_conv.shape.output, |hidden| hidden.output)
    }

    /// The stage table at an input size: one row per bottleneck and per layer of stem and head.
    #[must_use]
    pub fn table(&self, input: Size) -> Vec<StageRow> {
        let config = &self.config;
        let mut size = input.strided(self.stem.shape.stride);
        let mut stride = self.stem.shape.stride;
        let relu = if self.hidden.is_some() { "ReLU" } else { "ReLU6" };
        let mut rows = vec![StageRow {
            key: "conv_stem".into(),
            description: format!("conv 3x3, {relu}"),
            channels: self.stem.shape.output,
            stride,
            size,
            cost: self.stem.cost(input),
        }];
        for ((s, stage), configs) in self.stages.iter().enumerate().zip(&config.stages) {
            for (b, (block, row)) in stage.iter().zip(configs).enumerate() {
                let cost = block.cost(size);
                let output_size = block.output_size(size);
                stride *= if output_size == size { 1 } else { row.stride };
                size = output_size;
                let mut description = match block {
                    StageBlock::Ghost(_) => format!("bottleneck k{} x{}", row.kernel, config.scaled(row.expanded)),
                    StageBlock::Inverted(_) => format!("inverted k{} x{}", row.kernel, row.expanded),
                };
                for (dfc, suffix) in block.dfc().into_iter().zip(["", " out"]) {
                    if let Some(dfc) = dfc {
                        description.push_str(&format!(" DFC{}{suffix}", dfc.kernel()));
                    }
                }
                if row.squeeze_excite {
                    description.push_str(" SE");
                }
                let channels = config.scaled(row.output);
                rows.push(StageRow { key: format!("blocks.{s}.{b}"), description, channels, stride, size, cost });
            }
        }
        let one_pixel = Size { height: 1, width: 1 };
        rows.push(StageRow {
            key: self.last_scope().map_or_else(|| self.last_conv.key().to_owned(), |scope| scope + ".conv"),
            description: format!("conv 1x1, {relu}"),
            channels: self.last_conv.shape.output,
            stride,
            size,
            cost: self.last_conv.cost(size),
        });
        rows.extend(self.hidden.as_ref().map(|hidden| StageRow {
            key: hidden.key.into(),
            description: "mean, linear, ReLU".into(),
            channels: hidden.output,
            stride: 0,
            size: one_pixel,
            cost: hidden.cost(one_pixel),
        }));
        let classifier_weights = (self.features() * config.classes) as u64;
        rows.push(StageRow {
            key: "classifier".into(),
            description: if self.hidden.is_some() { "linear" } else { "mean, linear" }.into(),
            channels: config.classes,
            stride: 0,
            size: one_pixel,
            cost: Cost { parameters: classifier_weights + config.classes as u64, macs: classifier_weights },
        });
        rows
    }

    /// Every output that this network's graph can have.
    #[must_use]
    pub fn outputs(&self) -> Vec<Output> {
        let levels = |cut| self.levels(cut).into_keys().map(move |level| Output::Features { cut, level });
        let timm_stem = [Output::Features { cut: Cut::Timm, level: 1 }];
        let mut outputs: Vec<_> = [Output::Logits, Output::Embedding].into_iter().chain(levels(Cut::Deepest)).collect();
        outputs.extend(timm_stem.into_iter().filter(|_| self.hidden.is_some()).chain(levels(Cut::Timm)));
        for (stage, blocks) in self.stages.iter().enumerate() {
            for (block, stage_block) in blocks.iter().enumerate() {
                let [expanded, output] = stage_block.dfc().map(|dfc| dfc.is_some());
                outputs.extend(expanded.then_some(Output::Attention { stage, block }));
                outputs.extend(output.then_some(Output::OutputAttention { stage, block }));
            }
        }
        outputs
    }

    /// For each level of feature maps, stage and index of the bottleneck whose output they are. timm's first level of
    /// the GhostNets is missing here, because it is the stem's.
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

    /// Lowers the network to a graph. Batch norms are folded and parallel branches are added up. Every tensor of
    /// `source` must be used. The graph contains only what its outputs need.
    ///
    /// # Errors
    /// The weights do not fit, the input is too small for the network's strides, or the network does not have a
    /// requested output.
    pub fn lower(&self, source: &dyn TensorSource, target: &Target<'_>) -> Result<LoweredGraph, BuildError> {
        let known = self.outputs();
        if let Some(output) = target.outputs.iter().find(|o| !known.contains(o)) {
            let known = known.iter().map(Output::to_string).collect::<Vec<_>>().join(", ");
            return Err(BuildError::Output { found: output.to_string(), known });
        }
        let mut graph = Graph::new(&self.config.name);
        let packings = match target.form {
            Form::Plain => {
                self.emit(&mut PlainLowering(&mut graph), source, target)?;
                Vec::new()
            }
            Form::Blocked(block) => {
                let mut blocked = BlockedLowering { graph: &mut graph, block, packings: Vec::new() };
                self.emit(&mut blocked, source, target)?;
                blocked.packings
            }
        };
        graph.prune();
        graph.order_outputs(&target.outputs.iter().map(Output::to_string).collect::<Vec<_>>());
        Ok(LoweredGraph { graph, packings })
    }

    /// Writes every layer through `lowering`, whether an output needs it or not.
    fn emit<L: Lowering>(
        &self,
        lowering: &mut L,
        source: &dyn TensorSource,
        target: &Target<'_>,
    ) -> Result<(), BuildError> {
        let config = &self.config;
        let weights = Weights::new(source);
        let root = weights.root();
        let requested_name = |output: Output| target.outputs.contains(&output).then(|| output.to_string());
        let levels = [Cut::Deepest, Cut::Timm].map(|cut| (cut, self.levels(cut)));

        let image = lowering.image(config.input_channels, target.size)?;
        let mut x = lowering.conv(NamedConv::load(&self.stem, &root)?, &image, None)?;
        let timm_stem = Output::Features { cut: Cut::Timm, level: 1 };
        if let Some(name) = requested_name(timm_stem).filter(|_| self.hidden.is_some()) {
            let stem = NamedConv {
                name: format!("{}.alone", self.stem.key()),
                conv: self.stem.load_without_norm(&root)?,
                activation: Activation::None,
            };
            let maps = lowering.conv(stem, &image, None)?;
            lowering.output_map(&name, &maps)?;
        }
        for (s, stage) in self.stages.iter().enumerate() {
            for (b, block) in stage.iter().enumerate() {
                let context = BlockContext {
                    scope: root.sub("blocks").sub(&s.to_string()).sub(&b.to_string()),
                    attention: requested_name(Output::Attention { stage: s, block: b }),
                    output_attention: requested_name(Output::OutputAttention { stage: s, block: b }),
                };
                x = block.lower(lowering, context, &x)?;
                for (cut, levels) in &levels {
                    for (&level, _) in levels.iter().filter(|(_, position)| **position == (s, b)) {
                        if let Some(name) = requested_name(Output::Features { cut: *cut, level }) {
                            lowering.output_map(&name, &x)?;
                        }
                    }
                }
            }
        }
        let scope = self.last_scope().map_or_else(|| weights.root(), |key| root.sub(&key));
        x = lowering.conv(NamedConv::load(&self.last_conv, &scope)?, &x, None)?;
        let mut row = lowering.mean("global_pool", &x)?;
        if let Some(hidden) = &self.hidden {
            let (weight, bias) = hidden.load(&root)?;
            row = lowering.linear(hidden.key, &row, Linear { weight, bias }, true)?;
        }
        if let Some(name) = requested_name(Output::Embedding) {
            lowering.output_row(&name, &row)?;
        }
        let shape = [config.classes, self.features()];
        let classifier = root.sub("classifier");
        let linear = Linear {
            weight: Tensor { shape: shape.to_vec(), data: classifier.get("weight", &shape)? },
            bias: classifier.get("bias", &[config.classes])?,
        };
        row = lowering.linear("classifier", &row, linear, false)?;
        if let Some(name) = requested_name(Output::Logits) {
            lowering.output_row(&name, &row)?;
        }
        weights.finish()?;
        Ok(())
    }

    /// The scope of the last 1×1 convolution. In the checkpoints of the GhostNets it is one more "stage"; MobileNetV2's
    /// have none.
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
            .filter(|r| r.key.starts_with("blocks") && !r.description.contains("DFC"))
            .map(|r| &r.key[..])
            .collect();
        assert_eq!(without, ["blocks.0.0", "blocks.1.0", "blocks.9.0.conv"]);
        let deepest = table.iter().find(|r| r.key == "blocks.8.3").unwrap();
        assert_eq!((deepest.channels, deepest.stride, deepest.size.height), (160, 32, 7));
    }

    fn lower(size: usize, source: &dyn TensorSource, outputs: &[Output]) -> Result<LoweredGraph, BuildError> {
        let network = Network::new(preset("ghostnetv2_100").unwrap()).unwrap();
        network.lower(source, &Target { size: Size { height: size, width: size }, outputs, form: Form::Plain })
    }

    #[test]
    fn an_input_too_small_for_the_strides_is_an_error_that_names_the_layer() {
        let error = lower(16, &Synthetic, &[Output::Logits]).unwrap_err().to_string();
        assert!(error.contains("dfc.pool") && error.contains("2x2"), "{error}");
    }

    #[test]
    fn the_graph_contains_only_what_its_outputs_need() {
        let nodes = |outputs: &[Output]| lower(64, &Synthetic, outputs).unwrap().graph.node_count();
        let logits = nodes(&[Output::Logits]);
        let c3 = Output::Features { cut: Cut::Deepest, level: 3 };
        // The maps exist anyway; one more node makes them an output.
        assert_eq!(nodes(&[Output::Logits, c3]), logits + 1);
        assert!(nodes(&[c3]) < logits / 2, "{} of {logits}", nodes(&[c3]));
    }

    #[test]
    fn an_unknown_output_is_refused_with_a_list_of_the_known_ones() {
        let error = lower(64, &Synthetic, &[Output::Attention { stage: 0, block: 0 }]).unwrap_err().to_string();
        assert!(
            error.starts_with("this network has no output `attention.0.0`: it has logits, embedding, c1"),
            "{error}"
        );
        assert!(error.contains("timm.c1") && error.contains("attention.8.3"), "{error}");
    }

    #[test]
    fn a_checkpoint_with_another_number_of_classes_is_refused_by_name() {
        struct SevenClasses;
        impl TensorSource for SevenClasses {
            fn shape(&self, key: &str, expected: &[usize]) -> Option<Vec<usize>> {
                Some(if key == "classifier.weight" { vec![7, 1280] } else { expected.to_vec() })
            }
            fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
                Synthetic.read(key, shape)
            }
            fn keys(&self) -> Vec<String> {
                Vec::new()
            }
        }
        let error = lower(64, &SevenClasses, &[Output::Logits]).unwrap_err().to_string();
        assert_eq!(error, "tensor `classifier.weight`: expected shape [1000, 1280], found [7, 1280]");
    }
}
