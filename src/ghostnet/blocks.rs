//! The blocks of GhostNetV2: Ghost module, DFC attention, squeeze-excite, bottleneck. Each holds its layers, counts them
//! and lowers them; none knows where in the network it stands beyond the checkpoint scope it is given.

use super::BuildError;
use super::layers::{Activation, ConvBn, ConvShape, Cost, Pointwise, Size};
use crate::graph::{Graph, Value};
use crate::weights::Scope;

/// Half of the maps by a 1×1 convolution ("intrinsic"), the other half by a 3×3 depthwise one on those ("ghost"),
/// joined and cut to the channels wanted; with [`Dfc`], multiplied by its attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GhostModule {
    primary: ConvBn,
    cheap: ConvBn,
    output: usize,
    dfc: Option<Dfc>,
}

impl GhostModule {
    pub(super) fn new(input: usize, output: usize, activation: Activation, dfc: Option<Dfc>) -> Self {
        let intrinsic = output.div_ceil(2);
        Self {
            primary: ConvBn {
                keys: ("primary_conv.0", "primary_conv.1"),
                shape: ConvShape::pointwise(input, intrinsic),
                activation,
            },
            cheap: ConvBn {
                keys: ("cheap_operation.0", "cheap_operation.1"),
                shape: ConvShape::depthwise(intrinsic, [3, 3], 1),
                activation,
            },
            output,
            dfc,
        }
    }

    /// The attention branch, where there is one.
    #[must_use]
    pub fn dfc(&self) -> Option<&Dfc> {
        self.dfc.as_ref()
    }

    fn cost(&self, at: Size) -> Cost {
        let dfc = self.dfc.as_ref().map(|dfc| dfc.cost(at)).unwrap_or_default();
        self.primary.cost(at) + self.cheap.cost(at) + dfc
    }

    fn lower(&self, graph: &mut Graph, scope: &Scope<'_>, x: &Value) -> Result<Value, BuildError> {
        let intrinsic = self.primary.lower(graph, scope, x)?;
        let ghost = self.cheap.lower(graph, scope, &intrinsic)?;
        let joined = graph.concat_channels(&scope.key("concat"), &intrinsic, &ghost)?;
        let maps = graph.take_channels(&scope.key("cut"), &joined, self.output)?;
        match &self.dfc {
            None => Ok(maps),
            Some(dfc) => {
                let attention = dfc.lower(graph, scope, x, &maps)?;
                Ok(graph.mul(&scope.key("attend"), &maps, &attention)?)
            }
        }
    }
}

/// Decoupled fully connected attention: at half resolution, a 1×1 convolution, then a horizontal and a vertical
/// depthwise strip, through a sigmoid and up again. Between them the strips reach a whole cross of pixels at
/// O(K·H·W) where full attention needs O((H·W)²).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dfc {
    project: ConvBn,
    horizontal: ConvBn,
    vertical: ConvBn,
}

impl Dfc {
    pub(super) fn new(input: usize, output: usize, kernel: usize) -> Self {
        let layer = |keys, shape| ConvBn { keys, shape, activation: Activation::None };
        Self {
            project: layer(("short_conv.0", "short_conv.1"), ConvShape::pointwise(input, output)),
            horizontal: layer(("short_conv.2", "short_conv.3"), ConvShape::depthwise(output, [1, kernel], 1)),
            vertical: layer(("short_conv.4", "short_conv.5"), ConvShape::depthwise(output, [kernel, 1], 1)),
        }
    }

    fn cost(&self, at: Size) -> Cost {
        [&self.project, &self.horizontal, &self.vertical].into_iter().map(|layer| layer.cost(at.pooled())).sum()
    }

    /// The gate for `maps`, of the same shape.
    fn lower(&self, graph: &mut Graph, scope: &Scope<'_>, x: &Value, maps: &Value) -> Result<Value, BuildError> {
        let (_, height, width) = maps.chw()?;
        let pooled = graph.average_pool(&scope.key("dfc.pool"), x, 2)?;
        let projected = self.project.lower(graph, scope, &pooled)?;
        let rows = self.horizontal.lower(graph, scope, &projected)?;
        let cross = self.vertical.lower(graph, scope, &rows)?;
        // On the small maps: the sigmoid costs a quarter there, and nearest upsampling commutes with it.
        let gate = graph.sigmoid(&scope.key("dfc.gate"), &cross)?;
        Ok(graph.resize_nearest(&scope.key("dfc.up"), &gate, height, width)?)
    }
}

/// Channel attention: the mean of every map, squeezed and expanded by two 1×1 convolutions, gates the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqueezeExcite {
    reduce: Pointwise,
    expand: Pointwise,
}

impl SqueezeExcite {
    pub(super) fn new(channels: usize, squeezed: usize) -> Self {
        Self {
            reduce: Pointwise { key: "conv_reduce", input: channels, output: squeezed },
            expand: Pointwise { key: "conv_expand", input: squeezed, output: channels },
        }
    }

