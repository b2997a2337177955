//! The operators: each checks its operands' shapes, computes the result's, and adds one node.

use super::onnx::{Attribute, Constant, Data, Node};
use super::{Dim, Graph, GraphError, Shape, Tensor, Value};

/// A two-dimensional convolution with its constants.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in / groups, kernel height, kernel width]`.
    pub weight: Tensor,
    /// One value an output channel.
    pub bias: Option<Vec<f32>>,
    /// The same in both directions, pixels.
    pub stride: usize,
    /// Zeros added at top and bottom, at left and right, pixels.
    pub padding: [usize; 2],
    /// Pixels from one tap of the kernel to the next; 1 is dense.
    pub dilation: usize,
    /// 1 for a full convolution, the number of input channels for a depthwise one.
    pub groups: usize,
}

/// Attributes and result of a pooling over windows that do not overlap.
pub(super) fn pooled(name: &str, x: &Value, size: usize) -> Result<(Vec<Attribute>, Shape), GraphError> {
    let (c, h, w) = x.chw()?;
    if h < size || w < size {
        return Err(mismatch(name, format!("at least {size}x{size} pixels"), format!("{h}x{w}")));
    }
    let attributes = vec![Attribute::ints("kernel_shape", &[size, size]), Attribute::ints("strides", &[size, size])];
    Ok((attributes, Shape::batched(&[c, h / size, w / size])))
}

impl Conv2d {
    /// Output channels, input channels a group, kernel height and width.
    ///
    /// # Errors
    /// [`GraphError::Shape`] under the node's name if the weight has not four dimensions.
    pub fn dimensions(&self, node: &str) -> Result<[usize; 4], GraphError> {
        let wrong = |_| mismatch(node, "a weight of four dimensions", format!("{:?}", self.weight.shape));
        self.weight.shape[..].try_into().map_err(wrong)
    }

    /// The shape that the convolution makes of a feature map.
    ///
    /// # Errors
    /// The input's channels do not fit the weight, the bias does not fit the output, or the kernel is larger than the
    /// padded input.
    pub fn output_shape(&self, node: &str, x: &Value) -> Result<[usize; 3], GraphError> {
        let (c, h, w) = x.chw()?;
        let [out, in_per_group, kh, kw] = self.dimensions(node)?;
        if in_per_group * self.groups != c || out % self.groups != 0 {
            let expected = format!("{} input channels in {} groups", in_per_group * self.groups, self.groups);
            return Err(mismatch(node, expected, format!("{c} input channels, {out} output channels")));
        }
        if let Some(bias) = self.bias.as_ref().filter(|b| b.len() != out) {
            return Err(mismatch(node, format!("{out} biases"), bias.len()));
        }
        let [ph, pw] = self.padding;
        let reach = |k: usize| (k - 1) * self.dilation + 1;
        if h + 2 * ph < reach(kh) || w + 2 * pw < reach(kw) {
            return Err(mismatch(node, format!("at least {kh}x{kw} pixels"), format!("{h}x{w}, padding {ph}x{pw}")));
        }
        let size = |n: usize, k: usize, p: usize| (n + 2 * p - reach(k)) / self.stride + 1;
        Ok([out, size(h, kh, ph), size(w, kw, pw)])
    }

    pub(super) fn attributes(&self, [kh, kw]: [usize; 2]) -> Vec<Attribute> {
        let [ph, pw] = self.padding;
        vec![
            Attribute::ints("kernel_shape", &[kh, kw]),
            Attribute::ints("strides", &[self.stride, self.stride]),
            Attribute::ints("pads", &[ph, pw, ph, pw]),
            Attribute::ints("dilations", &[self.dilation, self.dilation]),
            Attribute::int("group", self.groups),
        ]
    }
}

/// How [`Graph::resize`] makes pixels between pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// The pixel at `floor(i · in / out)`.
    Nearest,
    /// Of the four pixels around, pixel centres at halves.
    Bilinear,
    /// Of the sixteen pixels around (a = −0.75), pixel centres at halves.
    Bicubic,
}

/// A fully connected layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// One value an output.
    pub bias: Vec<f32>,
}

