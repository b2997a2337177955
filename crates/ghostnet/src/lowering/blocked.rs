//! The blocked form: every map stays in blocks of channels from the stem to the head, and a Ghost module needs only one
//! operator between its 1×1 convolution and the next convolution.
//!
//! An exported graph spends its time on moving maps, not on arithmetic: maps go into and out of the blocked layout, and
//! are joined and split. Here each map has a [`Layout`] that records the position of each channel. Channels are then
//! joined, cut and reordered by arranging the weights of the next convolution. The layout also decides the padding of a
//! Ghost module (see [`GhostPacking`]): its output takes the fewest blocks that hold it.

use super::plain::{gate_function, interpolation_of};
use super::{AttentionParts, GhostParts, Lowering, NamedConv, Residual, SqueezeExciteParts};
use crate::config::{Gate, GateAt, Pool, Upsample};
use crate::graph::{
    Conv2d, FusedActivation, GateFunction, Graph, GraphError, Layout, Linear, PackedGhostTail, PackedSqueezeExcite,
    PackedStrips, Tensor, Value,
};
use crate::layers::{Activation, Size};

/// Writes the blocked form into a graph.
pub(crate) struct BlockedLowering<'g> {
    pub(crate) graph: &'g mut Graph,
    /// Channels per block.
    pub(crate) block: usize,
    /// The packing of each Ghost module written so far.
    pub(crate) packings: Vec<ModulePacking>,
}

/// The packing of one Ghost module in the blocked form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModulePacking {
    /// The module's name: its checkpoint scope, then `.ghost`.
    pub key: String,
    /// Number of output channels.
    pub channels: usize,
    /// Number of output slots: the channels padded to whole blocks.
    pub slots: usize,
    /// Whether intrinsic and ghost maps share a block.
    pub shared_block: bool,
}

/// Feature maps in blocks, or an image of few channels, which is not blocked.
#[derive(Clone, Debug)]
pub(crate) struct BlockedMap {
    value: Value,
    channels: usize,
    /// `None` for an image that is not blocked.
    layout: Option<Layout>,
}

/// Feature vectors and the positions of their elements.
#[derive(Clone, Debug)]
pub(crate) struct BlockedRow {
    value: Value,
    /// `None` if the elements are in order.
    layout: Option<Layout>,
}

/// The packing of a Ghost module with `half` intrinsic maps into blocks of `b` channels.
///
/// The 1×1 convolution writes the intrinsic maps, padded to blocks. A depthwise convolution of all these blocks makes
/// the ghost maps. Whole blocks of intrinsic maps are copied in front of them. The remaining `half mod b` maps would
/// pad one block of each kind. If they fill at most half a block, both kinds share one block: the 1×1 convolution,
/// which computes whole blocks anyway, writes the remaining maps twice, and the depthwise kernel is the identity on the
/// first copy.
struct GhostPacking {
    /// Layout of the 1×1 convolution's output. Its channels are the intrinsic maps.
    intrinsic: Layout,
    /// Number of slots that are copied to the output.
    copied: usize,
    /// For each slot of the intrinsic layout, whether the depthwise kernel is the identity there.
    identity: Vec<bool>,
    /// Layout of the module's output.
    output: Layout,
    shared_block: bool,
}

impl GhostPacking {
    fn new(half: usize, output: usize, block: usize) -> Self {
        let (in_whole_blocks, remaining) = (half / block * block, half % block);
        let shared_block = remaining > 0 && remaining <= block / 2;
        let mut slots: Vec<_> = (0..half).map(Some).collect();
        let mut identity = vec![false; half];
        if shared_block {
            identity[in_whole_blocks..].fill(true);
            slots.extend((in_whole_blocks..half).map(Some));
        }
        let intrinsic = Layout::new(slots, block);
        identity.resize(intrinsic.slots().len(), false);
        let copied = if shared_block { in_whole_blocks } else { intrinsic.slots().len() };
        let convolved = intrinsic.slots().iter().zip(&identity);
        let convolved = convolved.map(|(slot, is_copy)| slot.map(|c| if *is_copy { c } else { half + c }));
        let slots = intrinsic.slots()[..copied].iter().copied().chain(convolved);
        // A channel that is cut off keeps its slot, but nothing reads it.
        let slots = slots.map(|slot| slot.filter(|c| *c < output)).collect();
        Self { copied, identity, output: Layout::new(slots, block), intrinsic, shared_block }
    }

    /// The depthwise convolution over the intrinsic slots.
    fn tail(&self, cheap: NamedConv) -> PackedGhostTail {
        let NamedConv { conv, activation, .. } = cheap;
        let block = self.intrinsic.block();
        let mut weight = self.intrinsic.pack_rows(&conv.weight);
        let mut bias = self.intrinsic.pack_vector(&conv.bias.unwrap_or_default());
        for (slot, _) in self.identity.iter().enumerate().filter(|(_, is_copy)| **is_copy) {
            bias[slot] = 0.0;
            for tap in 0..9 {
                let index = (slot / block * 9 + tap) * block + slot % block;
                weight.data[index] = if tap == 4 { 1.0 } else { 0.0 };
            }
        }
        let relu = activation == Activation::Relu;
        PackedGhostTail { block, weight, bias, copied: self.copied, relu, dilation: conv.dilation }
    }
}

