//! The layers of the blocks: the cost of each layer, and its weights as one convolution that is ready to run.

use std::iter::Sum;
use std::ops::Add;

use crate::graph::{Conv2d, Tensor};
use ghostserve_weights::{Scope, WeightsError};

/// The constant that PyTorch and timm add to a variance before they take its root.
const BATCH_NORM_EPSILON: f64 = 1e-5;

/// Height and width of a feature map or an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
}

impl Size {
    /// The size after a convolution with this stride. Every stride-2 layer here has an odd kernel and half of it as
    /// padding, so the sides are divided and rounded up.
    pub(super) fn strided(self, stride: usize) -> Self {
        Self { height: self.height.div_ceil(stride), width: self.width.div_ceil(stride) }
    }

    /// The size after 2×2 pooling, which drops the last row or column of an odd side.
    pub(super) fn pooled(self) -> Self {
        Self { height: self.height / 2, width: self.width / 2 }
    }

    fn pixels(self) -> u64 {
        (self.height * self.width) as u64
    }
}

/// The cost of a network or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Number of trained values. Batch-norm statistics are not trained and do not count.
    pub parameters: u64,
    /// Number of multiply-adds in convolutions and linear layers, for one image.
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

/// The activation function after a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// No function.
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

    /// `[output, input / groups, kernel height, kernel width]`.
    fn weight_shape(&self) -> [usize; 4] {
        [self.output, self.input / self.groups, self.kernel[0], self.kernel[1]]
    }

    /// The cost without bias and batch norm.
    fn cost(&self, input: Size) -> Cost {
        let parameters = self.weight_shape().iter().product::<usize>() as u64;
        Cost { parameters, macs: parameters * input.strided(self.stride).pixels() }
    }

    /// The convolution with its constants. Zero padding keeps the input's size at stride 1.
    fn conv2d(&self, weight: Vec<f32>, bias: Vec<f32>) -> Conv2d {
        Conv2d {
            weight: Tensor { shape: self.weight_shape().to_vec(), data: weight },
            bias: Some(bias),
            stride: self.stride,
            padding: self.kernel.map(|k| k / 2 * self.dilation),
            dilation: self.dilation,
            groups: self.groups,
        }
    }
}

/// One of the parallel branches whose sum is a layer: a convolution and its batch norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    /// The convolution's key; `None` for a batch norm alone, which stands for an identity convolution and its norm.
    pub(super) conv: Option<&'static str>,
    /// The batch norm's key.
    pub(super) norm: &'static str,
    /// Whether the kernel is a single tap in the centre of the layer's kernel.
    pub(super) centre: bool,
}

impl Branch {
    /// A branch with the layer's full kernel.
    pub(super) const fn full(conv: &'static str, norm: &'static str) -> Self {
        Self { conv: Some(conv), norm, centre: false }
    }

    /// A branch with a 1×1 kernel.
    pub(super) const fn centre(conv: &'static str, norm: &'static str) -> Self {
        Self { conv: Some(conv), norm, centre: true }
    }

    /// A branch that is a batch norm alone.
    pub(super) const fn identity(norm: &'static str) -> Self {
        Self { conv: None, norm, centre: true }
    }
}

/// A sum of branches, then an activation. [`ConvBn::load`] folds the branches into one convolution with bias. Only the
/// layers of GhostNetV3 have more than one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConvBn {
    pub(super) branches: Vec<Branch>,
    pub(super) shape: ConvShape,
    pub(super) activation: Activation,
}

impl ConvBn {
    /// A layer with one branch.
    pub(super) fn new(conv: &'static str, norm: &'static str, shape: ConvShape, activation: Activation) -> Self {
        Self { branches: vec![Branch::full(conv, norm)], shape, activation }
    }

    /// The cost at an input size. One branch counts with the two parameters per channel that its batch norm trains.
    /// Several branches count as the one convolution with bias that they become.
    pub(super) fn cost(&self, input: Size) -> Cost {
        let per_channel = if self.branches.len() == 1 { 2 } else { 1 };
        self.shape.cost(input) + Cost { parameters: per_channel * self.shape.output as u64, macs: 0 }
    }

    /// The key of the first branch, which names the layer's node.
    pub(super) fn key(&self) -> &'static str {
        self.branches.first().map_or("", |branch| branch.conv.unwrap_or(branch.norm))
    }

    /// Reads the branches and adds them up to one convolution. y = gamma · (conv(x) − mean) / √(var + ε) + beta is a
    /// convolution too, and so is a sum of such terms. The sum is computed in f64 and rounded once.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub(super) fn load(&self, scope: &Scope<'_>) -> Result<Conv2d, WeightsError> {
        let shape = self.shape.weight_shape();
        let [output, inputs, kh, kw] = shape;
        let taps = kh * kw;
        let mut weight = vec![0.0f64; shape.iter().product()];
        let mut bias = vec![0.0f64; output];
        for branch in &self.branches {
            let branch_shape = if branch.centre { [output, inputs, 1, 1] } else { shape };
            let kernel = branch.conv.map(|key| scope.sub(key).get("weight", &branch_shape)).transpose()?;
            let norm = scope.sub(branch.norm);
            let (gamma, beta) = (norm.get("weight", &[output])?, norm.get("bias", &[output])?);
            let (mean, variance) = (norm.get("running_mean", &[output])?, norm.get("running_var", &[output])?);
            for channel in 0..output {
                let factor = f64::from(gamma[channel]) / (f64::from(variance[channel]) + BATCH_NORM_EPSILON).sqrt();
                bias[channel] += f64::from(beta[channel]) - f64::from(mean[channel]) * factor;
                let channel_weights = &mut weight[channel * inputs * taps..][..inputs * taps];
                for (input, row) in channel_weights.chunks_exact_mut(taps).enumerate() {
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
        Ok(self.shape.conv2d(round(weight), round(bias)))
    }

    /// Reads the convolution without its batch norm. timm's level-1 feature of a GhostNet is this output of its stem.
    ///
    /// # Errors
    /// The tensor is missing or does not fit.
    pub(super) fn load_without_norm(&self, scope: &Scope<'_>) -> Result<Conv2d, WeightsError> {
        let weight = scope.sub(self.key()).get("weight", &self.shape.weight_shape())?;
        Ok(self.shape.conv2d(weight, vec![0.0; self.shape.output]))
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
    pub(super) fn cost(&self, input: Size) -> Cost {
        ConvShape::pointwise(self.input, self.output).cost(input) + Cost { parameters: self.output as u64, macs: 0 }
    }

    /// Reads the weight, `[output, input]`, and the bias.
    ///
    /// # Errors
    /// A tensor is missing or does not fit.
    pub(super) fn load(&self, scope: &Scope<'_>) -> Result<(Tensor, Vec<f32>), WeightsError> {
        let layer = scope.sub(self.key);
        let shape = [self.output, self.input];
        let weight = layer.get("weight", &[self.output, self.input, 1, 1])?;
        Ok((Tensor { shape: shape.to_vec(), data: weight }, layer.get("bias", &[self.output])?))
    }
}
