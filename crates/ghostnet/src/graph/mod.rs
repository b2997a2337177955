//! A typed builder for ONNX graphs.
//!
//! Every operator returns a [`Value`] that holds its shape. Every operator checks the shapes of its inputs and computes
//! the shape of its result. A network whose layers do not fit therefore fails while it is built, with the name of the
//! node, and not inside the runtime. This module knows ONNX, but not GhostNet, weight files or sessions. The lowering
//! of [`crate::Network`] uses it, and any runtime that reads ONNX loads a plain graph that [`Graph::into_onnx`] writes.
//!
//! The batch dimension is symbolic (`"batch"`): one model serves every batch size, and a session fixes it.

mod blocked;
mod external;
mod initializers;
mod layout;
mod onnx;
mod ops;
mod summary;

pub use blocked::{FusedActivation, GateFunction, OPERATOR_DOMAIN, PackedGhostTail, PackedSqueezeExcite, PackedStrips};
pub use external::{ExternalDataError, check_external_data};
pub use initializers::initializers;
pub use layout::Layout;
pub use ops::{Conv2d, Interpolation, Linear};
pub use summary::{Dimension, OnnxSummary, TensorSpec};

use std::collections::HashSet;
use std::fmt;

/// The name of the symbolic batch dimension in every graph that this crate writes.
pub const BATCH_DIM: &str = "batch";

/// One dimension of a [`Shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// The number of images, which is known only when the graph runs.
    Batch,
    /// A size that is known when the graph is built.
    Fixed(usize),
}

/// The shape of a value: NCHW for feature maps, NC for feature vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// The shape of a batch of values, each with the dimensions `each`.
    #[must_use]
    pub fn batched(each: &[usize]) -> Self {
        Self(std::iter::once(Dim::Batch).chain(each.iter().copied().map(Dim::Fixed)).collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, dim) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("x")?;
            }
            match dim {
                Dim::Batch => f.write_str("N")?,
                Dim::Fixed(n) => write!(f, "{n}")?,
            }
        }
        Ok(())
    }
}

/// A tensor in a graph under construction: an operator's result, which may be the next operator's input.
#[derive(Clone, Debug)]
pub struct Value {
    name: String,
    shape: Shape,
}

impl Value {
    /// The value's shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Channels, height and width of a feature map.
    ///
    /// # Errors
    /// [`GraphError::Rank`] if the value is not NCHW with a symbolic batch.
    pub fn chw(&self) -> Result<(usize, usize, usize), GraphError> {
        match self.shape.0[..] {
            [Dim::Batch, Dim::Fixed(c), Dim::Fixed(h), Dim::Fixed(w)] => Ok((c, h, w)),
            _ => Err(GraphError::Rank { value: self.name.clone(), expected: "NxCxHxW", found: self.shape.to_string() }),
        }
    }
}

/// A constant, such as a convolution's kernel or a bias.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Vec<f32>,
}

/// An ONNX graph under construction.
#[derive(Debug, Default)]
pub struct Graph {
    name: String,
    nodes: Vec<onnx::Node>,
    constants: Vec<onnx::Constant>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
}

/// Reasons why a graph cannot be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// A value's number of dimensions is not the one that the operator takes.
    #[error("{value}: expected a {expected} value, found {found}")]
    Rank {
        /// The value's name.
        value: String,
        /// The dimensions that the operator takes.
        expected: &'static str,
        /// The value's shape.
        found: String,
    },
    /// Two shapes do not agree, but must.
    #[error("{node}: expected {expected}, found {found}")]
    Shape {
        /// The node being built.
        node: String,
        /// The shape that fits.
        expected: String,
        /// The shape of the argument.
        found: String,
    },
    /// A name is used for two values. Holds the name.
    #[error("the name `{0}` is used twice in the graph")]
    Duplicate(String),
}

impl Graph {
    /// Creates an empty graph. Other tools show `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Declares an input: a batch of values, each with the dimensions `each`.
    ///
    /// # Errors
    /// [`GraphError::Duplicate`] if the name is taken.
    pub fn input(&mut self, name: &str, each: &[usize]) -> Result<Value, GraphError> {
        self.check_unused(name)?;
        let value = Value { name: name.to_owned(), shape: Shape::batched(each) };
        self.inputs.push(value.clone());
        Ok(value)
    }

    /// Makes `value` an output with the name `name`.
    ///
    /// # Errors
    /// [`GraphError::Duplicate`] if the name is taken.
    pub fn output(&mut self, name: &str, value: &Value) -> Result<(), GraphError> {
        let value = self.identity(name, value)?;
        self.outputs.push(value);
        Ok(())
    }

    /// Removes every node and constant that no output needs, so that outputs that are not requested cost nothing.
    pub fn prune(&mut self) {
        let mut needed: HashSet<String> = self.outputs.iter().map(|v| v.name.clone()).collect();
        // Nodes are in the order of their creation: a node comes after its inputs.
        let mut needed_nodes = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.drain(..).rev() {
            if needed.contains(&node.output) {
                needed.extend(node.inputs.iter().cloned());
                needed_nodes.push(node);
            }
        }
        needed_nodes.reverse();
        self.nodes = needed_nodes;
        self.constants.retain(|c| needed.contains(&c.name));
    }

    /// Puts the outputs in the order of `names`. Outputs that are not in `names` come last.
    pub fn order_outputs(&mut self, names: &[String]) {
        self.outputs.sort_by_key(|v| names.iter().position(|n| *n == v.name).unwrap_or(names.len()));
    }

    /// Number of nodes in the graph so far.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Checks that no input or node has the name yet.
    fn check_unused(&self, name: &str) -> Result<(), GraphError> {
        let taken = self.inputs.iter().any(|v| v.name == name) || self.nodes.iter().any(|n| n.output == name);
        if taken { Err(GraphError::Duplicate(name.to_owned())) } else { Ok(()) }
    }
}
