//! The modules of the GhostNets: Ghost module, squeeze-excite, bottleneck. Each holds its layers, counts their cost and
//! lowers them. A module knows its position in the network only by the checkpoint scope that it receives.

use super::BuildError;
use super::config::DfcConfig;
use super::dfc::{Dfc, DfcShape};
use super::layers::{Activation, Branch, ConvBn, ConvShape, Cost, Pointwise, Size};
use super::lowering::{GhostParts, Lowering, NamedConv, Residual, SqueezeExciteParts};
use ghostserve_weights::Scope;

/// The arguments of a block's lowering: the scope of its weights, and the names of its requested attention outputs.
pub(super) struct BlockContext<'a> {
    pub(super) scope: Scope<'a>,
    /// Name of the graph output for the gate of the expanded features, if it is requested.
    pub(super) attention: Option<String>,
    /// The same for the gate of the block's output features.
    pub(super) output_attention: Option<String>,
}

/// A Ghost module. A 1×1 convolution makes half of the maps ("intrinsic"), and a 3×3 depthwise convolution makes the
/// other half ("ghost") from them. Both halves are joined and cut to the number of output channels. With [`Dfc`], the
/// result is multiplied by the attention.
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
    /// Length of the attention's strips, if the module has attention.
    dfc_kernel: Option<usize>,
    settings: NetworkSettings<'a>,
}

/// The settings that all modules of a network share.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkSettings<'a> {
    /// Whether the layers are trained with parallel branches.
    pub(super) reparameterized: bool,
    pub(super) dfc: &'a DfcConfig,
}

/// The three parallel branches of GhostNetV3's 1×1 convolution.
const PRIMARY: [Branch; 3] = [
    Branch::full("primary_rpr_conv.0.conv", "primary_rpr_conv.0.bn1"),
    Branch::full("primary_rpr_conv.1.conv", "primary_rpr_conv.1.bn1"),
    Branch::full("primary_rpr_conv.2.conv", "primary_rpr_conv.2.bn1"),
];

/// The branches of GhostNetV3's depthwise convolution: three full kernels, one single tap, one batch norm alone.
const CHEAP: [Branch; 5] = [
    Branch::full("cheap_rpr_conv.0.conv", "cheap_rpr_conv.0.bn1"),
    Branch::full("cheap_rpr_conv.1.conv", "cheap_rpr_conv.1.bn1"),
    Branch::full("cheap_rpr_conv.2.conv", "cheap_rpr_conv.2.bn1"),
    Branch::centre("cheap_rpr_scale.conv", "cheap_rpr_scale.bn1"),
    Branch::identity("cheap_rpr_skip"),
];

/// The branches of GhostNetV3's strided convolution: three full kernels and one single tap.
const DOWNSAMPLE: [Branch; 4] = [
    Branch::full("dw_rpr_conv.0.conv", "dw_rpr_conv.0.bn1"),
    Branch::full("dw_rpr_conv.1.conv", "dw_rpr_conv.1.bn1"),
    Branch::full("dw_rpr_conv.2.conv", "dw_rpr_conv.2.bn1"),
    Branch::centre("dw_rpr_scale.conv", "dw_rpr_scale.bn1"),
];

impl GhostModule {
    fn new(shape: GhostShape<'_>) -> Self {
        let GhostShape { input, output, activation, dilation, dfc_kernel, settings } = shape;
        let half = output.div_ceil(2);
        let (primary, cheap) = if settings.reparameterized {
            (PRIMARY.to_vec(), CHEAP.to_vec())
        } else {
            (
                vec![Branch::full("primary_conv.0", "primary_conv.1")],
                vec![Branch::full("cheap_operation.0", "cheap_operation.1")],
            )
        };
        let attention =
            |kernel| Dfc::new(DfcShape { scope: "short_conv", input, output, kernel, dilation, config: settings.dfc });
        Self {
            primary: ConvBn { branches: primary, shape: ConvShape::pointwise(input, half), activation },
            cheap: ConvBn { branches: cheap, shape: ConvShape::depthwise(half, [3, 3], 1, dilation), activation },
            output,
            dfc: dfc_kernel.map(attention),
        }
    }

    /// The attention branch, if the module has one.
    #[must_use]
    pub fn dfc(&self) -> Option<&Dfc> {
        self.dfc.as_ref()
    }

    fn cost(&self, input: Size) -> Cost {
        let dfc = self.dfc.as_ref().map(|dfc| dfc.cost(input)).unwrap_or_default();
        self.primary.cost(input) + self.cheap.cost(input) + dfc
    }