pub(super) fn mismatch(node: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> GraphError {
    GraphError::Shape { node: node.to_owned(), expected: expected.to_string(), found: found.to_string() }
}

impl Graph {
    /// Convolution over NCHW.
    ///
    /// # Errors
    /// The input's channels do not fit the weight, the bias does not fit the output, or the kernel is larger than the
    /// padded input.
    pub fn conv2d(&mut self, name: &str, x: &Value, conv: Conv2d) -> Result<Value, GraphError> {
        let shape = Shape::batched(&conv.output_shape(name, x)?);
        let [_, _, kh, kw] = conv.dimensions(name)?;
        let attributes = conv.attributes([kh, kw]);
        let mut inputs = vec![x.name.clone(), self.constant(&format!("{name}.weight"), conv.weight)];
        if let Some(bias) = conv.bias {
            inputs.push(self.constant(&format!("{name}.bias"), Tensor { shape: vec![bias.len()], data: bias }));
        }
        self.node(name, ("", "Conv"), inputs, attributes, shape)
    }

    /// `max(x, 0)`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn relu(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        self.unary(name, "Relu", x, vec![])
    }

    /// `1 / (1 + exp(-x))`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn sigmoid(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        self.unary(name, "Sigmoid", x, vec![])
    }

    /// `clip(x / 6 + 1/2, 0, 1)`, PyTorch's hard sigmoid.
    ///
    /// # Errors
    /// The name is taken.
    pub fn hard_sigmoid(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let attributes = vec![Attribute::float("alpha", 1.0 / 6.0), Attribute::float("beta", 0.5)];
        self.unary(name, "HardSigmoid", x, attributes)
    }

    /// `min(max(x, low), high)`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn clip(&mut self, name: &str, x: &Value, [low, high]: [f32; 2]) -> Result<Value, GraphError> {
        let scalar = |v| Tensor { shape: vec![], data: vec![v] };
        let low = self.constant(&format!("{name}.low"), scalar(low));
        let high = self.constant(&format!("{name}.high"), scalar(high));
        self.node(name, ("", "Clip"), vec![x.name.clone(), low, high], vec![], x.shape.clone())
    }

    pub(super) fn identity(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        self.unary(name, "Identity", x, vec![])
    }

    /// Element-wise sum of two values of one shape.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn add(&mut self, name: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        if a.shape != b.shape {
            return Err(mismatch(name, &a.shape, &b.shape));
        }
        self.node(name, ("", "Add"), vec![a.name.clone(), b.name.clone()], vec![], a.shape.clone())
    }

    /// Element-wise product; `b` may be `NxCx1x1`, a gate for each channel.
    ///
    /// # Errors
    /// The shapes neither agree nor broadcast in that way.
    pub fn mul(&mut self, name: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let gate = matches!((a.chw(), b.chw()), (Ok((c, ..)), Ok((g, 1, 1))) if c == g);
        if a.shape != b.shape && !gate {
            return Err(mismatch(name, &a.shape, &b.shape));
        }
        self.node(name, ("", "Mul"), vec![a.name.clone(), b.name.clone()], vec![], a.shape.clone())
    }

    /// Joins feature maps of one size along the channels.
    ///
    /// # Errors
    /// The parts' heights or widths differ.
    pub fn concat_channels(&mut self, name: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let ((ca, ha, wa), (cb, hb, wb)) = (a.chw()?, b.chw()?);
        if (ha, wa) != (hb, wb) {
            return Err(mismatch(name, format!("parts of {ha}x{wa} pixels"), format!("{hb}x{wb}")));
        }
        let shape = Shape::batched(&[ca + cb, ha, wa]);
        self.node(name, ("", "Concat"), vec![a.name.clone(), b.name.clone()], vec![Attribute::int("axis", 1)], shape)
    }

    /// The first `channels` channels; `x` itself if it has no more.
    ///
    /// # Errors
    /// `x` has fewer.
    pub fn take_channels(&mut self, name: &str, x: &Value, channels: usize) -> Result<Value, GraphError> {
        let (c, h, w) = x.chw()?;
        if c == channels {
            return Ok(x.clone());
        }
        if c < channels {
            return Err(mismatch(name, format!("at least {channels} channels"), c));
        }
        let mut inputs = vec![x.name.clone()];
        for (part, value) in [("starts", 0), ("ends", channels), ("axes", 1)] {
            inputs.push(self.integers(&format!("{name}.{part}"), &[value]));
        }
        self.node(name, ("", "Slice"), inputs, vec![], Shape::batched(&[channels, h, w]))
    }

    /// Average over `size`×`size` windows that do not overlap; a remainder at the right and bottom is dropped.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn average_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        self.pool(name, "AveragePool", x, size)
    }

    /// Largest value of `size`×`size` windows that do not overlap; a remainder at the right and bottom is dropped.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn max_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        self.pool(name, "MaxPool", x, size)
    }

    fn pool(&mut self, name: &str, op: &'static str, x: &Value, size: usize) -> Result<Value, GraphError> {
        let (attributes, shape) = pooled(name, x, size)?;
        self.node(name, ("", op), vec![x.name.clone()], attributes, shape)
    }

    /// Average of each feature map: NxCx1x1.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn global_average_pool(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        self.node(name, ("", "GlobalAveragePool"), vec![x.name.clone()], vec![], Shape::batched(&[c, 1, 1]))
    }

    /// Resizes to `height`×`width` as PyTorch's `interpolate` does (`align_corners` and antialiasing off).
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn resize(
        &mut self,
        name: &str,
        x: &Value,
        [height, width]: [usize; 2],
        interpolation: Interpolation,
    ) -> Result<Value, GraphError> {
        let (c, h, w) = x.chw()?;
        let shape = Shape::batched(&[c, height, width]);
        let mut inputs = vec![x.name.clone(), String::new()];
        let attributes = match interpolation {
            Interpolation::Nearest => {
                // Sizes would be clearer, but scales let runtimes keep their own layouts. A runtime computes the output
                // size as floor(in * scale) and the source pixel as floor(i / scale). Where the factor is not a whole
                // number, an f32 scale could fall short of the wanted size, so a little is added: less than what would
                // move a source pixel (fractions of i * in / out are at least 1 / out apart), more than rounding takes.
                let scale = |to: usize, from: usize| {
                    let whole = (to / from) as f32;
                    if to.is_multiple_of(from) { whole } else { (to as f32 + 0.25 / from as f32) / from as f32 }
                };
                let scales = Tensor { shape: vec![4], data: vec![1.0, 1.0, scale(height, h), scale(width, w)] };
                inputs.push(self.constant(&format!("{name}.scales"), scales));
                vec![
                    Attribute::string("mode", "nearest"),
                    Attribute::string("coordinate_transformation_mode", "asymmetric"),
                    Attribute::string("nearest_mode", "floor"),
                ]
            }
            Interpolation::Bilinear | Interpolation::Bicubic => {
                inputs.extend([String::new(), self.integers(&format!("{name}.sizes"), &[height, width])]);
                let mode = if interpolation == Interpolation::Bilinear { "linear" } else { "cubic" };
                vec![
                    Attribute::string("mode", mode),
                    Attribute::string("coordinate_transformation_mode", "half_pixel"),
                    Attribute::float("cubic_coeff_a", -0.75),
                    Attribute::ints("axes", &[2, 3]),
                ]
            }
        };
        self.node(name, ("", "Resize"), inputs, attributes, shape)
    }

    /// NxCx1x1 to NxC.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn flatten(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let (c, h, w) = x.chw()?;
        self.node(
            name,
            ("", "Flatten"),
            vec![x.name.clone()],
            vec![Attribute::int("axis", 1)],
            Shape::batched(&[c * h * w]),
        )
    }

    /// `x · weightᵀ + bias` over NxC rows.
    ///
    /// # Errors
    /// The row length does not fit the weight, or the bias does not.
    pub fn linear(&mut self, name: &str, x: &Value, linear: Linear) -> Result<Value, GraphError> {
        let [out, inp] = linear.weight.shape[..] else {
            return Err(mismatch(name, "a weight of two dimensions", format!("{:?}", linear.weight.shape)));
        };
        if x.shape.0[..] != [Dim::Batch, Dim::Fixed(inp)] {
            return Err(mismatch(name, Shape::batched(&[inp]), &x.shape));
        }
        if linear.bias.len() != out {
            return Err(mismatch(name, format!("{out} biases"), linear.bias.len()));
        }
        let weight = self.constant(&format!("{name}.weight"), linear.weight);
        let bias = self.constant(&format!("{name}.bias"), Tensor { shape: vec![out], data: linear.bias });
        let attributes = vec![Attribute::int("transB", 1)];
        self.node(name, ("", "Gemm"), vec![x.name.clone(), weight, bias], attributes, Shape::batched(&[out]))
    }

    fn unary(
        &mut self,
        name: &str,
        op: &'static str,
        x: &Value,
        attributes: Vec<Attribute>,
    ) -> Result<Value, GraphError> {
        self.node(name, ("", op), vec![x.name.clone()], attributes, x.shape.clone())
    }

    /// Adds a node; `operator` is its domain (empty for ONNX's own) and its name there.
    pub(super) fn node(
        &mut self,
        name: &str,
        operator: (&'static str, &'static str),
        inputs: Vec<String>,
        attributes: Vec<Attribute>,
        shape: Shape,
    ) -> Result<Value, GraphError> {
        self.claim(name)?;
        let (domain, op) = operator;
        self.nodes.push(Node { domain, op, inputs, output: name.to_owned(), attributes });
        Ok(Value { name: name.to_owned(), shape })
    }

    pub(super) fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        self.constants.push(Constant { name: name.to_owned(), shape: tensor.shape, data: Data::F32(tensor.data) });
        name.to_owned()
    }

    pub(super) fn integers(&mut self, name: &str, values: &[usize]) -> String {
        let data = Data::I64(values.iter().map(|&v| v as i64).collect());
        self.constants.push(Constant { name: name.to_owned(), shape: vec![values.len()], data });
        name.to_owned()
    }
}
