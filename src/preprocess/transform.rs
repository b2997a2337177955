//! Resize, crop, orient, normalise: the evaluation transform of the released weights.
//!
//! It reproduces, to the rounding of 8-bit intermediate rows, `Resize(shorter side, bicubic)` and `CenterCrop` of
//! torchvision over Pillow, with Pillow's integer rules for sizes and offsets. Two liberties that do not change a pixel's
//! value beyond that rounding: only the source rows and columns under the crop are resized, and the EXIF orientation is
//! applied to the small crop instead of the whole photograph. A third one does: large JPEG files are decoded at a fraction
//! of their size ([`Transform::scale`]), unless [`Transform::exact`] forbids it.
//!
//! [`Transform::view`] gives the same for other input sizes, and for whole photographs instead of their middle;
//! [`Transform::geometry`] tells where everything went.

use std::sync::Arc;

use bytes::Bytes;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, Rgb, RgbImage};

use super::decode::displayed;
use super::geometry::{Geometry, Placement, Steps};
use super::{Fit, Pixels, Scale};
use crate::batch::Row;
use ghostserve_manifest::InputSpec;

/// How many pixels of a reduced picture there must be for one of the resized one, along each axis.
///
/// Each pixel of a reduced picture is an average, which the cubic filter averages again. With one for one, pixels of sharp
/// photographs differ by 2 to 3 of 255 on average and by up to 70 from those of the whole picture; with two by 0.8 and up to
/// 25; with three by 0.4 and up to 12. A photograph of 12 megapixels has 2.9 for an input of 256 when a quarter of its size
/// is decoded.
const GAP: f64 = 2.5;

/// A model's pre-processing, with its tables made.
#[derive(Clone, Debug)]
pub struct Transform {
    spec: InputSpec,
    steps: Steps,
    /// `(v / 255 − mean) / std` for every channel and 8-bit value.
    normalised: [[f32; 256]; 3],
    exact: bool,
}

impl Transform {
    /// Prepares the transform that a manifest describes.
    #[must_use]
    pub fn new(spec: InputSpec) -> Self {
        let table = |c: usize| std::array::from_fn(|v| (v as f32 / 255.0 - spec.mean[c]) / spec.std[c]);
        Self { spec, steps: Steps::of_model(&spec), normalised: std::array::from_fn(table), exact: false }
    }

    /// The same for another height and width of the input, and another way to fit the photograph into it. The model's own
    /// size, cropped, is the model's own transform; otherwise the reduction to a small source, where the model has one, is
    /// left out: it would take the detail that a larger input is for.
    #[must_use]
    pub fn view(&self, size: [usize; 2], fit: Fit) -> Self {
        if size == self.spec.crop && fit == Fit::Crop {
            return self.clone();
        }
        Self { steps: Steps::of_view(&self.spec, size, fit), ..self.clone() }
    }

    /// Has every image decoded at its full size.
    #[must_use]
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    #[cfg(test)]
    pub(super) fn steps(&self) -> Steps {
        self.steps
    }

