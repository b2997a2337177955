//! Operators on blocked maps: ONNX Runtime's own, which it normally keeps to itself, and the ones this program brings.
//!
//! ONNX Runtime rewrites convolutions into its domain `com.microsoft.nchwc` when it loads a model; a graph may as well
//! contain that form from the start. Values keep a nominal N×C×H×W shape with C padded to whole blocks. What ONNX
//! Runtime has no operator for, or only a chain of them, is in [`OPERATOR_DOMAIN`]: the crate `ghostserve-kernels` computes it,
//! the server registers it. Such a graph loads nowhere else; the plain one is for everywhere else.

use super::onnx::Attribute;
use super::ops::{mismatch, pooled};
use super::{Conv2d, Graph, GraphError, Layout, Shape, Tensor, Value};

/// The operator domain of the kernels of the crate `ghostserve-kernels`.
pub const OPERATOR_DOMAIN: &str = "ghostserve";

const BLOCKED_DOMAIN: &str = "com.microsoft.nchwc";

/// What a blocked convolution does with a sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fused {
    /// Nothing.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, low), high)`.
    Clip([f32; 2]),
}

/// What makes a gate of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateFunction {
    /// Nothing: it is done later.
    None,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `clip(x / 6 + 1/2, 0, 1)`.
    HardSigmoid,
    /// `clip(x, 0, 1)`.
    Clip,
}

/// The tail of a Ghost module: see [`Graph::ghost`].
#[derive(Clone, Debug)]
pub struct GhostTail {
    /// Channels a block.
    pub block: usize,
    /// Depthwise kernel over every slot of the input, packed: `[slots, 1, 3, 3]`.
    pub weight: Tensor,
    /// One value a slot.
    pub bias: Vec<f32>,
    /// Slots of the input, whole blocks, that come first in the output as they are.
    pub copied: usize,
    /// Whether a rectifier follows the depthwise convolution.
    pub relu: bool,
    /// Of the depthwise kernel.
    pub dilation: usize,
}

/// The two strips of DFC attention: see [`Graph::strips`].
#[derive(Clone, Debug)]
pub struct Strips {
    /// Channels a block.
    pub block: usize,
    /// Packed: `[slots, 1, 1, k]`.
    pub horizontal: Tensor,
    /// One value a slot.
    pub horizontal_bias: Vec<f32>,
    /// Packed: `[slots, 1, k, 1]`.
    pub vertical: Tensor,
    /// One value a slot.
    pub vertical_bias: Vec<f32>,
    /// Follows the vertical strip.
    pub function: GateFunction,
    /// Pixels from tap to tap.
    pub dilation: usize,
}

/// A squeeze-excite: see [`Graph::squeeze_excite`].
#[derive(Clone, Debug)]
pub struct Excitation {
    /// Channels a block.
    pub block: usize,
    /// `[squeezed, slots]`.
    pub reduce: Tensor,
    /// One value a squeezed channel.
    pub reduce_bias: Vec<f32>,
    /// `[squeezed, slots]`: transposed, so that both matrices are read along the slots.
    pub expand: Tensor,
    /// One value a slot.
    pub expand_bias: Vec<f32>,
}

