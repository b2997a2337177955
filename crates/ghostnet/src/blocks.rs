//! The modules of the GhostNets: Ghost module, squeeze-excite, bottleneck. Each holds its layers, counts them and lowers
//! them; none knows where in the network it stands beyond the checkpoint scope it is given.

use super::BuildError;
use super::config::DfcConfig;
use super::dfc::{Dfc, DfcShape};
use super::layers::{Activation, Branch, ConvBn, ConvShape, Cost, Pointwise, Size};
use super::lowering::{ExciteParts, GhostParts, Lowering, NamedConv, Residual};
use ghostserve_weights::Scope;

/// What a block is given to lower itself with: where its weights are, and which of its attention maps are wanted.
pub(super) struct Site<'a> {
    pub(super) scope: Scope<'a>,
    /// The graph output that the gate of the expanded features shall be.
    pub(super) attention: Option<String>,
    /// The same of the features that leave the block.
    pub(super) output_attention: Option<String>,
}

/// Reads a layer's weights.
pub(super) fn load(layer: &ConvBn, scope: &Scope<'_>) -> Result<NamedConv, BuildError> {
    Ok(NamedConv { name: scope.key(layer.key()), conv: layer.load(scope)?, activation: layer.activation })
}

/// Half of the maps by a 1×1 convolution ("intrinsic"), the other half by a 3×3 depthwise one on those ("ghost"),
/// joined and cut to the channels wanted; with [`Dfc`], multiplied by its attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GhostModule {
    primary: ConvBn,
    cheap: ConvBn,
    output: usize,
    dfc: Option<Dfc>,
}

/// The resolved numbers that make a [`GhostModule`].
struct GhostShape<'a> {
    input: usize,
    output: usize,
    activation: Activation,
    dilation: usize,
    /// Length of the attention's strips, if the module carries it.
    dfc: Option<usize>,
    settings: Settings<'a>,
}

/// What all modules of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings<'a> {
    /// Trained with parallel branches.
    pub(super) reparameterized: bool,
    pub(super) dfc: &'a DfcConfig,
}

/// GhostNetV3 trains three convolutions in parallel.
const PRIMARY: [Branch; 3] = [
    Branch::full("primary_rpr_conv.0.conv", "primary_rpr_conv.0.bn1"),
    Branch::full("primary_rpr_conv.1.conv", "primary_rpr_conv.1.bn1"),
    Branch::full("primary_rpr_conv.2.conv", "primary_rpr_conv.2.bn1"),
];

/// Beside those, one with a single tap, and none at all.
const CHEAP: [Branch; 5] = [
    Branch::full("cheap_rpr_conv.0.conv", "cheap_rpr_conv.0.bn1"),
    Branch::full("cheap_rpr_conv.1.conv", "cheap_rpr_conv.1.bn1"),
    Branch::full("cheap_rpr_conv.2.conv", "cheap_rpr_conv.2.bn1"),
    Branch::centre("cheap_rpr_scale.conv", "cheap_rpr_scale.bn1"),
    Branch::identity("cheap_rpr_skip"),
];

const DOWNSAMPLE: [Branch; 4] = [
    Branch::full("dw_rpr_conv.0.conv", "dw_rpr_conv.0.bn1"),
    Branch::full("dw_rpr_conv.1.conv", "dw_rpr_conv.1.bn1"),
    Branch::full("dw_rpr_conv.2.conv", "dw_rpr_conv.2.bn1"),
    Branch::centre("dw_rpr_scale.conv", "dw_rpr_scale.bn1"),
];

