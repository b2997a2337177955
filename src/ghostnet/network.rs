//! The whole network: stem, stages, head.

use super::blocks::{Bottleneck, BottleneckShape};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Pointwise, Size};
use super::{BuildError, Config, ConfigError, make_divisible};
use crate::graph::{Graph, Linear, Tensor};
use crate::weights::{TensorSource, Weights};

/// A GhostNetV2 with every channel count resolved.
#[derive(Clone, Debug)]
pub struct Network {
    config: Config,
    stem: ConvBn,
    stages: Vec<Vec<Bottleneck>>,
    last: ConvBn,
    head: Pointwise,
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

impl Network {
    /// Resolves a configuration.
    ///
    /// # Errors
    /// The configuration is no network.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        config.validate()?;
        let stem = config.scaled(config.stem_channels);
        let mut input = stem;
        let mut index = 0;
        let mut stages = Vec::with_capacity(config.stages.len());
        for rows in &config.stages {
            let mut stage = Vec::with_capacity(rows.len());
            for row in rows {
                let (expanded, output) = (config.scaled(row.expanded), config.scaled(row.output));
                stage.push(Bottleneck::new(BottleneckShape {
                    input,
                    expanded,
                    output,
                    kernel: row.kernel,
                    stride: row.stride,
                    squeezed: row.squeeze_excite.then(|| make_divisible(expanded as f64 * config.se_ratio, 4)),
                    dfc_kernel: (index >= config.dfc.skip_first).then_some(config.dfc.kernel),
                }));
                input = output;
                index += 1;
            }
            stages.push(stage);
        }
        let last = config.scaled(config.final_channels);
        let relu = Activation::Relu;
        Ok(Self {
            stem: ConvBn {
                keys: ("conv_stem", "bn1"),
                shape: ConvShape { input: config.input_channels, output: stem, kernel: [3, 3], stride: 2, groups: 1 },
                activation: relu,
            },
            stages,
            last: ConvBn { keys: ("conv", "bn1"), shape: ConvShape::pointwise(input, last), activation: relu },
            head: Pointwise { key: "conv_head", input: last, output: config.head_features },
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

    /// The network layer by layer, at an input size.
    #[must_use]
    pub fn table(&self, input: Size) -> Vec<StageRow> {
        let config = &self.config;
        let mut at = input.strided(self.stem.shape.stride);
        let mut stride = self.stem.shape.stride;
        let mut rows = vec![StageRow {
            key: "conv_stem".into(),
            what: "conv 3x3, ReLU".into(),
            channels: self.stem.shape.output,
            stride,
            size: at,
            cost: self.stem.cost(input),
        }];
        for (s, (stage, configs)) in self.stages.iter().zip(&config.stages).enumerate() {
            for (b, (block, row)) in stage.iter().zip(configs).enumerate() {
                let cost = block.cost(at);
                at = block.output_size(at);
                stride *= row.stride;
                let mut what = format!("bottleneck k{} x{}", row.kernel, config.scaled(row.expanded));
                if block.has_dfc() {
                    what.push_str(&format!(" DFC{}", config.dfc.kernel));
                }
                if row.squeeze_excite {
                    what.push_str(" SE");
                }
                let channels = config.scaled(row.output);
                rows.push(StageRow { key: format!("blocks.{s}.{b}"), what, channels, stride, size: at, cost });
            }
        }
        let one = Size { height: 1, width: 1 };
        let classifier = (config.head_features * config.classes) as u64;
        rows.push(StageRow {
            key: self.last_key(),
            what: "conv 1x1, ReLU".into(),
            channels: self.last.shape.output,
            stride,
            size: at,
            cost: self.last.cost(at),
        });
        rows.push(StageRow {
            key: self.head.key.into(),
            what: "mean, conv 1x1, ReLU".into(),
            channels: self.head.output,
            stride: 0,
            size: one,
            cost: self.head.cost(one),
        });
        rows.push(StageRow {
            key: "classifier".into(),
            what: "linear".into(),
            channels: config.classes,
            stride: 0,
            size: one,
            cost: Cost { parameters: classifier + config.classes as u64, macs: classifier },
        });
        rows
    }

    /// Lowers the network to an ONNX graph with one input, `input` (N×C×H×W, f32, normalised), and one output,
    /// `logits` (N×classes). Batch norm is folded into the convolutions. Every tensor of `source` must be used.
    ///
    /// # Errors
    /// The weights do not fit, or the input is too small for the network's strides.
    pub fn lower(&self, source: &dyn TensorSource, input: Size) -> Result<Graph, BuildError> {
        let config = &self.config;
        let weights = Weights::new(source);
        let root = weights.root();
        let mut graph = Graph::new(&config.name);

        let x = graph.input("input", &[config.input_channels, input.height, input.width])?;
        let mut x = self.stem.lower(&mut graph, &root, &x)?;
        for (s, stage) in self.stages.iter().enumerate() {
            for (b, block) in stage.iter().enumerate() {
                x = block.lower(&mut graph, &root.sub("blocks").sub(&s.to_string()).sub(&b.to_string()), &x)?;
            }
        }
        x = self.last.lower(&mut graph, &root.sub(&self.last_key()), &x)?;
        x = graph.global_average_pool("global_pool", &x)?;
        x = self.head.lower(&mut graph, &root, &x)?;
        x = graph.relu("conv_head.relu", &x)?;
        x = graph.flatten("flatten", &x)?;

        let shape = [config.classes, config.head_features];
        let classifier = root.sub("classifier");
        let linear = Linear {
            weight: Tensor { shape: shape.to_vec(), data: classifier.get("weight", &shape)? },
            bias: classifier.get("bias", &[config.classes])?,
        };
        x = graph.linear("classifier", &x, linear)?;
        graph.output("logits", &x)?;
        weights.finish()?;
        Ok(graph)
    }

    /// The last 1×1 convolution is one more "stage" in the checkpoints.
    fn last_key(&self) -> String {
        format!("blocks.{}.0", self.stages.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ghostnet::{PRESETS, preset};
    use crate::weights::{Synthetic, WeightsError};

    const IMAGENET: Size = Size { height: 224, width: 224 };

    /// Counted with timm 1.0.31 (parameters) and by hooks on its convolutions and linear layers (multiply-adds).
    #[test]
    fn counts_are_those_of_the_reference_implementation() {
        let expected = [(6_156_908, 167_048_288), (8_960_404, 269_322_976), (12_392_698, 398_607_224)];
        for ((name, _), (parameters, macs)) in PRESETS.into_iter().zip(expected) {
            let network = Network::new(preset(name).unwrap()).unwrap();
            assert_eq!(network.cost(IMAGENET), Cost { parameters, macs }, "{name}");
        }
    }

    #[test]
    fn attention_starts_with_the_third_bottleneck() {
        let table = Network::new(preset("ghostnetv2_100").unwrap()).unwrap().table(IMAGENET);
        let without: Vec<_> = table
            .iter()
            .filter(|r| r.key.starts_with("blocks") && !r.what.contains("DFC"))
            .map(|r| &r.key[..])
            .collect();
        assert_eq!(without, ["blocks.0.0", "blocks.1.0", "blocks.9.0"]);
        let deepest = table.iter().find(|r| r.key == "blocks.8.3").unwrap();
        assert_eq!((deepest.channels, deepest.stride, deepest.size.height), (160, 32, 7));
    }

    #[test]
    fn an_input_too_small_for_the_strides_is_an_error_with_the_layer_in_it() {
        let network = Network::new(preset("ghostnetv2_100").unwrap()).unwrap();
        let error = network.lower(&Synthetic, Size { height: 16, width: 16 }).unwrap_err().to_string();
        assert!(error.contains("dfc.pool") && error.contains("2x2"), "{error}");
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
        let network = Network::new(preset("ghostnetv2_100").unwrap()).unwrap();
        let error = network.lower(&Other, Size { height: 64, width: 64 }).unwrap_err().to_string();
        assert_eq!(error, "tensor `classifier.weight`: expected shape [1000, 1280], found [7, 1280]");
    }
}
