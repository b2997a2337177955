//! The blocked form: every map stays in blocks of channels from the stem to the head, and between two convolutions of a
//! Ghost module there is one operator.
//!
//! What costs time in an exported graph is not arithmetic but moving maps: into and out of the blocked layout, together
//! and apart again. Here a map carries a [`Layout`] that says which channel lies where, so joining, cutting and
//! reordering channels is a matter of arranging the next convolution's weights. And it decides how a Ghost module of `h`
//! intrinsic maps is padded (see [`Arrangement`]): never more than the fewest blocks that hold its output.

use super::plain::{gate, interpolation};
use super::{AttentionParts, ExciteParts, GhostParts, Lowering, NamedConv, Residual};
use crate::config::{Gate, GateAt, Pool, Upsample};
use crate::graph::{
    Conv2d, Excitation, Fused, GateFunction, GhostTail, Graph, GraphError, Layout, Linear, Strips, Tensor, Value,
};
use crate::layers::{Activation, Size};

/// Writes into a graph for blocks of a given number of channels.
pub(crate) struct Blocked<'g> {
    pub(crate) graph: &'g mut Graph,
    pub(crate) block: usize,
    /// What was done with each Ghost module.
    pub(crate) notes: Vec<ModuleNote>,
}

/// How the blocked form arranges one Ghost module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleNote {
    /// The module's checkpoint scope.
    pub key: String,
    /// Channels of its output.
    pub channels: usize,
    /// Slots of its output: whole blocks.
    pub slots: usize,
    /// Whether intrinsic and ghost maps share a block.
    pub shared: bool,
}

/// Feature maps in blocks; or an image, which is not.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    value: Value,
    channels: usize,
    /// None for the image.
    layout: Option<Layout>,
}

/// Rows, and where their elements lie.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    value: Value,
    layout: Option<Layout>,
}

/// How a Ghost module of `half` intrinsic maps lies in blocks of `b`.
///
/// The 1×1 convolution writes the intrinsic maps, padded to blocks. A depthwise convolution of all of those blocks makes
/// the ghost maps; whole blocks of intrinsic maps are copied before them. The rest, `half mod b` maps, would pad one
/// block of each kind. If it fills at most half a block, the two share one: the 1×1 convolution, which computes whole
/// blocks anyway, writes the rest twice, and the depthwise kernel is the identity on the first copy.
struct Arrangement {
    /// Of the 1×1 convolution's output; channels are those of the intrinsic maps.
    intrinsic: Layout,
    /// Slots copied to the output.
    copied: usize,
    /// For each slot of the intrinsic layout, whether the depthwise kernel is the identity there.
    identity: Vec<bool>,
    /// Of the module's output.
    output: Layout,
    shared: bool,
}

impl Arrangement {
    fn new(half: usize, output: usize, block: usize) -> Self {
        let (whole, rest) = (half / block * block, half % block);
        let shared = rest > 0 && rest <= block / 2;
        let mut slots: Vec<_> = (0..half).map(Some).collect();
        let mut identity = vec![false; half];
        if shared {
            identity[whole..].fill(true);
            slots.extend((whole..half).map(Some));
        }
        let intrinsic = Layout::new(slots, block);
        identity.resize(intrinsic.slots().len(), false);
        let copied = if shared { whole } else { intrinsic.slots().len() };
        let ghosts = intrinsic.slots().iter().zip(&identity);
        let ghosts = ghosts.map(|(slot, same)| slot.map(|c| if *same { c } else { half + c }));
        let slots = intrinsic.slots()[..copied].iter().copied().chain(ghosts);
        // What is cut off the end has a slot that nobody reads.
        let slots = slots.map(|slot| slot.filter(|c| *c < output)).collect();
        Self { copied, identity, output: Layout::new(slots, block), intrinsic, shared }
    }

    /// The depthwise convolution of the intrinsic slots.
    fn tail(&self, cheap: NamedConv) -> GhostTail {
        let NamedConv { conv, activation, .. } = cheap;
        let block = self.intrinsic.block();
        let mut weight = self.intrinsic.pack_rows(&conv.weight);
        let mut bias = self.intrinsic.pack_vector(&conv.bias.unwrap_or_default());
        for (slot, _) in self.identity.iter().enumerate().filter(|(_, same)| **same) {
            bias[slot] = 0.0;
            for tap in 0..9 {
                let at = (slot / block * 9 + tap) * block + slot % block;
                weight.data[at] = if tap == 4 { 1.0 } else { 0.0 };
            }
        }
        let relu = activation == Activation::Relu;
        GhostTail { block, weight, bias, copied: self.copied, relu, dilation: conv.dilation }
    }
}