impl BlockedLowering<'_> {
    /// Adds a convolution whose output has the given layout.
    fn conv_into(
        &mut self,
        conv: NamedConv,
        x: &BlockedMap,
        layout: Layout,
        residual: Option<&BlockedMap>,
    ) -> Result<BlockedMap, GraphError> {
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
            Activation::None => FusedActivation::None,
            Activation::Relu => FusedActivation::Relu,
            Activation::Relu6 => FusedActivation::Clip([0.0, 6.0]),
        };
        let residual = residual.map(|r| self.in_layout(&format!("{name}.residual"), r, &layout)).transpose()?;
        let value = self.graph.blocked_conv(&name, &x.value, packed, residual.as_ref(), fused)?;
        Ok(BlockedMap { value, channels: output, layout: Some(layout) })
    }

    /// The maps `x` in the given layout: unchanged, or through a 1×1 convolution that only moves channels.
    fn in_layout(&mut self, name: &str, x: &BlockedMap, layout: &Layout) -> Result<Value, GraphError> {
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

    /// The gate of a DFC attention for features of `channels` channels in `layout`. Its size is `size` or smaller.
    fn attention(
        &mut self,
        parts: AttentionParts<'_, BlockedMap>,
        layout: &Layout,
        channels: usize,
        size: [usize; 2],
    ) -> Result<Value, GraphError> {
        let (name, config) = (&parts.name, parts.config);
        let pool = format!("{name}.pool");
        let pooled = match config.pool {
            Pool::Average => self.graph.blocked_average_pool(&pool, &parts.x.value, 2)?,
            Pool::Max => self.graph.blocked_max_pool(&pool, &parts.x.value, 2)?,
        };
        let pooled = BlockedMap { value: pooled, ..parts.x.clone() };
        let projected = self.conv_into(parts.project, &pooled, layout.clone(), None)?;
        let (horizontal, vertical) = (parts.horizontal.conv, parts.vertical.conv);
        let strips = PackedStrips {
            block: self.block,
            horizontal: layout.pack_rows(&horizontal.weight),
            horizontal_bias: layout.pack_vector(&horizontal.bias.unwrap_or_default()),
            vertical: layout.pack_rows(&vertical.weight),
            vertical_bias: layout.pack_vector(&vertical.bias.unwrap_or_default()),
            function: match (config.gate_at, config.gate) {
                // Nearest upsampling commutes with any function of one pixel.
                (GateAt::After, _) if config.upsample != Upsample::Nearest => GateFunction::None,
                (_, Gate::Sigmoid) => GateFunction::Sigmoid,
                (_, Gate::HardSigmoid) => GateFunction::HardSigmoid,
                (_, Gate::Clip) => GateFunction::Clip,
            },
            dilation: horizontal.dilation,
        };
        let mut value = self.graph.strips(&format!("{name}.strips"), &projected.value, strips)?;
        let mut attention = BlockedMap { value: value.clone(), channels, layout: Some(layout.clone()) };
        if config.upsample != Upsample::Nearest {
            // No blocked operator interpolates: the gate leaves the layout and returns to it.
            let plain = self.graph.unblock(&format!("{name}.unblock"), &value, layout, channels)?;
            let mut plain =
                self.graph.resize(&format!("{name}.up"), &plain, size, interpolation_of(config.upsample))?;
            if config.gate_at == GateAt::After {
                plain = gate_function(self.graph, &format!("{name}.gate"), &plain, config.gate)?;
            }
            value = self.graph.reblock(&format!("{name}.reblock"), &plain, layout)?;
            if config.gate_at == GateAt::After {
                attention.value = value.clone();
            }
        }
        if let Some(output) = &parts.output {
            if config.gate_at == GateAt::After && config.upsample == Upsample::Nearest {
                let plain = self.graph.unblock(&format!("{name}.unblock"), &value, layout, channels)?;
                let plain =
                    self.graph.resize(&format!("{name}.up"), &plain, size, interpolation_of(config.upsample))?;
                self.graph.output(output, &plain)?;
            } else {
                self.output_map(output, &attention)?;
            }
        }
        Ok(value)
    }

    /// The layout of maps; channels in order for an image that is not blocked.
    fn layout_of(&self, x: &BlockedMap) -> Layout {
        x.layout.clone().unwrap_or_else(|| Layout::in_order(x.channels, self.block))
    }
}

