//! The finished pixels: each row of the image comes from the components' planes, enlarged and converted to RGB.

use super::colour::{self, Colour};
use super::frame::Frame;
use super::plane::Plane;
use super::upsample::Upsampler;

/// The image while its rows are being made.
pub(super) struct OutputImage {
    width: usize,
    height: usize,
    /// Pixel rows of a row of MCUs.
    mcu_height: usize,
    /// Pixel rows that are made from the same samples.
    group_height: usize,
    colour: Colour,
    upsamplers: Vec<Upsampler>,
    pixels: Vec<u8>,
    /// Number of finished rows.
    finished: usize,
}

impl OutputImage {
    /// Allocates a frame's pixels.
    pub(super) fn new(frame: &Frame, colour: Colour) -> Self {
        let channels = if colour == Colour::Gray { 1 } else { 3 };
        Self {
            width: frame.scaled_width,
            height: frame.scaled_height,
            mcu_height: frame.max_v * frame.scale.block_side(),
            group_height: frame.max_v,
            colour,
            upsamplers: frame.components.iter().map(|c| Upsampler::new(frame, c)).collect(),
            pixels: vec![0; frame.scaled_width * frame.scaled_height * channels],
            finished: 0,
        }
    }

    /// Makes the rows that can be made once `mcu_rows` rows of MCUs are in the planes: all above the last group, which
    /// needs samples from below it, or all rows if the image ends there.
    pub(super) fn make_rows(&mut self, planes: &[Plane], mcu_rows: usize) {
        let decoded = mcu_rows * self.mcu_height;
        let end = if decoded >= self.height { self.height } else { decoded - self.group_height };
        while self.finished < end {
            self.make_row(planes, self.finished);
            self.finished += 1;
        }
    }

    fn make_row(&mut self, planes: &[Plane], y: usize) {
        let width = self.width;
        match (&mut self.upsamplers[..], planes) {
            ([a], [plane_a]) => {
                self.pixels[y * width..][..width].copy_from_slice(&a.row(plane_a, y)[..width]);
            }
            ([a, b, c, rest @ ..], [plane_a, plane_b, plane_c, plane_rest @ ..]) => {
                let out = &mut self.pixels[y * width * 3..][..width * 3];
                let (a, b, c) = (a.row(plane_a, y), b.row(plane_b, y), c.row(plane_c, y));
                match self.colour {
                    Colour::YCbCr | Colour::Ycck => colour::ycbcr_to_rgb(a, b, c, out),
                    _ => colour::interleave(a, b, c, out),
                }
                let ([k], [plane_k]) = (rest, plane_rest) else { return };
                if self.colour == Colour::Cmyk {
                    out.iter_mut().for_each(|ink| *ink = 255 - *ink);
                }
                colour::inks_to_rgb(&k.row(plane_k, y)[..width], out);
            }
            _ => {}
        }
    }

    /// The pixels, once all rows are finished.
    pub(super) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}
