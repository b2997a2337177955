//! Registers the kernels of [`ghostserve_kernels`] as operators of ONNX Runtime.
//!
//! Each operator reads its attributes once, takes its operands as slices, and passes both to a kernel, which checks
//! the sizes.

use std::marker::PhantomData;

use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput};
use ort::value::{TensorElementType, ValueRef};

use ghostserve_ghostnet::graph::OPERATOR_DOMAIN;
use ghostserve_kernels::{self as kernels, GateKind, KernelError, MapSize};

/// The domain of all operators, to register with a session.
///
/// # Errors
/// ONNX Runtime does not accept an operator.
pub(super) fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new(OPERATOR_DOMAIN)?
        .add(OperatorDescription::<GhostOperator>::floats(3, 2))?
        .add(OperatorDescription::<GateOperator>::floats(2, 1))?
        .add(OperatorDescription::<StripsOperator>::floats(5, 0))?
        .add(OperatorDescription::<SqueezeExciteOperator>::floats(5, 0))?
        .add(OperatorDescription::<UnblockOperator>::with_slots())?
        .add(OperatorDescription::<ReblockOperator>::with_slots())
}

/// The computation of an operator: it gets attributes when a node is created, and operands at every run.
trait Compute: Send + Sync + Sized + 'static {
    const NAME: &'static str;

    /// Reads the attributes.
    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self>;

    /// Computes the node's output.
    fn run(&self, operands: &Operands<'_>) -> ort::Result<()>;
}

/// An operator's name and operands, as ONNX Runtime needs them.
struct OperatorDescription<C> {
    required: usize,
    optional: usize,
    slots: bool,
    compute: PhantomData<fn() -> C>,
}

impl<C> OperatorDescription<C> {
    /// Float operands; the optional ones may be absent.
    fn floats(required: usize, optional: usize) -> Self {
        Self { required, optional, slots: false, compute: PhantomData }
    }

    /// A feature map, and integers that are numbers of slots.
    fn with_slots() -> Self {
        Self { required: 1, optional: 0, slots: true, compute: PhantomData }
    }
}

impl<C: Compute> Operator for OperatorDescription<C> {
    type Kernel<'attr> = OperatorNode<C>;

    fn name(&self) -> &str {
        C::NAME
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let float = TensorElementType::Float32;
        let required = std::iter::repeat_n(float, self.required).map(OperatorInput::required);
        let slots = self.slots.then(|| OperatorInput::required(TensorElementType::Int64));
        let optional = std::iter::repeat_n(float, self.optional).map(OperatorInput::optional);
        required.chain(slots).chain(optional)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, attributes: &KernelContext<'attr>) -> ort::Result<OperatorNode<C>> {
        C::new(attributes).map(OperatorNode)
    }
}

/// A node of an operator.
struct OperatorNode<C>(C);

impl<C: Compute> Kernel for OperatorNode<C> {
    fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
        self.0.run(&Operands(context))
    }
}

/// The operands and the output of a node.
struct Operands<'a>(&'a ComputeContext);

/// A feature map's shape: images, slots or channels, height and width.
struct MapShape {
    images: usize,
    channels: usize,
    size: MapSize,
}

impl Operands<'_> {
    fn optional(&self, index: usize) -> ort::Result<Option<ValueRef<'_>>> {
        if index < self.0.num_inputs()? { self.0.input(index) } else { Ok(None) }
    }

    fn value(&self, index: usize) -> ort::Result<ValueRef<'_>> {
        self.optional(index)?.ok_or_else(|| ort::Error::new(format!("operand {index} is missing")))
    }

    /// Allocates the output in the given shape and lets `run` write it.
    fn write_output(
        &self,
        MapShape { images, channels, size: [height, width] }: MapShape,
        run: impl FnOnce(&mut [f32]) -> Result<(), KernelError>,
    ) -> ort::Result<()> {
        let Some(mut output) = self.0.output(0, [images, channels, height, width])? else { return Ok(()) };
        let (_, out) = output.try_extract_tensor_mut::<f32>()?;
        run(out).map_err(|e| ort::Error::new(e.to_string()))
    }
}

/// The elements of a float tensor.
fn floats<'v>(value: &'v ValueRef<'_>) -> ort::Result<&'v [f32]> {
    Ok(value.try_extract_tensor::<f32>()?.1)
}

/// The shape and the elements of a feature map.
fn feature_map<'v>(value: &'v ValueRef<'_>) -> ort::Result<(MapShape, &'v [f32])> {
    let (shape, data) = value.try_extract_tensor::<f32>()?;
    let dimension = |i: usize| shape.get(i).and_then(|n| usize::try_from(*n).ok());
    match (dimension(0), dimension(1), dimension(2), dimension(3)) {
        (Some(images), Some(channels), Some(height), Some(width)) => {
            Ok((MapShape { images, channels, size: [height, width] }, data))
        }
        _ => Err(ort::Error::new(format!("expected a feature map, found {shape:?}"))),
    }
}

/// The value of an integer attribute.
fn attribute(attributes: &KernelContext<'_>, name: &str) -> ort::Result<usize> {
    let value = attributes.get::<i64>(name).and_then(|v| usize::try_from(v).ok());
    value.ok_or_else(|| ort::Error::new(format!("the attribute `{name}` is missing")))
}

struct GhostOperator {
    block: usize,
    copied: usize,
    relu: bool,
    dilation: usize,
}

impl Compute for GhostOperator {
    const NAME: &'static str = "Ghost";

    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self> {
        let read = |name| attribute(attributes, name);
        Ok(Self {
            block: read("block")?,
            copied: read("copied")?,
            relu: read("relu")? == 1,
            dilation: read("dilation")?,
        })
    }