impl GhostModule {
    fn new(shape: GhostShape<'_>) -> Self {
        let GhostShape { input, output, activation, dilation, dfc, settings } = shape;
        let half = output.div_ceil(2);
        let (primary, cheap) = if settings.reparameterized {
            (PRIMARY.to_vec(), CHEAP.to_vec())
        } else {
            (
                vec![Branch::full("primary_conv.0", "primary_conv.1")],
                vec![Branch::full("cheap_operation.0", "cheap_operation.1")],
            )
        };
        let strips =
            |kernel| Dfc::new(DfcShape { scope: "short_conv", input, output, kernel, dilation, config: settings.dfc });
        Self {
            primary: ConvBn { branches: primary, shape: ConvShape::pointwise(input, half), activation },
            cheap: ConvBn { branches: cheap, shape: ConvShape::depthwise(half, [3, 3], 1, dilation), activation },
            output,
            dfc: dfc.map(strips),
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

    fn lower<L: Lowering>(
        &self,
        to: &mut L,
        site: (&Scope<'_>, Option<String>),
        x: &L::Map,
        residual: Option<Residual<'_, L::Map>>,
    ) -> Result<L::Map, BuildError> {
        let (scope, attention) = site;
        let parts = GhostParts {
            name: scope.key("ghost"),
            x,
            primary: load(&self.primary, scope)?,
            cheap: load(&self.cheap, scope)?,
            output: self.output,
            attention: self.dfc.as_ref().map(|dfc| dfc.load(scope, x, attention)).transpose()?,
            residual,
        };
        Ok(to.ghost(parts)?)
    }
}

/// Channel attention: the mean of every map, squeezed and expanded by two 1×1 convolutions, gates the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqueezeExcite {
    reduce: Pointwise,
    expand: Pointwise,
}

impl SqueezeExcite {
    fn new(channels: usize, squeezed: usize) -> Self {
        Self {
            reduce: Pointwise { key: "conv_reduce", input: channels, output: squeezed },
            expand: Pointwise { key: "conv_expand", input: squeezed, output: channels },
        }
    }

    fn cost(&self) -> Cost {
        let one = Size { height: 1, width: 1 };
        self.reduce.cost(one) + self.expand.cost(one)
    }

    fn lower<L: Lowering>(&self, to: &mut L, scope: &Scope<'_>, x: &L::Map) -> Result<L::Map, BuildError> {
        let (reduce, reduce_bias) = self.reduce.load(scope)?;
        let (expand, expand_bias) = self.expand.load(scope)?;
        let parts = ExciteParts { reduce, reduce_bias, expand, expand_bias };
        Ok(to.squeeze_excite(&scope.key("excite"), x, parts)?)
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

/// The resolved numbers that make a [`Bottleneck`] or an inverted residual.
#[derive(Clone, Copy, Debug)]
pub(super) struct BottleneckShape<'a> {
    pub(super) input: usize,
    pub(super) expanded: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    /// Of the stage table, which decides what layers there are.
    pub(super) nominal_stride: usize,
    /// As run: 1 where dilation takes a stride's place.
    pub(super) stride: usize,
    /// Of the layers before the stride and of those behind it.
    pub(super) dilation: [usize; 2],
    /// Channels of the squeeze, if there is a squeeze-excite.
    pub(super) squeezed: Option<usize>,
    /// The strips' length, if there is a DFC branch.
    pub(super) dfc_kernel: Option<usize>,
    pub(super) settings: Settings<'a>,
}

impl Bottleneck {
    pub(super) fn new(shape: BottleneckShape<'_>) -> Self {
        let BottleneckShape { input, expanded, output, kernel, stride, settings, .. } = shape;
        let [before, after] = shape.dilation;
        let strided = |branches: Vec<Branch>, channels| ConvBn {
            branches,
            shape: ConvShape::depthwise(channels, [kernel, kernel], stride, before),
            activation: Activation::None,
        };
        let shortcut = if input == output && shape.nominal_stride == 1 {
            Shortcut::Identity
        } else {
            let pointwise = ConvShape::pointwise(input, output);
            Shortcut::Projection(Box::new(Projection {
                depthwise: strided(vec![Branch::full("shortcut.0", "shortcut.1")], input),
                pointwise: ConvBn::new("shortcut.2", "shortcut.3", pointwise, Activation::None),
            }))
        };
        let downsample =
            if settings.reparameterized { DOWNSAMPLE.to_vec() } else { vec![Branch::full("conv_dw", "bn_dw")] };
        Self {
            ghost1: GhostModule::new(GhostShape {
                input,
                output: expanded,
                activation: Activation::Relu,
                dilation: before,
                dfc: shape.dfc_kernel.filter(|_| settings.dfc.enhance.expanded()),
                settings,
            }),
            downsample: (shape.nominal_stride > 1).then(|| strided(downsample, expanded)),
            squeeze_excite: shape.squeezed.map(|s| SqueezeExcite::new(expanded, s)),
            ghost2: GhostModule::new(GhostShape {
                input: expanded,
                output,
                activation: Activation::None,
                dilation: after,
                dfc: shape.dfc_kernel.filter(|_| settings.dfc.enhance.output()),
                settings,
            }),
            shortcut,
            stride,
        }
    }

    /// Its first Ghost module, which expands.
    #[must_use]
    pub fn ghost1(&self) -> &GhostModule {
        &self.ghost1
    }

    /// Its second Ghost module, which reduces.
    #[must_use]
    pub fn ghost2(&self) -> &GhostModule {
        &self.ghost2
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

    pub(super) fn lower<L: Lowering>(&self, to: &mut L, site: Site<'_>, x: &L::Map) -> Result<L::Map, BuildError> {
        let scope = &site.scope;
        let mut y = self.ghost1.lower(to, (&scope.sub("ghost1"), site.attention), x, None)?;
        if let Some(downsample) = &self.downsample {
            y = to.conv(load(downsample, scope)?, &y, None)?;
        }
        if let Some(squeeze_excite) = &self.squeeze_excite {
            y = squeeze_excite.lower(to, &scope.sub("se"), &y)?;
        }
        let residual = match &self.shortcut {
            Shortcut::Identity => Residual::Map(x),
            Shortcut::Projection(p) => {
                let small = to.conv(load(&p.depthwise, scope)?, x, None)?;
                Residual::Projected(small, load(&p.pointwise, scope)?)
            }
        };
        self.ghost2.lower(to, (&scope.sub("ghost2"), site.output_attention), &y, Some(residual))
    }
}