    /// Height and width of the network's input.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        self.steps.size()
    }

    /// At which size a JPEG file of these sides may be decoded: the smallest at which twice the pixels of
    /// the network's input remain along each axis. The sides are as displayed.
    #[must_use]
    pub fn scale(&self, width: u32, height: u32) -> Scale {
        let Placement { visible: [_, _, box_width, box_height], out, .. } = self.steps.first((width, height));
        let enough = |scale: &Scale| {
            let gap = |source: f64, out: u32| source * scale.factor() / f64::from(out);
            gap(box_width, out.0).min(gap(box_height, out.1)) >= GAP
        };
        let smaller = || Scale::ALL.into_iter().find(enough);
        if self.exact { Scale::Full } else { smaller().unwrap_or(Scale::Full) }
    }

    /// Where a photograph of these sides, as displayed, goes in the network's input.
    #[must_use]
    pub fn geometry(&self, width: u32, height: u32) -> Geometry {
        self.steps.geometry((width, height))
    }

    /// Elements of a row: 3 × height × width.
    #[must_use]
    pub fn row_len(&self) -> usize {
        let [height, width] = self.size();
        3 * height * width
    }

    /// The network's view of a photograph, as 8-bit RGB: resized, cropped or bordered, turned upright.
    #[must_use]
    pub fn crop(&self, pixels: &Pixels) -> RgbImage {
        let shown = displayed(pixels.orientation, pixels.stored.0, pixels.stored.1);
        let first = place(pixels, self.steps.first(shown), self.border());
        let Some(second) = self.steps.second() else { return first };
        let stored = first.dimensions();
        let upright = Pixels { rgb: first, stored, scale: Scale::Full, orientation: Orientation::NoTransforms };
        place(&upright, second, self.border())
    }

    /// What is around a photograph that does not fill the input: the mean colour, which normalises to nearly zero.
    fn border(&self) -> Rgb<u8> {
        Rgb(self.spec.mean.map(|mean| (mean * 255.0).round() as u8))
    }

    /// Writes the network's input for a crop: planar R, G, B, normalised. `row` has [`Transform::row_len`] elements.
    pub fn normalise(&self, crop: &RgbImage, row: &mut [f32]) {
        let planes = row.chunks_exact_mut(self.row_len() / 3);
        for ((channel, plane), table) in planes.enumerate().zip(&self.normalised) {
            for (out, pixel) in plane.iter_mut().zip(crop.as_raw().as_chunks::<3>().0) {
                *out = table[usize::from(pixel[channel])];
            }
        }
    }
}

/// The network's view of one image. Of a picture it is kept as bytes: a quarter of what its row of the input takes.
#[derive(Clone, Debug)]
pub struct Crop {
    seen: Seen,
    transform: Arc<Transform>,
}

#[derive(Clone, Debug)]
enum Seen {
    Pixels(Arc<RgbImage>),
    /// Little-endian f32, as the network takes them.
    Values(Bytes),
}

impl Crop {
    /// Resizes, crops and turns decoded pixels.
    #[must_use]
    pub fn new(transform: &Arc<Transform>, pixels: &Pixels) -> Self {
        Self { seen: Seen::Pixels(Arc::new(transform.crop(pixels))), transform: Arc::clone(transform) }
    }

    /// Takes values that were found to be an input.
    pub(super) fn of_values(transform: &Arc<Transform>, values: Bytes) -> Self {
        Self { seen: Seen::Values(values), transform: Arc::clone(transform) }
    }

    /// What the network sees, as a picture; `None` if it did not come as one.
    #[must_use]
    pub fn pixels(&self) -> Option<&Arc<RgbImage>> {
        match &self.seen {
            Seen::Pixels(pixels) => Some(pixels),
            Seen::Values(_) => None,
        }
    }
}

impl Row for Crop {
    fn elements(&self) -> usize {
        self.transform.row_len()
    }

    fn write(&self, out: &mut [f32]) {
        match &self.seen {
            Seen::Pixels(pixels) => self.transform.normalise(pixels, out),
            Seen::Values(values) => {
                let values = values.as_chunks::<4>().0;
                out.iter_mut().zip(values).for_each(|(out, value)| *out = f32::from_le_bytes(*value));
            }
        }
    }
}

/// Where a box of the displayed image lies in the stored one.
fn stored_box(orientation: Orientation, [left, top, w, h]: [f64; 4], displayed: (u32, u32)) -> [f64; 4] {
    let right = f64::from(displayed.0) - left - w;
    let bottom = f64::from(displayed.1) - top - h;
    // Each orientation says how the stored image is turned to be displayed; this undoes it.
    match orientation {
        Orientation::NoTransforms => [left, top, w, h],
        Orientation::FlipHorizontal => [right, top, w, h],
        Orientation::FlipVertical => [left, bottom, w, h],
        Orientation::Rotate180 => [right, bottom, w, h],
        Orientation::Rotate90 => [top, right, h, w],
        Orientation::Rotate270 => [bottom, left, h, w],
        Orientation::Rotate90FlipH => [top, left, h, w],
        Orientation::Rotate270FlipH => [bottom, right, h, w],
    }
}