    fn cost(&self) -> Cost {
        let one = Size { height: 1, width: 1 };
        self.reduce.cost(one) + self.expand.cost(one)
    }

    fn lower(&self, graph: &mut Graph, scope: &Scope<'_>, x: &Value) -> Result<Value, BuildError> {
        let mean = graph.global_average_pool(&scope.key("mean"), x)?;
        let reduced = self.reduce.lower(graph, scope, &mean)?;
        let active = graph.relu(&scope.key("relu"), &reduced)?;
        let expanded = self.expand.lower(graph, scope, &active)?;
        let gate = graph.hard_sigmoid(&scope.key("gate"), &expanded)?;
        Ok(graph.mul(&scope.key("excite"), x, &gate)?)
    }
}

/// What is added to a bottleneck's output: its input, brought to the same shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortcut {
    /// The input itself.
    Identity,
    /// A depthwise convolution with the bottleneck's kernel and stride, then a 1×1 convolution.
    Projection(Box<Projection>),
}

/// The layers of [`Shortcut::Projection`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    depthwise: ConvBn,
    pointwise: ConvBn,
}

/// Expand by a Ghost module, stride, squeeze-excite, reduce by a Ghost module, add the shortcut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bottleneck {
    ghost1: GhostModule,
    downsample: Option<ConvBn>,
    squeeze_excite: Option<SqueezeExcite>,
    ghost2: GhostModule,
    shortcut: Shortcut,
    stride: usize,
}

/// The resolved numbers that make a [`Bottleneck`].
#[derive(Clone, Copy, Debug)]
pub(super) struct BottleneckShape {
    pub(super) input: usize,
    pub(super) expanded: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Channels of the squeeze, if there is a squeeze-excite.
    pub(super) squeezed: Option<usize>,
    /// The strips' length, if there is a DFC branch.
    pub(super) dfc_kernel: Option<usize>,
}

impl Bottleneck {
    pub(super) fn new(shape: BottleneckShape) -> Self {
        let BottleneckShape { input, expanded, output, kernel, stride, squeezed, dfc_kernel } = shape;
        let dfc = dfc_kernel.map(|k| Dfc::new(input, expanded, k));
        let strided = |keys, channels| ConvBn {
            keys,
            shape: ConvShape::depthwise(channels, [kernel, kernel], stride),
            activation: Activation::None,
        };
        let shortcut = if input == output && stride == 1 {
            Shortcut::Identity
        } else {
            Shortcut::Projection(Box::new(Projection {
                depthwise: strided(("shortcut.0", "shortcut.1"), input),
                pointwise: ConvBn {
                    keys: ("shortcut.2", "shortcut.3"),
                    shape: ConvShape::pointwise(input, output),
                    activation: Activation::None,
                },
            }))
        };
        Self {
            ghost1: GhostModule::new(input, expanded, Activation::Relu, dfc),
            downsample: (stride > 1).then(|| strided(("conv_dw", "bn_dw"), expanded)),
            squeeze_excite: squeezed.map(|s| SqueezeExcite::new(expanded, s)),
            ghost2: GhostModule::new(expanded, output, Activation::None, None),
            shortcut,
            stride,
        }
    }

    /// Whether its first Ghost module carries DFC attention.
    #[must_use]
    pub fn has_dfc(&self) -> bool {
        self.ghost1.dfc().is_some()
    }

    pub(super) fn output_size(&self, at: Size) -> Size {
        at.strided(self.stride)
    }

    pub(super) fn cost(&self, at: Size) -> Cost {
        let small = self.output_size(at);
        let shortcut = match &self.shortcut {
            Shortcut::Identity => Cost::default(),
            Shortcut::Projection(p) => p.depthwise.cost(at) + p.pointwise.cost(small),
        };
        self.ghost1.cost(at)
            + self.downsample.as_ref().map(|layer| layer.cost(at)).unwrap_or_default()
            + self.squeeze_excite.as_ref().map(SqueezeExcite::cost).unwrap_or_default()
            + self.ghost2.cost(small)
            + shortcut
    }

    pub(super) fn lower(&self, graph: &mut Graph, scope: &Scope<'_>, x: &Value) -> Result<Value, BuildError> {
        let mut y = self.ghost1.lower(graph, &scope.sub("ghost1"), x)?;
        if let Some(downsample) = &self.downsample {
            y = downsample.lower(graph, scope, &y)?;
        }
        if let Some(squeeze_excite) = &self.squeeze_excite {
            y = squeeze_excite.lower(graph, &scope.sub("se"), &y)?;
        }
        y = self.ghost2.lower(graph, &scope.sub("ghost2"), &y)?;
        let shortcut = match &self.shortcut {
            Shortcut::Identity => x.clone(),
            Shortcut::Projection(p) => {
                let small = p.depthwise.lower(graph, scope, x)?;
                p.pointwise.lower(graph, scope, &small)?
            }
        };
        Ok(graph.add(&scope.key("add"), &y, &shortcut)?)
    }
}
