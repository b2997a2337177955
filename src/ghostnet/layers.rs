//! The layers that the blocks are made of: what each costs, and how it becomes a node of the graph.

use std::iter::Sum;
use std::ops::Add;

use super::BuildError;
use crate::graph::{Conv2d, Graph, Tensor, Value};
use crate::weights::Scope;

/// What PyTorch and timm add to a variance before its root is taken.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Height and width of a feature map, pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// The size after `floor`-dividing convolution with "same" padding: every stride-2 layer here has an odd kernel and
    /// half of it as padding.
    pub(super) fn strided(self, stride: usize) -> Self {
        Self { height: self.height.div_ceil(stride), width: self.width.div_ceil(stride) }
    }

    /// The size after 2×2 pooling, which drops an odd row or column.
    pub(super) fn pooled(self) -> Self {
        Self { height: self.height / 2, width: self.width / 2 }
    }

    fn pixels(self) -> u64 {
        (self.height * self.width) as u64
    }
}

/// What a part of a network costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Trained values (batch-norm statistics are not trained).
    pub parameters: u64,
    /// Multiply-adds of convolutions and linear layers for one image.
    pub macs: u64,
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { parameters: self.parameters + other.parameters, macs: self.macs + other.macs }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

/// What follows a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `max(x, 0)`.
    Relu,
}

/// The geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConvShape {
    pub(super) input: usize,
    pub(super) output: usize,
    /// Height and width.
    pub(super) kernel: [usize; 2],
    pub(super) stride: usize,
    pub(super) groups: usize,
}

impl ConvShape {
    pub(super) fn pointwise(input: usize, output: usize) -> Self {
        Self { input, output, kernel: [1, 1], stride: 1, groups: 1 }
    }

    pub(super) fn depthwise(channels: usize, kernel: [usize; 2], stride: usize) -> Self {
        Self { input: channels, output: channels, kernel, stride, groups: channels }
    }

    fn weight(&self) -> [usize; 4] {
        [self.output, self.input / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// Without bias or batch norm, at input size `at`.
    fn cost(&self, at: Size) -> Cost {
        let parameters = self.weight().iter().product::<usize>() as u64;
        Cost { parameters, macs: parameters * at.strided(self.stride).pixels() }
    }

    fn lower(
        &self,
        graph: &mut Graph,
        name: &str,
        x: &Value,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Value, BuildError> {
        let conv = Conv2d {
            weight: Tensor { shape: self.weight().to_vec(), data: weight },
            bias: Some(bias),
            stride: self.stride,
            padding: self.kernel.map(|k| k / 2),
            groups: self.groups,
        };
        Ok(graph.conv2d(name, x, conv)?)
    }
}

/// A convolution without bias, its batch norm (folded into it when lowered) and an activation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConvBn {
    /// Keys of the two in the checkpoint, below the block's.
    pub(super) keys: (&'static str, &'static str),
    pub(super) shape: ConvShape,
    pub(super) activation: Activation,
}

impl ConvBn {
    pub(super) fn cost(&self, at: Size) -> Cost {
        self.shape.cost(at) + Cost { parameters: 2 * self.shape.output as u64, macs: 0 }
    }

    pub(super) fn lower(&self, graph: &mut Graph, scope: &Scope<'_>, x: &Value) -> Result<Value, BuildError> {
        let (conv_key, bn_key) = self.keys;
        let mut weight = scope.sub(conv_key).get("weight", &self.shape.weight())?;
        let bn = scope.sub(bn_key);
        let channels = [self.shape.output];
        let (gamma, beta) = (bn.get("weight", &channels)?, bn.get("bias", &channels)?);
        let (mean, variance) = (bn.get("running_mean", &channels)?, bn.get("running_var", &channels)?);

        // y = gamma · (conv(x) − mean) / √(var + ε) + beta is a convolution again. In f64, rounded once.
        let mut bias = Vec::with_capacity(self.shape.output);
        let kernels = weight.chunks_exact_mut(self.shape.weight()[1..].iter().product());
        for (channel, kernel) in kernels.enumerate() {
            let factor = f64::from(gamma[channel]) / (f64::from(variance[channel]) + BATCH_NORM_EPSILON).sqrt();
            kernel.iter_mut().for_each(|w| *w = (f64::from(*w) * factor) as f32);
            bias.push((f64::from(beta[channel]) - f64::from(mean[channel]) * factor) as f32);
        }
        let name = scope.key(conv_key);
        let y = self.shape.lower(graph, &name, x, weight, bias)?;
        match self.activation {
            Activation::None => Ok(y),
            Activation::Relu => Ok(graph.relu(&format!("{name}.relu"), &y)?),
        }
    }
}

/// A 1×1 convolution with bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointwise {
    pub(super) key: &'static str,
    pub(super) input: usize,
    pub(super) output: usize,
}

impl Pointwise {
    pub(super) fn cost(&self, at: Size) -> Cost {
        ConvShape::pointwise(self.input, self.output).cost(at) + Cost { parameters: self.output as u64, macs: 0 }
    }

    pub(super) fn lower(&self, graph: &mut Graph, scope: &Scope<'_>, x: &Value) -> Result<Value, BuildError> {
        let shape = ConvShape::pointwise(self.input, self.output);
        let at = scope.sub(self.key);
        let (weight, bias) = (at.get("weight", &shape.weight())?, at.get("bias", &[self.output])?);
        shape.lower(graph, &scope.key(self.key), x, weight, bias)
    }
}
