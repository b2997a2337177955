//! Operators on blocked maps: ONNX Runtime's internal ones and our own.
//!
//! ONNX Runtime rewrites convolutions into its domain `com.microsoft.nchwc` when it loads a model. A graph may contain
//! these operators from the start. Values keep a nominal N×C×H×W shape with C padded to whole blocks.
//! [`OPERATOR_DOMAIN`] holds the operators that ONNX Runtime does not have, or has only as a chain of several. The
//! crate `ghostserve-kernels` computes them and the server registers them. No other program loads such a graph; the
//! plain form is for those.

use super::onnx::{Attribute, Operator};
use super::ops::{mismatch, pooling};
use super::{Conv2d, Dim, Graph, GraphError, Layout, Shape, Tensor, Value};

/// The operator domain of the kernels of the crate `ghostserve-kernels`.
pub const OPERATOR_DOMAIN: &str = "ghostserve";

/// The domain of ONNX Runtime's own operators on blocked maps.
const NCHWC_DOMAIN: &str = "com.microsoft.nchwc";

impl Operator {
    /// An operator of ONNX Runtime's domain for blocked maps.
    const fn nchwc(name: &'static str) -> Self {
        Self { domain: NCHWC_DOMAIN, name }
    }

    /// An operator of [`OPERATOR_DOMAIN`].
    const fn ghostserve(name: &'static str) -> Self {
        Self { domain: OPERATOR_DOMAIN, name }
    }
}

/// The activation that a blocked convolution applies to its results before it stores them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FusedActivation {
    /// No activation.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, low), high)`.
    Clip([f32; 2]),
}

/// The function that makes a gate of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    /// No function: a later node applies it.
    None,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `clip(x / 6 + 1/2, 0, 1)`.
    HardSigmoid,
    /// `clip(x, 0, 1)`.
    Clip,
}

/// The tail of a Ghost module with packed constants: see [`Graph::ghost`].
#[derive(Clone, Debug)]
pub struct PackedGhostTail {
    /// Channels per block.
    pub block: usize,
    /// The depthwise kernel over every slot of the input, packed: `[slots, 1, 3, 3]`.
    pub weight: Tensor,
    /// One value per slot.
    pub bias: Vec<f32>,
    /// Number of input slots, whole blocks, that are copied to the front of the output.
    pub copied: usize,
    /// Whether a rectifier follows the depthwise convolution.
    pub relu: bool,
    /// Dilation of the depthwise kernel.
    pub dilation: usize,
}

/// The two strips of DFC attention with packed constants: see [`Graph::strips`].
#[derive(Clone, Debug)]
pub struct PackedStrips {
    /// Channels per block.
    pub block: usize,
    /// The horizontal kernel, packed: `[slots, 1, 1, k]`.
    pub horizontal: Tensor,
    /// One value per slot.
    pub horizontal_bias: Vec<f32>,
    /// The vertical kernel, packed: `[slots, 1, k, 1]`.
    pub vertical: Tensor,
    /// One value per slot.
    pub vertical_bias: Vec<f32>,
    /// The function after the vertical strip.
    pub function: GateFunction,
    /// Distance between two taps of both kernels, in pixels.
    pub dilation: usize,
}

/// A squeeze-excite with packed constants: see [`Graph::squeeze_excite`].
#[derive(Clone, Debug)]
pub struct PackedSqueezeExcite {
    /// Channels per block.
    pub block: usize,
    /// The first matrix, `[squeezed, slots]`.
    pub reduce: Tensor,
    /// One value per squeezed channel.
    pub reduce_bias: Vec<f32>,
    /// The second matrix, `[squeezed, slots]`: transposed, so that both matrices are read along the slots.
    pub expand: Tensor,
    /// One value per slot.
    pub expand_bias: Vec<f32>,
}

