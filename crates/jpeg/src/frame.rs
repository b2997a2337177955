//! The frame: size, components and their sampling, and what follows from them (A.1, A.2).

use super::error::{JpegError, Result};
use super::scale::Scale;

/// Coefficients along each side of a block, and samples where the picture is decoded at its full size.
pub(super) const BLOCK: usize = 8;

/// One component of the picture: brightness, a colour difference, an ink.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Sampling factors, relative to those of the other components.
    pub(super) h: usize,
    pub(super) v: usize,
    /// Which quantisation table it uses.
    pub(super) table: usize,
    /// Samples along each side of its blocks, as they are decoded: 8, 4, 2 or 1.
    pub(super) size: usize,
    /// How many samples are decoded of it, without padding.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Blocks that hold them: a scan of this component alone has no more.
    pub(super) blocks_wide: usize,
    pub(super) blocks_high: usize,
    /// Blocks when padded to whole MCUs.
    pub(super) padded_wide: usize,
    pub(super) padded_high: usize,
}

/// What the SOF segment says.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    /// At which size it is decoded, and what its width and height become.
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
    /// Reads a SOF segment (B.2.2).
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
        for &[id, factors, table] in specs.as_chunks::<3>().0 {
            let (h, v) = (usize::from(factors >> 4), usize::from(factors & 15));
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) {
                return Err(JpegError::Corrupt("a sampling factor is not between 1 and 4"));
            }
            if table > 3 {
                return Err(JpegError::Corrupt("a component uses a quantisation table above 3"));
            }
            if components.iter().any(|c: &Component| c.id == id) {
                return Err(JpegError::Corrupt("two components have the same identifier"));
            }
            // With nothing to be relative to, the factors of a lone component change nothing.
            let (h, v) = if count == 1 { (1, 1) } else { (h, v) };
            let (width, height, blocks_wide, blocks_high, padded_wide, padded_high) = (0, 0, 0, 0, 0, 0);
            let (table, size) = (usize::from(table), BLOCK);
            #[rustfmt::skip]
            components.push(Component {
                id, h, v, table, size, width, height, blocks_wide, blocks_high, padded_wide, padded_high,
            });
        }

        let max_h = components.iter().map(|c| c.h).max().unwrap_or(1);
        let max_v = components.iter().map(|c| c.v).max().unwrap_or(1);
        let mcus_wide = width.div_ceil(max_h * BLOCK);
        let mcus_high = height.div_ceil(max_v * BLOCK);
        for c in &mut components {
            if max_h % c.h != 0 || max_v % c.v != 0 {
                return Err(JpegError::Unsupported("JPEG with sampling factors that do not divide the largest"));
            }
            c.blocks_wide = (width * c.h).div_ceil(max_h).div_ceil(BLOCK);
            c.blocks_high = (height * c.v).div_ceil(max_v).div_ceil(BLOCK);
            c.padded_wide = mcus_wide * c.h;
            c.padded_high = mcus_high * c.v;
        }
        let (scale, scaled_width, scaled_height) = (Scale::Full, width, height);
        #[rustfmt::skip]
        let mut frame = Self {
            width, height, progressive, scale, scaled_width, scaled_height, max_h, max_v, mcus_wide, mcus_high, components,
        };
        frame.set_scale(scale);
        Ok(frame)
    }

    /// Chooses the size at which the picture is decoded.
    pub(super) fn set_scale(&mut self, scale: Scale) {
        self.scale = scale;
        self.scaled_width = scale.side(self.width);
        self.scaled_height = scale.side(self.height);
        let size = scale.block();
        for c in &mut self.components {
            // A component with fewer samples than others has its blocks decoded larger, as far as that replaces enlarging
            // it later: at half the size, a block of colour over four of brightness keeps all of its samples.
            c.size = size;
            while c.size < BLOCK
                && (self.max_h * size).is_multiple_of(c.h * c.size * 2)
                && (self.max_v * size).is_multiple_of(c.v * c.size * 2)
            {
                c.size *= 2;
            }
            c.width = (self.width * c.h * c.size).div_ceil(self.max_h * BLOCK);
            c.height = (self.height * c.v * c.size).div_ceil(self.max_v * BLOCK);
        }
    }

    /// Block rows of a component that are kept in memory at a time where its samples are used as they are decoded: two
    /// rows of MCUs, since enlarging a row of samples takes the rows above and below it.
    pub(super) fn window_blocks(&self, component: &Component) -> usize {
        (2 * component.v).min(component.padded_high)
    }
}