    fn run(&self, operands: &Operands<'_>) -> ort::Result<()> {
        let (x, weight, bias) = (operands.value(0)?, operands.value(1)?, operands.value(2)?);
        let (gate, residual) = (operands.optional(3)?, operands.optional(4)?);
        let (MapShape { images, channels, size }, x) = feature_map(&x)?;
        let arguments = kernels::Ghost {
            x,
            weight: floats(&weight)?,
            bias: floats(&bias)?,
            gate: gate.as_ref().map(feature_map).transpose()?.map(|(shape, gate)| (gate, shape.size)),
            residual: residual.as_ref().map(floats).transpose()?,
            images,
            size,
            copied: self.copied,
            relu: self.relu,
            dilation: self.dilation,
        };
        let shape = MapShape { images, channels: self.copied + channels, size };
        operands.write_output(shape, |out| kernels::ghost(self.block, &arguments, out))
    }
}

struct GateOperator {
    block: usize,
}

impl Compute for GateOperator {
    const NAME: &'static str = "Gate";

    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self> {
        Ok(Self { block: attribute(attributes, "block")? })
    }

    fn run(&self, operands: &Operands<'_>) -> ort::Result<()> {
        let (x, gate, residual) = (operands.value(0)?, operands.value(1)?, operands.optional(2)?);
        let (shape, x) = feature_map(&x)?;
        let (small, gate) = feature_map(&gate)?;
        let arguments = kernels::Gate {
            x,
            gate: (gate, small.size),
            residual: residual.as_ref().map(floats).transpose()?,
            planes: shape.images * shape.channels / self.block.max(1),
            size: shape.size,
        };
        operands.write_output(shape, |out| kernels::gate(self.block, &arguments, out))
    }
}

struct StripsOperator {
    block: usize,
    dilation: usize,
    function: GateKind,
}

impl Compute for StripsOperator {
    const NAME: &'static str = "Strips";

    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self> {
        let read = |name| attribute(attributes, name);
        let function = match read("function")? {
            0 => GateKind::None,
            1 => GateKind::Sigmoid,
            2 => GateKind::HardSigmoid,
            3 => GateKind::Clip,
            other => return Err(ort::Error::new(format!("there is no gate function {other}"))),
        };
        Ok(Self { block: read("block")?, dilation: read("dilation")?, function })
    }

    fn run(&self, operands: &Operands<'_>) -> ort::Result<()> {
        let (x, horizontal, horizontal_bias) = (operands.value(0)?, operands.value(1)?, operands.value(2)?);
        let (vertical, vertical_bias) = (operands.value(3)?, operands.value(4)?);
        let (shape, x) = feature_map(&x)?;
        let arguments = kernels::Strips {
            x,
            horizontal: floats(&horizontal)?,
            horizontal_bias: floats(&horizontal_bias)?,
            vertical: floats(&vertical)?,
            vertical_bias: floats(&vertical_bias)?,
            images: shape.images,
            size: shape.size,
            dilation: self.dilation,
            function: self.function,
        };
        operands.write_output(shape, |out| kernels::strips(self.block, &arguments, out))
    }
}

struct SqueezeExciteOperator {
    block: usize,
}

impl Compute for SqueezeExciteOperator {
    const NAME: &'static str = "SqueezeExcite";

    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self> {
        Ok(Self { block: attribute(attributes, "block")? })
    }

    fn run(&self, operands: &Operands<'_>) -> ort::Result<()> {
        let (x, reduce, reduce_bias) = (operands.value(0)?, operands.value(1)?, operands.value(2)?);
        let (expand, expand_bias) = (operands.value(3)?, operands.value(4)?);
        let (shape, x) = feature_map(&x)?;
        let arguments = kernels::SqueezeExcite {
            x,
            reduce: floats(&reduce)?,
            reduce_bias: floats(&reduce_bias)?,
            expand: floats(&expand)?,
            expand_bias: floats(&expand_bias)?,
            size: shape.size,
        };
        operands.write_output(shape, |out| kernels::squeeze_excite(self.block, &arguments, out))
    }
}

/// A kernel that moves channels between slots. Its arguments: the channels per block, the feature map and its channels,
/// the slots, the map's size, the output.
type RearrangeKernel = fn(usize, &[f32], usize, &[i64], MapSize, &mut [f32]) -> Result<(), KernelError>;

/// Runs `Unblock` or `Reblock`, which differ only in their kernels.
fn rearrange(operands: &Operands<'_>, block: usize, kernel: RearrangeKernel) -> ort::Result<()> {
    let (x, slots) = (operands.value(0)?, operands.value(1)?);
    let (MapShape { images, channels, size }, x) = feature_map(&x)?;
    let (_, slots) = slots.try_extract_tensor::<i64>()?;
    let shape = MapShape { images, channels: slots.len(), size };
    operands.write_output(shape, |out| kernel(block, x, channels, slots, size, out))
}

struct UnblockOperator(usize);

impl Compute for UnblockOperator {
    const NAME: &'static str = "Unblock";

    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self> {
        attribute(attributes, "block").map(Self)
    }

    fn run(&self, operands: &Operands<'_>) -> ort::Result<()> {
        rearrange(operands, self.0, kernels::unblock)
    }
}

struct ReblockOperator(usize);

impl Compute for ReblockOperator {
    const NAME: &'static str = "Reblock";

    fn new(attributes: &KernelContext<'_>) -> ort::Result<Self> {
        attribute(attributes, "block").map(Self)
    }

    fn run(&self, operands: &Operands<'_>) -> ort::Result<()> {
        rearrange(operands, self.0, kernels::reblock)
    }
}