impl Blocked<'_> {
    /// A convolution whose output is to lie as `layout` says.
    fn conv_into(
        &mut self,
        conv: NamedConv,
        x: &Map,
        layout: Layout,
        residual: Option<&Map>,
    ) -> Result<Map, GraphError> {
        let NamedConv { name, conv, activation } = conv;
        let [output, ..] = conv.dimensions(&name)?;
        let depthwise = conv.groups > 1;
        let weight = match &x.layout {
            Some(input) if !depthwise => layout.pack_dense(&conv.weight, input),
            _ => layout.pack_rows(&conv.weight),
        };
        let bias = conv.bias.map(|b| layout.pack_vector(&b));
        let groups = if depthwise { layout.slots().len() } else { 1 };
        let packed = Conv2d { weight, bias, groups, ..conv };
        let fused = match activation {
            Activation::None => Fused::None,
            Activation::Relu => Fused::Relu,
            Activation::Relu6 => Fused::Clip([0.0, 6.0]),
        };
        let residual = residual.map(|r| self.arranged(&format!("{name}.residual"), r, &layout)).transpose()?;
        let value = self.graph.blocked_conv(&name, &x.value, packed, residual.as_ref(), fused)?;
        Ok(Map { value, channels: output, layout: Some(layout) })
    }

    /// `x` with its channels where `layout` has them: as it is, or through a convolution that only moves.
    fn arranged(&mut self, name: &str, x: &Map, layout: &Layout) -> Result<Value, GraphError> {
        if x.layout.as_ref() == Some(layout) {
            return Ok(x.value.clone());
        }
        let n = x.channels;
        let mut data = vec![0.0; n * n];
        (0..n).for_each(|c| data[c * n + c] = 1.0);
        let weight = Tensor { shape: vec![n, n, 1, 1], data };
        let conv = Conv2d { weight, bias: None, stride: 1, padding: [0, 0], dilation: 1, groups: 1 };
        let conv = NamedConv { name: name.to_owned(), conv, activation: Activation::None };
        Ok(self.conv_into(conv, x, layout.clone(), None)?.value)
    }

    /// The gate for maps of `channels` that lie in `layout`, at `size` or smaller.
    fn attention(
        &mut self,
        parts: AttentionParts<'_, Map>,
        (layout, channels): (&Layout, usize),
        size: [usize; 2],
    ) -> Result<Value, GraphError> {
        let (name, config) = (&parts.name, parts.config);
        let pool = format!("{name}.pool");
        let pooled = match config.pool {
            Pool::Average => self.graph.blocked_average_pool(&pool, &parts.x.value, 2)?,
            Pool::Max => self.graph.blocked_max_pool(&pool, &parts.x.value, 2)?,
        };
        let pooled = Map { value: pooled, ..parts.x.clone() };
        let projected = self.conv_into(parts.project, &pooled, layout.clone(), None)?;
        let (horizontal, vertical) = (parts.horizontal.conv, parts.vertical.conv);
        let strips = Strips {
            block: self.block,
            horizontal: layout.pack_rows(&horizontal.weight),
            horizontal_bias: layout.pack_vector(&horizontal.bias.unwrap_or_default()),
            vertical: layout.pack_rows(&vertical.weight),
            vertical_bias: layout.pack_vector(&vertical.bias.unwrap_or_default()),
            function: match (config.gate_at, config.gate) {
                // Taking the nearest pixel commutes with any function of a pixel.
                (GateAt::After, _) if config.upsample != Upsample::Nearest => GateFunction::None,
                (_, Gate::Sigmoid) => GateFunction::Sigmoid,
                (_, Gate::HardSigmoid) => GateFunction::HardSigmoid,
                (_, Gate::Clip) => GateFunction::Clip,
            },
            dilation: horizontal.dilation,
        };
        let mut value = self.graph.strips(&format!("{name}.strips"), &projected.value, strips)?;
        let mut attention = Map { value: value.clone(), channels, layout: Some(layout.clone()) };
        if config.upsample != Upsample::Nearest {
            // No blocked operator interpolates: out of the layout and back.
            let plain = self.graph.unblock(&format!("{name}.unblock"), &value, layout, channels)?;
            let mut plain = self.graph.resize(&format!("{name}.up"), &plain, size, interpolation(config.upsample))?;
            if config.gate_at == GateAt::After {
                plain = gate(self.graph, &format!("{name}.gate"), &plain, config.gate)?;
            }
            value = self.graph.reblock(&format!("{name}.reblock"), &plain, layout)?;
            if config.gate_at == GateAt::After {
                attention.value = value.clone();
            }
        }
        if let Some(output) = &parts.output {
            if config.gate_at == GateAt::After && config.upsample == Upsample::Nearest {
                let plain = self.graph.unblock(&format!("{name}.unblock"), &value, layout, channels)?;
                let plain = self.graph.resize(&format!("{name}.up"), &plain, size, interpolation(config.upsample))?;
                self.graph.output(output, &plain)?;
            } else {
                self.output_map(output, &attention)?;
            }
        }
        Ok(value)
    }

    fn layout_of(&self, x: &Map) -> Layout {
        x.layout.clone().unwrap_or_else(|| Layout::in_order(x.channels, self.block))
    }
}

