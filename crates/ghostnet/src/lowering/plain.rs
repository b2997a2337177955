//! The plain form: standard ONNX, with the operators that the papers draw. Batch norms are folded; there is no other
//! optimisation.

use super::{AttentionParts, GhostParts, Lowering, NamedConv, Residual, SqueezeExciteParts};
use crate::config::{Gate, GateAt, Pool, Upsample};
use crate::graph::{Conv2d, Graph, GraphError, Interpolation, Linear, Tensor, Value};
use crate::layers::{Activation, Size};

/// Writes the plain form into a graph.
pub(crate) struct PlainLowering<'g>(pub(crate) &'g mut Graph);

impl PlainLowering<'_> {
    /// The gate of a DFC attention, upsampled to `size`.
    fn attention(&mut self, parts: AttentionParts<'_, Value>, size: [usize; 2]) -> Result<Value, GraphError> {
        let (name, config) = (&parts.name, parts.config);
        let pool = format!("{name}.pool");
        let pooled = match config.pool {
            Pool::Average => self.0.average_pool(&pool, parts.x, 2)?,
            Pool::Max => self.0.max_pool(&pool, parts.x, 2)?,
        };
        let projected = self.conv(parts.project, &pooled, None)?;
        let rows = self.conv(parts.horizontal, &projected, None)?;
        let cross = self.conv(parts.vertical, &rows, None)?;
        let (gate_name, resize_name) = (format!("{name}.gate"), format!("{name}.up"));
        let interpolation = interpolation_of(config.upsample);
        // Before the upsampling, the gate function costs a quarter.
        let (attention, gate) = match config.gate_at {
            GateAt::Before => {
                let small = gate_function(self.0, &gate_name, &cross, config.gate)?;
                let upsampled = self.0.resize(&resize_name, &small, size, interpolation)?;
                (small, upsampled)
            }
            GateAt::After => {
                let upsampled = self.0.resize(&resize_name, &cross, size, interpolation)?;
                let gate = gate_function(self.0, &gate_name, &upsampled, config.gate)?;
                (gate.clone(), gate)
            }
        };
        if let Some(output) = &parts.output {
            self.0.output(output, &attention)?;
        }
        Ok(gate)
    }
}

/// The graph's interpolation for a configured upsampling.
pub(super) fn interpolation_of(upsample: Upsample) -> Interpolation {
    match upsample {
        Upsample::Nearest => Interpolation::Nearest,
        Upsample::Bilinear => Interpolation::Bilinear,
        Upsample::Bicubic => Interpolation::Bicubic,
    }
}

/// Adds the gate function as a node.
pub(super) fn gate_function(graph: &mut Graph, name: &str, x: &Value, gate: Gate) -> Result<Value, GraphError> {
    match gate {
        Gate::Sigmoid => graph.sigmoid(name, x),
        Gate::HardSigmoid => graph.hard_sigmoid(name, x),
        Gate::Clip => graph.clip(name, x, [0.0, 1.0]),
    }
}

impl Lowering for PlainLowering<'_> {
    type Map = Value;
    type Row = Value;

    fn image(&mut self, channels: usize, size: Size) -> Result<Value, GraphError> {
        self.0.input("input", &[channels, size.height, size.width])
    }

    fn conv(&mut self, conv: NamedConv, x: &Value, residual: Option<&Value>) -> Result<Value, GraphError> {
        let NamedConv { name, conv, activation } = conv;
        let mut y = self.0.conv2d(&name, x, conv)?;
        if let Some(residual) = residual {
            y = self.0.add(&format!("{name}.add"), &y, residual)?;
        }
        match activation {
            Activation::None => Ok(y),
            Activation::Relu => self.0.relu(&format!("{name}.relu"), &y),
            Activation::Relu6 => self.0.clip(&format!("{name}.relu6"), &y, [0.0, 6.0]),
        }
    }

    fn ghost(&mut self, module: GhostParts<'_, Value>) -> Result<Value, GraphError> {
        let name = &module.name;
        let intrinsic = self.conv(module.primary, module.x, None)?;
        let ghost = self.conv(module.cheap, &intrinsic, None)?;
        let joined = self.0.concat_channels(&format!("{name}.concat"), &intrinsic, &ghost)?;
        let mut maps = self.0.take_channels(&format!("{name}.cut"), &joined, module.output)?;
        if let Some(attention) = module.attention {
            maps = self.attend(&format!("{name}.attend"), &maps, attention, None)?;
        }
        let residual = match module.residual {
            None => return Ok(maps),
            Some(Residual::Map(map)) => map.clone(),
            Some(Residual::Projected(x, conv)) => self.conv(conv, &x, None)?,
        };
        self.0.add(&format!("{name}.add"), &maps, &residual)
    }

    fn attend(
        &mut self,
        name: &str,
        maps: &Value,
        parts: AttentionParts<'_, Value>,
        residual: Option<&Value>,
    ) -> Result<Value, GraphError> {
        let (_, height, width) = maps.chw()?;
        let gate = self.attention(parts, [height, width])?;
        let y = self.0.mul(name, maps, &gate)?;
        residual.map_or(Ok(y.clone()), |residual| self.0.add(&format!("{name}.add"), &y, residual))
    }

    fn squeeze_excite(&mut self, name: &str, x: &Value, parts: SqueezeExciteParts) -> Result<Value, GraphError> {
        let pointwise = |weight: Tensor, bias| {
            let shape = [&weight.shape[..], &[1, 1]].concat();
            let weight = Tensor { shape, data: weight.data };
            Conv2d { weight, bias: Some(bias), stride: 1, padding: [0, 0], dilation: 1, groups: 1 }
        };
        let mean = self.0.global_average_pool(&format!("{name}.mean"), x)?;
        let reduce = pointwise(parts.reduce, parts.reduce_bias);
        let reduced = self.0.conv2d(&format!("{name}.conv_reduce"), &mean, reduce)?;
        let active = self.0.relu(&format!("{name}.relu"), &reduced)?;
        let expand = pointwise(parts.expand, parts.expand_bias);
        let expanded = self.0.conv2d(&format!("{name}.conv_expand"), &active, expand)?;
        let gate = self.0.hard_sigmoid(&format!("{name}.gate"), &expanded)?;
        self.0.mul(&format!("{name}.excite"), x, &gate)
    }

    fn mean(&mut self, name: &str, x: &Value) -> Result<Value, GraphError> {
        let mean = self.0.global_average_pool(name, x)?;
        self.0.flatten(&format!("{name}.flatten"), &mean)
    }

    fn linear(&mut self, name: &str, x: &Value, linear: Linear, relu: bool) -> Result<Value, GraphError> {
        let y = self.0.linear(name, x, linear)?;
        if relu { self.0.relu(&format!("{name}.relu"), &y) } else { Ok(y) }
    }

    fn output_map(&mut self, name: &str, x: &Value) -> Result<(), GraphError> {
        self.0.output(name, x)
    }

    fn output_row(&mut self, name: &str, x: &Value) -> Result<(), GraphError> {
        self.0.output(name, x)
    }
}
