//! The inverted residual of MobileNetV2, which can carry the same attention.

use super::BuildError;
use super::blocks::{BottleneckShape, Site, load};
use super::dfc::{Dfc, DfcShape};
use super::layers::{Activation, ConvBn, ConvShape, Cost, Size};
use super::lowering::Lowering;

/// Expand by a 1×1 convolution, filter by a depthwise one, project by another 1×1; add the input where the shapes allow.
/// Where nothing is expanded, the first is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvertedResidual {
    expand: Option<ConvBn>,
    depthwise: ConvBn,
    project: ConvBn,
    /// Enhances the expanded features.
    dfc: Option<Dfc>,
    /// Enhances the projected features.
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
        // timm numbers the batch norms in order, and calls the projection `conv_pw` where nothing expands.
        let (depthwise, project) =
            if expands { (("conv_dw", "bn2"), ("conv_pwl", "bn3")) } else { (("conv_dw", "bn1"), ("conv_pw", "bn2")) };
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
            depthwise: ConvBn::new(depthwise.0, depthwise.1, spatial, relu6),
            project: ConvBn::new(project.0, project.1, ConvShape::pointwise(expanded, output), Activation::None),
            dfc: dfc.map(attention("short_conv", input, expanded)),
            output_dfc: output_dfc.map(attention("short_conv_out", expanded, output)),
            residual: input == output && shape.nominal_stride == 1,
            stride,
        }
    }

    /// The attention on its expanded features, where there is one.
    #[must_use]
    pub fn dfc(&self) -> Option<&Dfc> {
        self.dfc.as_ref()
    }

    /// The attention on its projected features, where there is one.
    #[must_use]
    pub fn output_dfc(&self) -> Option<&Dfc> {
        self.output_dfc.as_ref()
    }

    pub(super) fn output_size(&self, at: Size) -> Size {
        at.strided(self.stride)
    }

    pub(super) fn cost(&self, at: Size) -> Cost {
        let small = self.output_size(at);
        let dfc = |dfc: &Option<Dfc>, at| dfc.as_ref().map(|d| d.cost(at)).unwrap_or_default();
        self.expand.as_ref().map(|layer| layer.cost(at)).unwrap_or_default()
            + self.depthwise.cost(at)
            + self.project.cost(small)
            + dfc(&self.dfc, at)
            + dfc(&self.output_dfc, small)
    }

    pub(super) fn lower<L: Lowering>(&self, to: &mut L, site: Site<'_>, x: &L::Map) -> Result<L::Map, BuildError> {
        let scope = &site.scope;
        let mut y = match &self.expand {
            Some(expand) => to.conv(load(expand, scope)?, x, None)?,
            None => x.clone(),
        };
        if let Some(dfc) = &self.dfc {
            y = to.attend(&scope.key("attend"), &y, dfc.load(scope, x, site.attention)?, None)?;
        }
        y = to.conv(load(&self.depthwise, scope)?, &y, None)?;
        let residual = self.residual.then_some(x);
        let project = load(&self.project, scope)?;
        let Some(dfc) = &self.output_dfc else { return Ok(to.conv(project, &y, residual)?) };
        let projected = to.conv(project, &y, None)?;
        let attention = dfc.load(scope, &y, site.output_attention)?;
        Ok(to.attend(&scope.key("attend_out"), &projected, attention, residual)?)
    }
}