impl Graph {
    /// Convolves a blocked map, or an image with fewer channels than a block, with packed weights. `residual` is added
    /// before the activation.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn blocked_conv(
        &mut self,
        name: &str,
        x: &Value,
        conv: Conv2d,
        residual: Option<&Value>,
        activation: FusedActivation,
    ) -> Result<Value, GraphError> {
        let shape = Shape::batched(&conv.output_shape(name, x)?);
        if let Some(residual) = residual.filter(|r| r.shape != shape) {
            return Err(mismatch(name, &shape, &residual.shape));
        }
        let [_, _, kh, kw] = conv.dimensions(name)?;
        let mut attributes = conv.attributes([kh, kw]);
        match activation {
            FusedActivation::None => {}
            FusedActivation::Relu => attributes.push(Attribute::string("activation", "Relu")),
            FusedActivation::Clip(range) => {
                attributes.push(Attribute::string("activation", "Clip"));
                attributes.push(Attribute::floats("activation_params", &range));
            }
        }
        let bias = conv.bias.map(|b| self.vector(&format!("{name}.bias"), b)).unwrap_or_default();
        let mut inputs = vec![x.name.clone(), self.constant(&format!("{name}.weight"), conv.weight), bias];
        inputs.extend(residual.map(|r| r.name.clone()));
        self.node(name, Operator::nchwc("Conv"), inputs, attributes, shape)
    }

    /// Does the same as [`Graph::average_pool`] for a blocked map.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn blocked_average_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        let (attributes, shape) = pooling(name, x, size)?;
        self.node(name, Operator::nchwc("AveragePool"), vec![x.name.clone()], attributes, shape)
    }

    /// Does the same as [`Graph::max_pool`] for a blocked map.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn blocked_max_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        let (attributes, shape) = pooling(name, x, size)?;
        self.node(name, Operator::nchwc("MaxPool"), vec![x.name.clone()], attributes, shape)
    }

    /// Does the same as [`Graph::global_average_pool`] for a blocked map. The means are in the order of the slots.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn blocked_global_average_pool(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        let inputs = vec![x.name.clone()];
        self.node(name, Operator::nchwc("GlobalAveragePool"), inputs, vec![], Shape::batched(&[c, 1, 1]))
    }

    /// Computes the tail of a Ghost module in one pass. The output is the first blocks of `x`, copied, then a 3×3
    /// depthwise convolution of all blocks of `x`. Both are multiplied by `gate`, which may have any smaller size
    /// (nearest neighbour). Then `residual` is added.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn ghost(
        &mut self,
        name: &str,
        x: &Value,
        tail: PackedGhostTail,
        gate: Option<&Value>,
        residual: Option<&Value>,
    ) -> Result<Value, GraphError> {
        let (c, h, w) = x.chw()?;
        if tail.weight.shape != [c, 1, 3, 3] || tail.copied > c {
            return Err(mismatch(name, format!("a weight [{c}, 1, 3, 3]"), format!("{:?}", tail.weight.shape)));
        }
        let shape = Shape::batched(&[tail.copied + c, h, w]);
        let fits = |gate: &&Value| matches!((gate.chw(), shape.0[1]), (Ok((g, ..)), Dim::Fixed(c)) if g == c);
        if let Some(gate) = gate.filter(|g| !fits(g)) {
            return Err(mismatch(name, format!("a gate for {shape}"), &gate.shape));
        }
        if let Some(residual) = residual.filter(|r| r.shape != shape) {
            return Err(mismatch(name, &shape, &residual.shape));
        }
        let attributes = vec![
            Attribute::int("block", tail.block),
            Attribute::int("copied", tail.copied),
            Attribute::int("relu", usize::from(tail.relu)),
            Attribute::int("dilation", tail.dilation),
        ];
        let mut inputs = vec![
            x.name.clone(),
            self.constant(&format!("{name}.weight"), tail.weight),
            self.vector(&format!("{name}.bias"), tail.bias),
        ];
        let optional = [gate, residual].map(|v| v.map(|v| v.name.clone()).unwrap_or_default());
        inputs.extend(optional);
        // An empty name stands for an absent input; at the end of the list it is left out.
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        self.node(name, Operator::ghostserve("Ghost"), inputs, attributes, shape)
    }

    /// Applies the horizontal strip, then the vertical strip, then the gate function, in one pass over each block.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn strips(&mut self, name: &str, x: &Value, strips: PackedStrips) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        if strips.horizontal.shape[0] != c || strips.vertical.shape[0] != c {
            return Err(mismatch(name, format!("strips of {c} slots"), format!("{:?}", strips.horizontal.shape)));
        }
        let function = match strips.function {
            GateFunction::None => 0,
            GateFunction::Sigmoid => 1,
            GateFunction::HardSigmoid => 2,
            GateFunction::Clip => 3,
        };
        let inputs = vec![
            x.name.clone(),
            self.constant(&format!("{name}.horizontal"), strips.horizontal),
            self.vector(&format!("{name}.horizontal_bias"), strips.horizontal_bias),
            self.constant(&format!("{name}.vertical"), strips.vertical),
            self.vector(&format!("{name}.vertical_bias"), strips.vertical_bias),
        ];
        let attributes = vec![
            Attribute::int("block", strips.block),
            Attribute::int("function", function),
            Attribute::int("dilation", strips.dilation),
        ];
        self.node(name, Operator::ghostserve("Strips"), inputs, attributes, x.shape.clone())
    }

    /// Multiplies each map by a gate. The gates are computed from the means of all maps: a small matrix, a rectifier, a
    /// second matrix, a hard sigmoid.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn squeeze_excite(&mut self, name: &str, x: &Value, packed: PackedSqueezeExcite) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        if packed.reduce.shape[1] != c || packed.expand.shape != packed.reduce.shape {
            return Err(mismatch(name, format!("matrices over {c} slots"), format!("{:?}", packed.reduce.shape)));
        }
        let inputs = vec![
            x.name.clone(),
            self.constant(&format!("{name}.reduce"), packed.reduce),
            self.vector(&format!("{name}.reduce_bias"), packed.reduce_bias),
            self.constant(&format!("{name}.expand"), packed.expand),
            self.vector(&format!("{name}.expand_bias"), packed.expand_bias),
        ];
        let attributes = vec![Attribute::int("block", packed.block)];
        self.node(name, Operator::ghostserve("SqueezeExcite"), inputs, attributes, x.shape.clone())
    }

    /// Multiplies `x` by `gate`, which may be smaller (nearest neighbour), and adds `residual`. `block` is the number
    /// of channels per block.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gate(
        &mut self,
        name: &str,
        x: &Value,
        gate: &Value,
        residual: Option<&Value>,
        block: usize,
    ) -> Result<Value, GraphError> {
        if x.chw()?.0 != gate.chw()?.0 {
            return Err(mismatch(name, format!("a gate for {}", x.shape), &gate.shape));
        }
        if let Some(residual) = residual.filter(|r| r.shape != x.shape) {
            return Err(mismatch(name, &x.shape, &residual.shape));
        }
        let mut inputs = vec![x.name.clone(), gate.name.clone()];
        inputs.extend(residual.map(|r| r.name.clone()));
        let attributes = vec![Attribute::int("block", block)];
        self.node(name, Operator::ghostserve("Gate"), inputs, attributes, x.shape.clone())
    }

    /// Converts blocks to N×C×H×W with the channels in order.
    ///
    /// # Errors
    /// A channel has no slot.
    pub fn unblock(&mut self, name: &str, x: &Value, layout: &Layout, channels: usize) -> Result<Value, GraphError> {
        let (_, h, w) = x.chw()?;
        let Some(positions) = layout.positions(channels) else {
            return Err(mismatch(name, format!("a slot for each of {channels} channels"), format!("{layout:?}")));
        };
        let inputs = vec![x.name.clone(), self.integers(&format!("{name}.slots"), &positions)];
        let shape = Shape::batched(&[channels, h, w]);
        self.node(name, Operator::ghostserve("Unblock"), inputs, block_attribute(layout), shape)
    }

    /// Converts N×C×H×W with the channels in order to blocks. Empty slots are zero.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn reblock(&mut self, name: &str, x: &Value, layout: &Layout) -> Result<Value, GraphError> {
        let (channels, h, w) = x.chw()?;
        // The index after the last channel stands for an empty slot.
        let sources: Vec<usize> = layout.slots().iter().map(|s| s.unwrap_or(channels)).collect();
        let shape = Shape::batched(&[sources.len(), h, w]);
        let inputs = vec![x.name.clone(), self.integers(&format!("{name}.slots"), &sources)];
        self.node(name, Operator::ghostserve("Reblock"), inputs, block_attribute(layout), shape)
    }

    /// Adds a vector as a constant and returns its name.
    fn vector(&mut self, name: &str, data: Vec<f32>) -> String {
        self.constant(name, Tensor { shape: vec![data.len()], data })
    }
}

/// The attributes of an operator that has only the block size.
fn block_attribute(layout: &Layout) -> Vec<Attribute> {
    vec![Attribute::int("block", layout.block())]
}
