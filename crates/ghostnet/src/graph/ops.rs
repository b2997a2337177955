//! ONNX's own operators. Each method checks the operands' shapes, computes the result's shape, and adds one node.

use super::onnx::{Attribute, Constant, ConstantData, Node, Operator};
use super::{Dim, Graph, GraphError, Shape, Tensor, Value};

/// A two-dimensional convolution with its constants.
#[derive(Clone, Debug)]
pub struct Conv2d {
    /// `[out, in / groups, kernel height, kernel width]`.
    pub weight: Tensor,
    /// One value per output channel.
    pub bias: Option<Vec<f32>>,
    /// The stride in both directions, in pixels.
    pub stride: usize,
    /// Zeros added at top and bottom, and at left and right, in pixels.
    pub padding: [usize; 2],
    /// Distance between two taps of the kernel, in pixels; 1 is dense.
    pub dilation: usize,
    /// The number of groups: 1 for a full convolution, the number of input channels for a depthwise one.
    pub groups: usize,
}

/// The attributes and the result's shape of a pooling over windows that do not overlap.
pub(super) fn pooling(name: &str, x: &Value, size: usize) -> Result<(Vec<Attribute>, Shape), GraphError> {
    let (c, h, w) = x.chw()?;
    if h < size || w < size {
        return Err(mismatch(name, format!("at least {size}x{size} pixels"), format!("{h}x{w}")));
    }
    let attributes = vec![Attribute::ints("kernel_shape", &[size, size]), Attribute::ints("strides", &[size, size])];
    Ok((attributes, Shape::batched(&[c, h / size, w / size])))
}

impl Conv2d {
    /// Output channels, input channels per group, kernel height, kernel width.
    ///
    /// # Errors
    /// [`GraphError::Shape`] with the node's name if the weight does not have four dimensions.
    pub fn dimensions(&self, node: &str) -> Result<[usize; 4], GraphError> {
        let error = |_| mismatch(node, "a weight of four dimensions", format!("{:?}", self.weight.shape));
        self.weight.shape[..].try_into().map_err(error)
    }

    /// Channels, height and width of the convolution's result.
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
        let extent = |k: usize| (k - 1) * self.dilation + 1;
        if h + 2 * ph < extent(kh) || w + 2 * pw < extent(kw) {
            return Err(mismatch(node, format!("at least {kh}x{kw} pixels"), format!("{h}x{w}, padding {ph}x{pw}")));
        }
        let size = |n: usize, k: usize, p: usize| (n + 2 * p - extent(k)) / self.stride + 1;
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

/// The interpolation of [`Graph::resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// Takes the pixel at `floor(i · in / out)`.
    Nearest,
    /// Interpolates between the four pixels around. Pixel centres are at halves.
    Bilinear,
    /// Interpolates between the sixteen pixels around (a = −0.75). Pixel centres are at halves.
    Bicubic,
}

/// A fully connected layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// One value per output.
    pub bias: Vec<f32>,
}

