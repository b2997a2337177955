//! A typed builder for ONNX graphs.
//!
//! Every value a graph hands out is a [`Value`] that knows its shape; every operator checks the shapes it is given and
//! computes the one it makes, so a network that does not fit together fails where it is built, with the node's name,
//! not inside the runtime. This module knows ONNX and nothing of GhostNet, of weights' files or of sessions:
//! The lowering of [`crate::Network`] uses it; any runtime that reads ONNX loads what [`Graph::into_onnx`] writes.
//!
//! The batch dimension is symbolic (`"batch"`): one model serves every batch size, and a session fixes it.

mod blocked;
mod external;
mod initializers;
mod layout;
mod onnx;
mod ops;

pub use blocked::{Excitation, Fused, GateFunction, GhostTail, OPERATOR_DOMAIN, Strips};
pub use external::{ExternalDataError, check_external_data};
pub use initializers::initializers;
pub use layout::Layout;
pub use ops::{Conv2d, Interpolation, Linear};

use std::collections::HashSet;
use std::fmt;

/// The name of the symbolic batch dimension in every graph written here.
pub const BATCH_DIM: &str = "batch";

/// One dimension of a [`Shape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// The number of images, known only when the graph runs.
    Batch,
    /// A size known when the graph is built.
    Fixed(usize),
}

/// The shape of a value: NCHW for feature maps, NC for rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A batch of values of the given size each.
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

/// A tensor in a graph under construction: what an operator returned, ready to feed the next one.
#[derive(Clone, Debug)]
pub struct Value {
    name: String,
    shape: Shape,
}

impl Value {
    /// Its shape.
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

/// A constant: a convolution's kernel, a bias.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
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

/// Why a graph could not be built.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GraphError {
    /// A value has another number of dimensions than the operator takes.
    #[error("{value}: expected a {expected} value, found {found}")]
    Rank {
        /// The value's name.
        value: String,
        /// The layout wanted.
        expected: &'static str,
        /// The shape it has.
        found: String,
    },
    /// Two shapes that must agree do not.
    #[error("{node}: expected {expected}, found {found}")]
    Shape {
        /// The node being built.
        node: String,
        /// What would fit.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A name was used for two values.
    #[error("the name `{0}` is used twice in the graph")]
    Duplicate(String),
}

impl Graph {
    /// An empty graph; `name` is what other tools show.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Declares an input: a batch of values of shape `each`.
    ///
    /// # Errors
    /// [`GraphError::Duplicate`] if the name is taken.
    pub fn input(&mut self, name: &str, each: &[usize]) -> Result<Value, GraphError> {
        self.claim(name)?;
        let value = Value { name: name.to_owned(), shape: Shape::batched(each) };
        self.inputs.push(value.clone());
        Ok(value)
    }

    /// Makes `value` an output called `name`.
    ///
    /// # Errors
    /// [`GraphError::Duplicate`] if the name is taken.
    pub fn output(&mut self, name: &str, value: &Value) -> Result<(), GraphError> {
        let value = self.identity(name, value)?;
        self.outputs.push(value);
        Ok(())
    }

    /// Takes out what no output needs, so that what was not asked for costs nothing.
    pub fn prune(&mut self) {
        let mut needed: HashSet<String> = self.outputs.iter().map(|v| v.name.clone()).collect();
        // Nodes are in the order in which they were made, so whoever needs a value comes after it.
        let mut kept = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.drain(..).rev() {
            if needed.contains(&node.output) {
                needed.extend(node.inputs.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        self.constants.retain(|c| needed.contains(&c.name));
    }

    /// Puts the outputs in the order of `names`; those not named come last.
    pub fn order_outputs(&mut self, names: &[String]) {
        self.outputs.sort_by_key(|v| names.iter().position(|n| *n == v.name).unwrap_or(names.len()));
    }

    /// Nodes in the graph so far.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn claim(&self, name: &str) -> Result<(), GraphError> {
        let taken = self.inputs.iter().any(|v| v.name == name) || self.nodes.iter().any(|n| n.output == name);
        if taken { Err(GraphError::Duplicate(name.to_owned())) } else { Ok(()) }
    }
}