    /// Lowers the module; `attention` names the graph output for its gate.
    fn lower<L: Lowering>(
        &self,
        lowering: &mut L,
        scope: &Scope<'_>,
        x: &L::Map,
        attention: Option<String>,
        residual: Option<Residual<'_, L::Map>>,
    ) -> Result<L::Map, BuildError> {
        let parts = GhostParts {
            name: scope.key("ghost"),
            x,
            primary: NamedConv::load(&self.primary, scope)?,
            cheap: NamedConv::load(&self.cheap, scope)?,
            output: self.output,
            attention: self.dfc.as_ref().map(|dfc| dfc.load(scope, x, attention)).transpose()?,
            residual,
        };
        Ok(lowering.ghost(parts)?)
    }
}

/// Squeeze-excite, a channel attention: two 1×1 convolutions squeeze and expand the means of the maps to a gate per
/// map.
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

    fn lower<L: Lowering>(&self, lowering: &mut L, scope: &Scope<'_>, x: &L::Map) -> Result<L::Map, BuildError> {
        let (reduce, reduce_bias) = self.reduce.load(scope)?;
        let (expand, expand_bias) = self.expand.load(scope)?;
        let parts = SqueezeExciteParts { reduce, reduce_bias, expand, expand_bias };
        Ok(lowering.squeeze_excite(&scope.key("excite"), x, parts)?)
    }
}

/// The shortcut of a bottleneck: its input, brought to the output's shape and added to the output.
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

/// The bottleneck of the GhostNets. A Ghost module expands, a depthwise convolution strides, a squeeze-excite follows,
/// a second Ghost module reduces, and the shortcut is added. Stride and squeeze-excite are optional.
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
    /// The stride in the stage table, which decides which layers exist.
    pub(super) nominal_stride: usize,
    /// The stride of the convolution: 1 where dilation replaces a stride.
    pub(super) stride: usize,
    /// Dilation of the layers before the stride and of the layers after it.
    pub(super) dilation: [usize; 2],
    /// Number of squeezed channels, if there is a squeeze-excite.
    pub(super) squeezed: Option<usize>,
    /// Length of the strips, if there is a DFC branch.
    pub(super) dfc_kernel: Option<usize>,
    pub(super) settings: NetworkSettings<'a>,
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
                dfc_kernel: shape.dfc_kernel.filter(|_| settings.dfc.enhance.expanded()),
                settings,
            }),
            downsample: (shape.nominal_stride > 1).then(|| strided(downsample, expanded)),
            squeeze_excite: shape.squeezed.map(|squeezed| SqueezeExcite::new(expanded, squeezed)),
            ghost2: GhostModule::new(GhostShape {
                input: expanded,
                output,
                activation: Activation::None,
                dilation: after,
                dfc_kernel: shape.dfc_kernel.filter(|_| settings.dfc.enhance.output()),
                settings,
            }),
            shortcut,
            stride,
        }
    }

    /// The first Ghost module, which expands.
    #[must_use]
    pub fn ghost1(&self) -> &GhostModule {
        &self.ghost1
    }

    /// The second Ghost module, which reduces.
    #[must_use]
    pub fn ghost2(&self) -> &GhostModule {
        &self.ghost2
    }

    pub(super) fn output_size(&self, input: Size) -> Size {
        input.strided(self.stride)
    }

    pub(super) fn cost(&self, input: Size) -> Cost {
        let output = self.output_size(input);
        let shortcut = match &self.shortcut {
            Shortcut::Identity => Cost::default(),
            Shortcut::Projection(p) => p.depthwise.cost(input) + p.pointwise.cost(output),
        };
        self.ghost1.cost(input)
            + self.downsample.as_ref().map(|layer| layer.cost(input)).unwrap_or_default()
            + self.squeeze_excite.as_ref().map(SqueezeExcite::cost).unwrap_or_default()
            + self.ghost2.cost(output)
            + shortcut
    }

    pub(super) fn lower<L: Lowering>(
        &self,
        lowering: &mut L,
        context: BlockContext<'_>,
        x: &L::Map,
    ) -> Result<L::Map, BuildError> {
        let scope = &context.scope;
        let mut y = self.ghost1.lower(lowering, &scope.sub("ghost1"), x, context.attention, None)?;
        if let Some(downsample) = &self.downsample {
            y = lowering.conv(NamedConv::load(downsample, scope)?, &y, None)?;
        }
        if let Some(squeeze_excite) = &self.squeeze_excite {
            y = squeeze_excite.lower(lowering, &scope.sub("se"), &y)?;
        }
        let residual = match &self.shortcut {
            Shortcut::Identity => Residual::Map(x),
            Shortcut::Projection(p) => {
                let filtered = lowering.conv(NamedConv::load(&p.depthwise, scope)?, x, None)?;
                Residual::Projected(filtered, NamedConv::load(&p.pointwise, scope)?)
            }
        };
        self.ghost2.lower(lowering, &scope.sub("ghost2"), &y, context.output_attention, Some(residual))
    }
}
