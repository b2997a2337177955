//! The layers that the blocks are made of: what each costs, and how weights become a convolution that is ready to run.

use std::iter::Sum;
use std::ops::Add;

use crate::graph::{Conv2d, Tensor};
use ghostserve_weights::{Scope, WeightsError};

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
    /// `min(max(x, 0), 6)`.
    Relu6,
}

/// The geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConvShape {
    pub(super) input: usize,
    pub(super) output: usize,
    /// Height and width.
    pub(super) kernel: [usize; 2],
    pub(super) stride: usize,
    pub(super) dilation: usize,
    pub(super) groups: usize,
}

impl ConvShape {
    pub(super) fn pointwise(input: usize, output: usize) -> Self {
        Self { input, output, kernel: [1, 1], stride: 1, dilation: 1, groups: 1 }
    }

    pub(super) fn depthwise(channels: usize, kernel: [usize; 2], stride: usize, dilation: usize) -> Self {
        Self { input: channels, output: channels, kernel, stride, dilation, groups: channels }
    }

    fn weight(&self) -> [usize; 4] {
        [self.output, self.input / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// Without bias or batch norm, at input size `at`.
    fn cost(&self, at: Size) -> Cost {
        let parameters = self.weight().iter().product::<usize>() as u64;
        Cost { parameters, macs: parameters * at.strided(self.stride).pixels() }
    }

    /// The convolution with its numbers; zeros around the input keep its size (at stride 1).
    fn with(&self, weight: Vec<f32>, bias: Vec<f32>) -> Conv2d {
        Conv2d {
            weight: Tensor { shape: self.weight().to_vec(), data: weight },
            bias: Some(bias),
            stride: self.stride,
            padding: self.kernel.map(|k| k / 2 * self.dilation),
            dilation: self.dilation,
            groups: self.groups,
        }
    }
}

/// One of the convolutions, each with its batch norm, whose sum a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    /// The convolution's key, if it is one: a batch norm alone is an identity convolution's.
    pub(super) conv: Option<&'static str>,
    /// The batch norm's key.
    pub(super) norm: &'static str,
    /// Whether the kernel is a single tap, in the middle of the layer's.
    pub(super) centre: bool,
}

impl Branch {
    pub(super) const fn full(conv: &'static str, norm: &'static str) -> Self {
        Self { conv: Some(conv), norm, centre: false }
    }

    pub(super) const fn centre(conv: &'static str, norm: &'static str) -> Self {
        Self { conv: Some(conv), norm, centre: true }
    }

    pub(super) const fn identity(norm: &'static str) -> Self {
        Self { conv: None, norm, centre: true }
    }
}

/// A sum of convolutions without bias and their batch norms (folded into one convolution when loaded), and an
/// activation. All but GhostNetV3's have one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConvBn {
    pub(super) branches: Vec<Branch>,
    pub(super) shape: ConvShape,
    pub(super) activation: Activation,
}

impl ConvBn {
    pub(super) fn new(conv: &'static str, norm: &'static str, shape: ConvShape, activation: Activation) -> Self {
        Self { branches: vec![Branch::full(conv, norm)], shape, activation }
    }

    /// Of one branch, with the two parameters a channel that its batch norm trains; of several, as the one convolution
    /// with bias that they become.
    pub(super) fn cost(&self, at: Size) -> Cost {
        let per_channel = if self.branches.len() == 1 { 2 } else { 1 };
        self.shape.cost(at) + Cost { parameters: per_channel * self.shape.output as u64, macs: 0 }
    }

    /// The key that names the layer's node.
    pub(super) fn key(&self) -> &'static str {
        self.branches.first().map_or("", |branch| branch.conv.unwrap_or(branch.norm))
    }

    /// Reads the branches and adds them up: y = gamma · (conv(x) − mean) / √(var + ε) + beta is a convolution again, and
    /// so is a sum of such. In f64, rounded once.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub(super) fn load(&self, scope: &Scope<'_>) -> Result<Conv2d, WeightsError> {
        let shape = self.shape.weight();
        let [output, inputs, kh, kw] = shape;
        let taps = kh * kw;
        let mut weight = vec![0.0f64; shape.iter().product()];
        let mut bias = vec![0.0f64; output];
        for branch in &self.branches {
            let own = if branch.centre { [output, inputs, 1, 1] } else { shape };
            let kernel = branch.conv.map(|key| scope.sub(key).get("weight", &own)).transpose()?;
            let norm = scope.sub(branch.norm);
            let (gamma, beta) = (norm.get("weight", &[output])?, norm.get("bias", &[output])?);
            let (mean, variance) = (norm.get("running_mean", &[output])?, norm.get("running_var", &[output])?);
            for channel in 0..output {
                let factor = f64::from(gamma[channel]) / (f64::from(variance[channel]) + BATCH_NORM_EPSILON).sqrt();
                bias[channel] += f64::from(beta[channel]) - f64::from(mean[channel]) * factor;
                let row = &mut weight[channel * inputs * taps..][..inputs * taps];
                for (input, row) in row.chunks_exact_mut(taps).enumerate() {
                    let value = |i: usize| kernel.as_ref().map_or(1.0, |k| f64::from(k[i]));
                    if branch.centre {
                        row[taps / 2] += value(channel * inputs + input) * factor;
                    } else {
                        let start = (channel * inputs + input) * taps;
                        row.iter_mut().enumerate().for_each(|(tap, w)| *w += value(start + tap) * factor);
                    }
                }
            }
        }
        let round = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
        Ok(self.shape.with(round(weight), round(bias)))
    }

    /// The convolution alone, without its batch norm: what timm's stem feature is.
    ///
    /// # Errors
    /// The tensor is missing or does not fit.
    pub(super) fn load_without_norm(&self, scope: &Scope<'_>) -> Result<Conv2d, WeightsError> {
        let weight = scope.sub(self.key()).get("weight", &self.shape.weight())?;
        Ok(self.shape.with(weight, vec![0.0; self.shape.output]))
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

    /// Weight `[output, input]` and bias.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub(super) fn load(&self, scope: &Scope<'_>) -> Result<(Tensor, Vec<f32>), WeightsError> {
        let at = scope.sub(self.key);
        let shape = [self.output, self.input];
        let weight = at.get("weight", &[self.output, self.input, 1, 1])?;
        Ok((Tensor { shape: shape.to_vec(), data: weight }, at.get("bias", &[self.output])?))
    }
}