/// A stretch of one axis of the source, and how many pixels it becomes.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: f64,
    length: f64,
    /// Pixels of the source along this axis.
    source: u32,
    out: u32,
}

impl Span {
    fn new(start: f64, length: f64, source: u32, out: u32) -> Self {
        // Sums of rounded products may leave the image by a hair, which the resizer refuses.
        let start = start.clamp(0.0, f64::from(source));
        Self { start, length: length.min(f64::from(source) - start), source, out }
    }

    /// The whole pixels that this span's filter reaches, and the span counted from the first of them.
    fn reach(self) -> (Self, Self) {
        // The cubic reaches two pixels, of the larger of the two images; one more against rounding.
        let support = 2.0 * (self.length / f64::from(self.out)).max(1.0) + 1.0;
        let first = (self.start - support).floor().max(0.0);
        let last = (self.start + self.length + support).ceil().min(f64::from(self.source));
        let count = (last - first) as u32;
        let whole = Self { start: first, length: last - first, source: self.source, out: count };
        (whole, Self { start: self.start - first, source: count, ..self })
    }
}

/// The network's input of a photograph: what is visible of it, resized, on a canvas.
fn place(pixels: &Pixels, to: Placement, border: Rgb<u8>) -> RgbImage {
    let resized = resize_box(pixels, to.visible, to.out);
    if to.out == to.canvas {
        return resized;
    }
    let mut canvas = RgbImage::from_pixel(to.canvas.0, to.canvas.1, border);
    image::imageops::replace(&mut canvas, &resized, to.at.0.into(), to.at.1.into());
    canvas
}

/// Resizes a box of the displayed image to `width`×`height`, upright.
fn resize_box(pixels: &Pixels, visible: [f64; 4], (width, height): (u32, u32)) -> RgbImage {
    let Pixels { rgb, stored, scale, orientation } = pixels;
    let shown = displayed(*orientation, stored.0, stored.1);
    // The box is that of the whole image, by its rules of rounding; a reduced one has it at exactly the reduced place.
    let [left, top, w, h] = stored_box(*orientation, visible, shown).map(|place| place * scale.factor());
    let (out_w, out_h) = displayed(*orientation, width, height);
    let across = Span::new(left, w, rgb.width(), out_w);
    let down = Span::new(top, h, rgb.height(), out_h);

    // Pillow resizes along the displayed rows first and rounds to 8 bits before the other axis, which clips the cubic's
    // overshoot: at hard edges the order shows. On an image that lies on its side, displayed rows are stored columns.
    let crop = if displayed(*orientation, 1, 2) == (1, 2) {
        let (rows, down) = down.reach();
        let narrow = resize(rgb, across, rows);
        resize(&narrow, Span::new(0.0, f64::from(out_w), out_w, out_w), down)
    } else {
        let (columns, across) = across.reach();
        let flat = resize(rgb, columns, down);
        resize(&flat, across, Span::new(0.0, f64::from(out_h), out_h, out_h))
    };
    if *orientation == Orientation::NoTransforms {
        return crop;
    }
    let mut crop = DynamicImage::ImageRgb8(crop);
    crop.apply_orientation(*orientation);
    crop.into_rgb8()
}

/// Resizes a box of an image. An axis whose span is whole pixels, one for one, is copied.
fn resize(image: &RgbImage, across: Span, down: Span) -> RgbImage {
    // CatmullRom is the cubic with a = −1/2, Pillow's BICUBIC; as a convolution it widens with the scale: antialiasing.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).crop(
        across.start,
        down.start,
        across.length,
        down.length,
    );
    let mut out = Image::new(across.out, down.out, PixelType::U8x3);
    let source = ImageRef::new(image.width(), image.height(), image.as_raw(), PixelType::U8x3);
    let resized = source.is_ok_and(|source| Resizer::new().resize(&source, &mut out, &options).is_ok());
    debug_assert!(resized, "a box inside the image always resizes");
    RgbImage::from_raw(across.out, down.out, out.into_vec()).unwrap_or_default()
}
