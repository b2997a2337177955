//! The frame: size, components and their sampling, and the sizes that follow from them (A.1, A.2).

use super::block::BLOCK_SIDE;
use super::error::{JpegError, Result};
use super::scale::Scale;

/// One component of the image: brightness, a colour difference, an ink.
#[derive(Clone, Debug, Default)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors, relative to those of the other components.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Number of its quantisation table.
    pub(super) table: usize,
    /// Samples along each side of its blocks, as they are decoded: 8, 4, 2 or 1.
    pub(super) block_side: usize,
    /// Decoded samples in a row and rows of them, without padding.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Blocks that contain these samples: a scan of this component alone has no more.
    pub(super) blocks_wide: usize,
    pub(super) blocks_high: usize,
    /// Blocks when padded to whole MCUs.
    pub(super) padded_wide: usize,
    pub(super) padded_high: usize,
}

/// The content of the SOF segment.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Size of the image in the file, in pixels.
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    /// The scale at which it is decoded, and the size of the result in pixels.
    pub(super) scale: Scale,
    pub(super) scaled_width: usize,
    pub(super) scaled_height: usize,
    /// The largest sampling factors.
    pub(super) max_h: usize,
    pub(super) max_v: usize,
    /// MCUs in a row and rows of them, where a scan has more than one component.
    pub(super) mcus_wide: usize,
    pub(super) mcus_high: usize,
    pub(super) components: Vec<Component>,
}

impl Frame {
    /// Parses a SOF segment (B.2.2).
    pub(super) fn parse(segment: &[u8], progressive: bool) -> Result<Self> {
        let Some((&[precision, h0, h1, w0, w1, count], specs)) = segment.split_first_chunk::<6>() else {
            return Err(JpegError::Corrupt("its frame header is too short"));
        };
        if precision != 8 {
            return Err(JpegError::Unsupported("JPEG with other than 8 bits a sample"));
        }
        let (width, height) = (usize::from(u16::from_be_bytes([w0, w1])), usize::from(u16::from_be_bytes([h0, h1])));
        if width == 0 || height == 0 {
            return Err(JpegError::Corrupt("its width or height is zero"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(JpegError::Unsupported("JPEG with other than one, three or four components"));
        }
        if specs.len() != usize::from(count) * 3 {
            return Err(JpegError::Corrupt("its frame header has the wrong length"));
        }

        let mut components = Vec::with_capacity(4);
        for spec in specs.as_chunks::<3>().0 {
            let mut component = Component::parse(spec)?;
            if components.iter().any(|c: &Component| c.id == component.id) {
                return Err(JpegError::Corrupt("two components have the same identifier"));
            }
            if count == 1 {
                // The factors of a lone component are relative to nothing and change nothing.
                (component.h, component.v) = (1, 1);
            }
            components.push(component);
        }

        let max_h = components.iter().map(|c| c.h).max().unwrap_or(1);
        let max_v = components.iter().map(|c| c.v).max().unwrap_or(1);
        let mcus_wide = width.div_ceil(max_h * BLOCK_SIDE);
        let mcus_high = height.div_ceil(max_v * BLOCK_SIDE);
        for c in &mut components {
            if max_h % c.h != 0 || max_v % c.v != 0 {
                return Err(JpegError::Unsupported("JPEG with sampling factors that do not divide the largest"));
            }
            c.blocks_wide = (width * c.h).div_ceil(max_h).div_ceil(BLOCK_SIDE);
            c.blocks_high = (height * c.v).div_ceil(max_v).div_ceil(BLOCK_SIDE);
            c.padded_wide = mcus_wide * c.h;
            c.padded_high = mcus_high * c.v;
        }
        let mut frame = Self {
            width,
            height,
            progressive,
            scale: Scale::Full,
            scaled_width: width,
            scaled_height: height,
            max_h,
            max_v,
            mcus_wide,
            mcus_high,
            components,
        };
        frame.set_scale(Scale::Full);
        Ok(frame)
    }

    /// Sets the scale at which the image is decoded.
    pub(super) fn set_scale(&mut self, scale: Scale) {
        self.scale = scale;
        self.scaled_width = scale.scaled(self.width);
        self.scaled_height = scale.scaled(self.height);
        let side = scale.block_side();
        for c in &mut self.components {
            // A component with fewer samples than others has its blocks decoded larger, as far as that replaces
            // enlarging it later: at half the size, a block of colour over four of brightness keeps all of its samples.
            c.block_side = side;
            while c.block_side < BLOCK_SIDE
                && (self.max_h * side).is_multiple_of(c.h * c.block_side * 2)
                && (self.max_v * side).is_multiple_of(c.v * c.block_side * 2)
            {
                c.block_side *= 2;
            }
            c.width = (self.width * c.h * c.block_side).div_ceil(self.max_h * BLOCK_SIDE);
            c.height = (self.height * c.v * c.block_side).div_ceil(self.max_v * BLOCK_SIDE);
        }
    }

    /// Number of block rows of a component that are in memory at a time where its samples are used as they are decoded:
    /// two rows of MCUs, because enlarging a row of samples needs the rows above and below it.
    pub(super) fn window_block_rows(&self, component: &Component) -> usize {
        (2 * component.v).min(component.padded_high)
    }
}

impl Component {
    /// Parses one component of a SOF segment. The sizes are still zero.
    fn parse(&[id, factors, table]: &[u8; 3]) -> Result<Self> {
        let (h, v) = (usize::from(factors >> 4), usize::from(factors & 15));
        if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
            return Err(JpegError::Corrupt("a sampling factor is not between 1 and 4"));
        }
        if table > 3 {
            return Err(JpegError::Corrupt("a component uses a quantisation table above 3"));
        }
        Ok(Self { id, h, v, table: usize::from(table), block_side: BLOCK_SIDE, ..Self::default() })
    }
}