impl Lowering for Blocked<'_> {
    type Map = Map;
    type Row = Row;

    fn image(&mut self, channels: usize, size: Size) -> Result<Map, GraphError> {
        let value = self.graph.input("input", &[channels, size.height, size.width])?;
        if channels < self.block {
            return Ok(Map { value, channels, layout: None });
        }
        // Only images of few channels are read as they are.
        let layout = Layout::in_order(channels, self.block);
        let value = self.graph.reblock("input.blocked", &value, &layout)?;
        Ok(Map { value, channels, layout: Some(layout) })
    }

    fn conv(&mut self, conv: NamedConv, x: &Map, residual: Option<&Map>) -> Result<Map, GraphError> {
        let [output, ..] = conv.conv.dimensions(&conv.name)?;
        let layout = match &x.layout {
            // A depthwise convolution leaves every channel where it is.
            Some(layout) if conv.conv.groups > 1 => layout.clone(),
            Some(_) => Layout::in_order(output, self.block),
            // What the stem makes is added to a Ghost module's result: it may as well lie like one.
            None => Arrangement::new(output.div_ceil(2), output, self.block).output,
        };
        self.conv_into(conv, x, layout, residual)
    }

    fn ghost(&mut self, module: GhostParts<'_, Map>) -> Result<Map, GraphError> {
        let [half, ..] = module.primary.conv.dimensions(&module.name)?;
        let arrangement = Arrangement::new(half, module.output, self.block);
        let layout = &arrangement.output;
        self.notes.push(ModuleNote {
            key: module.name.clone(),
            channels: module.output,
            slots: layout.slots().len(),
            shared: arrangement.shared,
        });
        let intrinsic = self.conv_into(module.primary, module.x, arrangement.intrinsic.clone(), None)?;
        let (_, height, width) = intrinsic.value.chw()?;
        let attention = module.attention;
        let gate = attention.map(|a| self.attention(a, (layout, module.output), [height, width])).transpose()?;
        let residual = match module.residual {
            None => None,
            Some(Residual::Map(map)) => Some(self.arranged(&format!("{}.residual", module.name), map, layout)?),
            Some(Residual::Projected(x, conv)) => Some(self.conv_into(conv, &x, layout.clone(), None)?.value),
        };
        let tail = arrangement.tail(module.cheap);
        let value = self.graph.ghost(&module.name, &intrinsic.value, tail, gate.as_ref(), residual.as_ref())?;
        Ok(Map { value, channels: module.output, layout: Some(arrangement.output) })
    }

    fn attend(
        &mut self,
        name: &str,
        maps: &Map,
        parts: AttentionParts<'_, Map>,
        residual: Option<&Map>,
    ) -> Result<Map, GraphError> {
        let (_, height, width) = maps.value.chw()?;
        let layout = self.layout_of(maps);
        let gate = self.attention(parts, (&layout, maps.channels), [height, width])?;
        let residual = residual.map(|r| self.arranged(&format!("{name}.residual"), r, &layout)).transpose()?;
        let value = self.graph.gate(name, &maps.value, &gate, (residual.as_ref(), self.block))?;
        Ok(Map { value, ..maps.clone() })
    }

    fn squeeze_excite(&mut self, name: &str, x: &Map, parts: ExciteParts) -> Result<Map, GraphError> {
        let layout = self.layout_of(x);
        let [channels, squeezed] = parts.expand.shape[..] else { return Ok(x.clone()) };
        let transposed = (0..squeezed * channels).map(|i| parts.expand.data[i % channels * squeezed + i / channels]);
        let expand = Tensor { shape: vec![squeezed, channels], data: transposed.collect() };
        let excitation = Excitation {
            block: self.block,
            reduce: layout.pack_columns(&parts.reduce),
            reduce_bias: parts.reduce_bias,
            expand: layout.pack_columns(&expand),
            expand_bias: layout.pack_vector(&parts.expand_bias),
        };
        let value = self.graph.squeeze_excite(name, &x.value, excitation)?;
        Ok(Map { value, ..x.clone() })
    }

    fn mean(&mut self, name: &str, x: &Map) -> Result<Row, GraphError> {
        let mean = self.graph.blocked_global_average_pool(name, &x.value)?;
        let value = self.graph.flatten(&format!("{name}.flatten"), &mean)?;
        Ok(Row { value, layout: x.layout.clone() })
    }

    fn linear(&mut self, name: &str, x: &Row, mut linear: Linear, relu: bool) -> Result<Row, GraphError> {
        if let Some(layout) = &x.layout {
            linear.weight = layout.pack_columns(&linear.weight);
        }
        let y = self.graph.linear(name, &x.value, linear)?;
        let value = if relu { self.graph.relu(&format!("{name}.relu"), &y)? } else { y };
        Ok(Row { value, layout: None })
    }

    fn output_map(&mut self, name: &str, x: &Map) -> Result<(), GraphError> {
        let value = match &x.layout {
            Some(layout) => self.graph.unblock(&format!("{name}.unblock"), &x.value, layout, x.channels)?,
            None => x.value.clone(),
        };
        self.graph.output(name, &value)
    }

    fn output_row(&mut self, name: &str, x: &Row) -> Result<(), GraphError> {
        self.graph.output(name, &x.value)
    }
}
