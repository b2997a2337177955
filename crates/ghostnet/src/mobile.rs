//! The inverted residual of MobileNetV2, with or without DFC attention.

use super::BuildError;
use super::blocks::{BlockContext, BottleneckShape};
use super::dfc::{Dfc, DfcShape};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Size};
use super::lowering::{Lowering, NamedConv};

/// The bottleneck of MobileNetV2. A 1×1 convolution expands, a depthwise convolution filters, another 1×1 convolution
/// projects; the input is added if the shapes allow it. A block that expands nothing has no first convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvertedResidual {
    expand: Option<ConvBn>,
    depthwise: ConvBn,
    project: ConvBn,
    /// The attention on the expanded features.
    dfc: Option<Dfc>,
    /// The attention on the projected features.
    output_dfc: Option<Dfc>,
    residual: bool,
    stride: usize,
}

impl InvertedResidual {
    pub(super) fn new(shape: BottleneckShape<'_>) -> Self {
        let BottleneckShape { input, expanded, output, kernel, stride, settings, .. } = shape;
        let [dilation, _] = shape.dilation;
        let expands = expanded != input;
        let relu6 = Activation::Relu6;
        // timm numbers the batch norms in order, and calls the projection `conv_pw` in a block that expands nothing.
        let (depthwise_norm, project, project_norm) =
            if expands { ("bn2", "conv_pwl", "bn3") } else { ("bn1", "conv_pw", "bn2") };
        let spatial = ConvShape::depthwise(expanded, [kernel, kernel], stride, dilation);
        let attention = |scope, input, output| {
            // In this family only the depthwise convolution is dilated.
            move |kernel| Dfc::new(DfcShape { scope, input, output, kernel, dilation: 1, config: settings.dfc })
        };
        let enhance = settings.dfc.enhance;
        let dfc = shape.dfc_kernel.filter(|_| expands && enhance.expanded());
        let output_dfc = shape.dfc_kernel.filter(|_| enhance.output());
        Self {
            expand: expands.then(|| ConvBn::new("conv_pw", "bn1", ConvShape::pointwise(input, expanded), relu6)),
            depthwise: ConvBn::new("conv_dw", depthwise_norm, spatial, relu6),
            project: ConvBn::new(project, project_norm, ConvShape::pointwise(expanded, output), Activation::None),
            dfc: dfc.map(attention("short_conv", input, expanded)),
            output_dfc: output_dfc.map(attention("short_conv_out", expanded, output)),
            residual: input == output && shape.nominal_stride == 1,
            stride,
        }
    }

    /// The attention on the expanded features, if there is one.
    #[must_use]
    pub fn dfc(&self) -> Option<&Dfc> {
        self.dfc.as_ref()
    }

    /// The attention on the projected features, if there is one.
    #[must_use]
    pub fn output_dfc(&self) -> Option<&Dfc> {
        self.output_dfc.as_ref()
    }

    pub(super) fn output_size(&self, input: Size) -> Size {
        input.strided(self.stride)
    }

    pub(super) fn cost(&self, input: Size) -> Cost {
        let output = self.output_size(input);
        let dfc = |dfc: &Option<Dfc>, size| dfc.as_ref().map(|d| d.cost(size)).unwrap_or_default();
        self.expand.as_ref().map(|layer| layer.cost(input)).unwrap_or_default()
            + self.depthwise.cost(input)
            + self.project.cost(output)
            + dfc(&self.dfc, input)
            + dfc(&self.output_dfc, output)
    }

    pub(super) fn lower<L: Lowering>(
        &self,
        lowering: &mut L,
        context: BlockContext<'_>,
        x: &L::Map,
    ) -> Result<L::Map, BuildError> {
        let scope = &context.scope;
        let mut y = match &self.expand {
            Some(expand) => lowering.conv(NamedConv::load(expand, scope)?, x, None)?,
            None => x.clone(),
        };
        if let Some(dfc) = &self.dfc {
            y = lowering.attend(&scope.key("attend"), &y, dfc.load(scope, x, context.attention)?, None)?;
        }
        y = lowering.conv(NamedConv::load(&self.depthwise, scope)?, &y, None)?;
        let residual = self.residual.then_some(x);
        let project = NamedConv::load(&self.project, scope)?;
        let Some(dfc) = &self.output_dfc else { return Ok(lowering.conv(project, &y, residual)?) };
        let projected = lowering.conv(project, &y, None)?;
        let attention = dfc.load(scope, &y, context.output_attention)?;
        Ok(lowering.attend(&scope.key("attend_out"), &projected, attention, residual)?)
    }
}