impl Graph {
    /// Convolution of a blocked map (or of an image with fewer channels than a block) with packed weights, to which
    /// `sum` is added before the activation.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn blocked_conv(
        &mut self,
        name: &str,
        x: &Value,
        conv: Conv2d,
        sum: Option<&Value>,
        fused: Fused,
    ) -> Result<Value, GraphError> {
        let shape = Shape::batched(&conv.output_shape(name, x)?);
        if let Some(sum) = sum.filter(|s| s.shape != shape) {
            return Err(mismatch(name, &shape, &sum.shape));
        }
        let [_, _, kh, kw] = conv.dimensions(name)?;
        let mut attributes = conv.attributes([kh, kw]);
        match fused {
            Fused::None => {}
            Fused::Relu => attributes.push(Attribute::string("activation", "Relu")),
            Fused::Clip(range) => {
                attributes.push(Attribute::string("activation", "Clip"));
                attributes.push(Attribute::floats("activation_params", &range));
            }
        }
        let bias = conv.bias.map(|b| self.vector(&format!("{name}.bias"), b)).unwrap_or_default();
        let mut inputs = vec![x.name.clone(), self.constant(&format!("{name}.weight"), conv.weight), bias];
        inputs.extend(sum.map(|s| s.name.clone()));
        self.node(name, (BLOCKED_DOMAIN, "Conv"), inputs, attributes, shape)
    }

    /// [`Graph::average_pool`] of a blocked map.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn blocked_average_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        let (attributes, shape) = pooled(name, x, size)?;
        self.node(name, (BLOCKED_DOMAIN, "AveragePool"), vec![x.name.clone()], attributes, shape)
    }

    /// [`Graph::max_pool`] of a blocked map.
    ///
    /// # Errors
    /// The input is smaller than one window.
    pub fn blocked_max_pool(&mut self, name: &str, x: &Value, size: usize) -> Result<Value, GraphError> {
        let (attributes, shape) = pooled(name, x, size)?;
        self.node(name, (BLOCKED_DOMAIN, "MaxPool"), vec![x.name.clone()], attributes, shape)
    }

    /// [`Graph::global_average_pool`] of a blocked map: the slots' means in the slots' order.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn blocked_global_average_pool(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        self.node(name, (BLOCKED_DOMAIN, "GlobalAveragePool"), vec![x.name.clone()], vec![], Shape::batched(&[c, 1, 1]))
    }

    /// The tail of a Ghost module in one pass: the first blocks of `x` as they are, then a 3×3 depthwise convolution of
    /// all of its blocks; both multiplied by `gate` (nearest neighbour, at any smaller size), plus `residual`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn ghost(
        &mut self,
        name: &str,
        x: &Value,
        tail: GhostTail,
        gate: Option<&Value>,
        residual: Option<&Value>,
    ) -> Result<Value, GraphError> {
        let (c, h, w) = x.chw()?;
        if tail.weight.shape != [c, 1, 3, 3] || tail.copied > c {
            return Err(mismatch(name, format!("a weight [{c}, 1, 3, 3]"), format!("{:?}", tail.weight.shape)));
        }
        let shape = Shape::batched(&[tail.copied + c, h, w]);
        let fits = |gate: &&Value| matches!((gate.chw(), shape.0[1]), (Ok((g, ..)), super::Dim::Fixed(c)) if g == c);
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
        while inputs.last().is_some_and(String::is_empty) {
            inputs.pop();
        }
        self.node(name, (OPERATOR_DOMAIN, "Ghost"), inputs, attributes, shape)
    }

    /// A horizontal strip, a vertical one on it, and a gate function, in one pass over each block.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn strips(&mut self, name: &str, x: &Value, strips: Strips) -> Result<Value, GraphError> {
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
        self.node(name, (OPERATOR_DOMAIN, "Strips"), inputs, attributes, x.shape.clone())
    }

    /// Means of the maps, two small matrices with a rectifier between, a hard sigmoid, and the maps multiplied by it.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn squeeze_excite(&mut self, name: &str, x: &Value, excitation: Excitation) -> Result<Value, GraphError> {
        let (c, ..) = x.chw()?;
        if excitation.reduce.shape[1] != c || excitation.expand.shape != excitation.reduce.shape {
            return Err(mismatch(name, format!("matrices over {c} slots"), format!("{:?}", excitation.reduce.shape)));
        }
        let inputs = vec![
            x.name.clone(),
            self.constant(&format!("{name}.reduce"), excitation.reduce),
            self.vector(&format!("{name}.reduce_bias"), excitation.reduce_bias),
            self.constant(&format!("{name}.expand"), excitation.expand),
            self.vector(&format!("{name}.expand_bias"), excitation.expand_bias),
        ];
        let attributes = vec![Attribute::int("block", excitation.block)];
        self.node(name, (OPERATOR_DOMAIN, "SqueezeExcite"), inputs, attributes, x.shape.clone())
    }

    /// `x` times `gate`, which may be smaller (nearest neighbour), plus `residual`; with the channels a block.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn gate(
        &mut self,
        name: &str,
        x: &Value,
        gate: &Value,
        (residual, block): (Option<&Value>, usize),
    ) -> Result<Value, GraphError> {
        if x.chw()?.0 != gate.chw()?.0 {
            return Err(mismatch(name, format!("a gate for {}", x.shape), &gate.shape));
        }
        if let Some(residual) = residual.filter(|r| r.shape != x.shape) {
            return Err(mismatch(name, &x.shape, &residual.shape));
        }
        let mut inputs = vec![x.name.clone(), gate.name.clone()];
        inputs.extend(residual.map(|r| r.name.clone()));
        self.node(name, (OPERATOR_DOMAIN, "Gate"), inputs, vec![Attribute::int("block", block)], x.shape.clone())
    }

    /// From blocks to N×C×H×W, channels in order.
    ///
    /// # Errors
    /// A channel has no slot.
    pub fn unblock(&mut self, name: &str, x: &Value, layout: &Layout, channels: usize) -> Result<Value, GraphError> {
        let (_, h, w) = x.chw()?;
        let Some(positions) = layout.positions(channels) else {
            return Err(mismatch(name, format!("a slot for each of {channels} channels"), format!("{layout:?}")));
        };
        let inputs = vec![x.name.clone(), self.integers(&format!("{name}.slots"), &positions)];
        self.node(name, (OPERATOR_DOMAIN, "Unblock"), inputs, block_of(layout), Shape::batched(&[channels, h, w]))
    }

    /// From N×C×H×W, channels in order, to blocks; empty slots are zero.
    ///
    /// # Errors
    /// `x` is not a feature map.
    pub fn reblock(&mut self, name: &str, x: &Value, layout: &Layout) -> Result<Value, GraphError> {
        let (channels, h, w) = x.chw()?;
        // One past the last channel stands for an empty slot.
        let sources: Vec<usize> = layout.slots().iter().map(|s| s.unwrap_or(channels)).collect();
        let shape = Shape::batched(&[sources.len(), h, w]);
        let inputs = vec![x.name.clone(), self.integers(&format!("{name}.slots"), &sources)];
        self.node(name, (OPERATOR_DOMAIN, "Reblock"), inputs, block_of(layout), shape)
    }

    fn vector(&mut self, name: &str, data: Vec<f32>) -> String {
        self.constant(name, Tensor { shape: vec![data.len()], data })
    }
}

fn block_of(layout: &Layout) -> Vec<Attribute> {
    vec![Attribute::int("block", layout.block())]
}