impl Lowering for BlockedLowering<'_> {
    type Map = BlockedMap;
    type Row = BlockedRow;

    fn image(&mut self, channels: usize, size: Size) -> Result<BlockedMap, GraphError> {
        let value = self.graph.input("input", &[channels, size.height, size.width])?;
        if channels < self.block {
            return Ok(BlockedMap { value, channels, layout: None });
        }
        // The blocked convolution reads an image without blocks only if it has fewer channels than a block.
        let layout = Layout::in_order(channels, self.block);
        let value = self.graph.reblock("input.blocked", &value, &layout)?;
        Ok(BlockedMap { value, channels, layout: Some(layout) })
    }

    fn conv(
        &mut self,
        conv: NamedConv,
        x: &BlockedMap,
        residual: Option<&BlockedMap>,
    ) -> Result<BlockedMap, GraphError> {
        let [output, ..] = conv.conv.dimensions(&conv.name)?;
        let layout = match &x.layout {
            // A depthwise convolution does not move channels.
            Some(layout) if conv.conv.groups > 1 => layout.clone(),
            Some(_) => Layout::in_order(output, self.block),
            // The stem's output is added to a Ghost module's result, so it gets the same layout.
            None => GhostPacking::new(output.div_ceil(2), output, self.block).output,
        };
        self.conv_into(conv, x, layout, residual)
    }

    fn ghost(&mut self, module: GhostParts<'_, BlockedMap>) -> Result<BlockedMap, GraphError> {
        let [half, ..] = module.primary.conv.dimensions(&module.name)?;
        let packing = GhostPacking::new(half, module.output, self.block);
        let layout = &packing.output;
        self.packings.push(ModulePacking {
            key: module.name.clone(),
            channels: module.output,
            slots: layout.slots().len(),
            shared_block: packing.shared_block,
        });
        let intrinsic = self.conv_into(module.primary, module.x, packing.intrinsic.clone(), None)?;
        let (_, height, width) = intrinsic.value.chw()?;
        let attention = module.attention;
        let gate = attention.map(|a| self.attention(a, layout, module.output, [height, width])).transpose()?;
        let residual = match module.residual {
            None => None,
            Some(Residual::Map(map)) => Some(self.in_layout(&format!("{}.residual", module.name), map, layout)?),
            Some(Residual::Projected(x, conv)) => Some(self.conv_into(conv, &x, layout.clone(), None)?.value),
        };
        let tail = packing.tail(module.cheap);
        let value = self.graph.ghost(&module.name, &intrinsic.value, tail, gate.as_ref(), residual.as_ref())?;
        Ok(BlockedMap { value, channels: module.output, layout: Some(packing.output) })
    }

    fn attend(
        &mut self,
        name: &str,
        maps: &BlockedMap,
        parts: AttentionParts<'_, BlockedMap>,
        residual: Option<&BlockedMap>,
    ) -> Result<BlockedMap, GraphError> {
        let (_, height, width) = maps.value.chw()?;
        let layout = self.layout_of(maps);
        let gate = self.attention(parts, &layout, maps.channels, [height, width])?;
        let residual = residual.map(|r| self.in_layout(&format!("{name}.residual"), r, &layout)).transpose()?;
        let value = self.graph.gate(name, &maps.value, &gate, residual.as_ref(), self.block)?;
        Ok(BlockedMap { value, ..maps.clone() })
    }

    fn squeeze_excite(
        &mut self,
        name: &str,
        x: &BlockedMap,
        parts: SqueezeExciteParts,
    ) -> Result<BlockedMap, GraphError> {
        let layout = self.layout_of(x);
        let [channels, squeezed] = parts.expand.shape[..] else { return Ok(x.clone()) };
        let transposed = (0..squeezed * channels).map(|i| parts.expand.data[i % channels * squeezed + i / channels]);
        let expand = Tensor { shape: vec![squeezed, channels], data: transposed.collect() };
        let packed = PackedSqueezeExcite {
            block: self.block,
            reduce: layout.pack_columns(&parts.reduce),
            reduce_bias: parts.reduce_bias,
            expand: layout.pack_columns(&expand),
            expand_bias: layout.pack_vector(&parts.expand_bias),
        };
        let value = self.graph.squeeze_excite(name, &x.value, packed)?;
        Ok(BlockedMap { value, ..x.clone() })
    }

    fn mean(&mut self, name: &str, x: &BlockedMap) -> Result<BlockedRow, GraphError> {
        let mean = self.graph.blocked_global_average_pool(name, &x.value)?;
        let value = self.graph.flatten(&format!("{name}.flatten"), &mean)?;
        Ok(BlockedRow { value, layout: x.layout.clone() })
    }

    fn linear(&mut self, name: &str, x: &BlockedRow, mut linear: Linear, relu: bool) -> Result<BlockedRow, GraphError> {
        if let Some(layout) = &x.layout {
            linear.weight = layout.pack_columns(&linear.weight);
        }
        let y = self.graph.linear(name, &x.value, linear)?;
        let value = if relu { self.graph.relu(&format!("{name}.relu"), &y)? } else { y };
        Ok(BlockedRow { value, layout: None })
    }

    fn output_map(&mut self, name: &str, x: &BlockedMap) -> Result<(), GraphError> {
        let value = match &x.layout {
            Some(layout) => self.graph.unblock(&format!("{name}.unblock"), &x.value, layout, x.channels)?,
            None => x.value.clone(),
        };
        self.graph.output(name, &value)
    }

    fn output_row(&mut self, name: &str, x: &BlockedRow) -> Result<(), GraphError> {
        self.graph.output(name, &x.value)
    }
}