/// The error for a node whose operands do not fit.
pub(super) fn mismatch(node: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> GraphError {
    GraphError::Shape { node: node.to_owned(), expected: expected.to_string(), found: found.to_string() }
}

impl Graph {
    /// Convolves an NCHW value.
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
        self.node(name, Operator::onnx("Conv"), inputs, attributes, shape)
    }

    /// Computes `max(x, 0)`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn relu(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        self.unary(name, "Relu", x, vec![])
    }

    /// Computes `1 / (1 + exp(-x))`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn sigmoid(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        self.unary(name, "Sigmoid", x, vec![])
    }

    /// Computes `clip(x / 6 + 1/2, 0, 1)`, PyTorch's hard sigmoid.
    ///
    /// # Errors
    /// The name is taken.
    pub fn hard_sigmoid(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let attributes = vec![Attribute::float("alpha", 1.0 / 6.0), Attribute::float("beta", 0.5)];
        self.unary(name, "HardSigmoid", x, attributes)
    }

    /// Computes `min(max(x, low), high)`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn clip(&mut self, name: &str, x: &Value, [low, high]: [f32; 2]) -> Result<Value, GraphError> {
        let scalar = |v| Tensor { shape: vec![], data: vec![v] };
        let low = self.constant(&format!("{name}.low"), scalar(low));
        let high = self.constant(&format!("{name}.high"), scalar(high));
        self.node(name, Operator::onnx("Clip"), vec![x.name.clone(), low, high], vec![], x.shape.clone())
    }

    pub(super) fn identity(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        self.unary(name, "Identity", x, vec![])
    }

    /// Adds two values of the same shape element by element.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn add(&mut self, name: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        if a.shape != b.shape {
            return Err(mismatch(name, &a.shape, &b.shape));
        }
        self.node(name, Operator::onnx("Add"), vec![a.name.clone(), b.name.clone()], vec![], a.shape.clone())
    }

    /// Multiplies element by element. `b` has the shape of `a` or is `NxCx1x1`, a gate for each channel.
    ///
    /// # Errors
    /// `b` has another shape.
    pub fn mul(&mut self, name: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let is_gate = matches!((a.chw(), b.chw()), (Ok((c, ..)), Ok((g, 1, 1))) if c == g);
        if a.shape != b.shape && !is_gate {
            return Err(mismatch(name, &a.shape, &b.shape));
        }
        self.node(name, Operator::onnx("Mul"), vec![a.name.clone(), b.name.clone()], vec![], a.shape.clone())
    }

    /// Joins feature maps of the same height and width along the channels.
    ///
    /// # Errors
    /// The parts' heights or widths differ.
    pub fn concat_channels(&mut self, name: &str, a: &Value, b: &Value) -> Result<Value, GraphError> {
        let ((ca, ha, wa), (cb, hb, wb)) = (a.chw()?, b.chw()?);
        if (ha, wa) != (hb, wb) {
            return Err(mismatch(name, format!("parts of {ha}x{wa} pixels"), format!("{hb}x{wb}")));
        }
        let shape = Shape::batched(&[ca + cb, ha, wa]);
        let inputs = vec![a.name.clone(), b.name.clone()];
        self.node(name, Operator::onnx("Concat"), inputs, vec![Attribute::int("axis", 1)], shape)
    }

    /// Takes the first `channels` channels. Returns `x` itself if it has no more.
    ///
    /// # Errors
    /// `x` has fewer channels.
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
        self.node(name, Operator::onnx("Slice"), inputs, vec![], Shape::batched(&[channels, h, w]))
    }

    /// Averages over `size`×`size` windows that do not overlap. A remainder at the right and the bottom is dropped.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn average_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        self.pool(name, "AveragePool", x, size)
    }

    /// Takes the largest value of `size`×`size` windows that do not overlap. A remainder at the right and the bottom is
    /// dropped.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn max_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        self.pool(name, "MaxPool", x, size)
    }

    fn pool(&mut self, name: &str, op: &'static str, x: &Value, size: usize) -> Result<Value, GraphError> {
        let (attributes, shape) = pooling(name, x, size)?;
        self.node(name, Operator::onnx(op), vec![x.name.clone()], attributes, shape)
    }

    /// Averages each feature map: NxCx1x1.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn global_average_pool(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        let inputs = vec![x.name.clone()];
        self.node(name, Operator::onnx("GlobalAveragePool"), inputs, vec![], Shape::batched(&[c, 1, 1]))
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
                // Sizes would be clearer, but with scales a runtime can stay in its own layout. A runtime computes the
                // output size as floor(in * scale) and the source pixel as floor(i / scale). If the factor is not a
                // whole number, an f32 scale could yield a size that is too small. So a little is added: less than
                // would move a source pixel (fractions of i * in / out are at least 1 / out apart), more than rounding
                // removes.
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
        self.node(name, Operator::onnx("Resize"), inputs, attributes, shape)
    }

    /// Flattens feature maps to vectors: NxCx1x1 to NxC.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn flatten(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let (c, h, w) = x.chw()?;
        let shape = Shape::batched(&[c * h * w]);
        self.node(name, Operator::onnx("Flatten"), vec![x.name.clone()], vec![Attribute::int("axis", 1)], shape)
    }

    /// Computes `x · weightᵀ + bias` for NxC vectors.
    ///
    /// # Errors
    /// The vectors' length does not fit the weight, or the bias does not fit the output.
    pub fn linear(&mut self, name: &str, x: &Value, linear: Linear) -> Result<Value, GraphError> {
        let [output_length, input_length] = linear.weight.shape[..] else {
            return Err(mismatch(name, "a weight of two dimensions", format!("{:?}", linear.weight.shape)));
        };
        if x.shape.0[..] != [Dim::Batch, Dim::Fixed(input_length)] {
            return Err(mismatch(name, Shape::batched(&[input_length]), &x.shape));
        }
        if linear.bias.len() != output_length {
            return Err(mismatch(name, format!("{output_length} biases"), linear.bias.len()));
        }
        let weight = self.constant(&format!("{name}.weight"), linear.weight);
        let bias = self.constant(&format!("{name}.bias"), Tensor { shape: vec![output_length], data: linear.bias });
        let attributes = vec![Attribute::int("transB", 1)];
        let inputs = vec![x.name.clone(), weight, bias];
        self.node(name, Operator::onnx("Gemm"), inputs, attributes, Shape::batched(&[output_length]))
    }

    /// Adds an operator with one input whose result has the same shape.
    fn unary(
        &mut self,
        name: &str,
        op: &'static str,
        x: &Value,
        attributes: Vec<Attribute>,
    ) -> Result<Value, GraphError> {
        self.node(name, Operator::onnx(op), vec![x.name.clone()], attributes, x.shape.clone())
    }

    /// Adds a node and returns its result, a value of the given shape.
    pub(super) fn node(
        &mut self,
        name: &str,
        operator: Operator,
        inputs: Vec<String>,
        attributes: Vec<Attribute>,
        shape: Shape,
    ) -> Result<Value, GraphError> {
        self.check_unused(name)?;
        self.nodes.push(Node { operator, inputs, output: name.to_owned(), attributes });
        Ok(Value { name: name.to_owned(), shape })
    }

    /// Adds a constant and returns its name.
    pub(super) fn constant(&mut self, name: &str, tensor: Tensor) -> String {
        self.constants.push(Constant {
            name: name.to_owned(),
            shape: tensor.shape,
            data: ConstantData::F32(tensor.data),
        });
        name.to_owned()
    }

    /// Adds a vector of integers as a constant and returns its name.
    pub(super) fn integers(&mut self, name: &str, values: &[usize]) -> String {
        let data = ConstantData::I64(values.iter().map(|&v| v as i64).collect());
        self.constants.push(Constant { name: name.to_owned(), shape: vec![values.len()], data });
        name.to_owned()
    }
}
