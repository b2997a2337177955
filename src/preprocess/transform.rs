//! Resizes, crops, orients and normalises images: the transform with which a network was evaluated.
//!
//! The result equals that of torchvision's and timm's transforms over Pillow, for each filter and crop mode of a
//! manifest, up to the rounding of 8-bit intermediate rows. Sizes and offsets follow their rules exactly. Two
//! differences change no pixel's value beyond that rounding: only the source rows and columns under the crop are
//! resized, and the EXIF orientation is applied to the small crop instead of the whole photograph. A third difference
//! changes values: large JPEG files are decoded at a fraction of their size ([`Transform::scale`]), unless
//! [`Transform::exact`] forbids it.
//!
//! [`Transform::view`] does the same for other input sizes, and for whole photographs instead of their centre.
//! [`Transform::geometry`] returns the mapping between photograph and input.

use std::sync::Arc;

use bytes::Bytes;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, Rgb, RgbImage};

use super::decode::displayed;
use super::geometry::{Geometry, Placement, ResizeSteps};
use super::{Fit, Pixels, Scale};
use crate::row::Row;
use ghostserve_manifest::{InputSpec, Interpolation};

/// Minimum number of pixels of a reduced image per pixel of the resized one, along each axis.
///
/// Each pixel of a reduced image is an average, which the filter averages again. The numbers are the cubic's; the
/// other filters stay within its bounds (`tests/integration/scaled_decoding.rs`). With one pixel per pixel,
/// sharp photographs differ by 2 to 3 of 255 on average and by up to 70 from the result of the whole image; with two
/// by 0.8 and up to 25; with three by 0.4 and up to 12. A photograph of 12 megapixels has 2.9 for an input of 256
/// when a quarter of its size is decoded.
const MIN_OVERSAMPLING: f64 = 2.5;

/// A model's pre-processing with its precomputed tables.
#[derive(Clone, Debug)]
pub struct Transform {
    spec: InputSpec,
    steps: ResizeSteps,
    /// `(v / 255 − mean) / std` for every channel and 8-bit value.
    normalised: [[f32; 256]; 3],
    exact: bool,
}

impl Transform {
    /// Creates the transform that a manifest describes.
    #[must_use]
    pub fn new(spec: InputSpec) -> Self {
        let table = |c: usize| std::array::from_fn(|v| (v as f32 / 255.0 - spec.mean[c]) / spec.std[c]);
        Self { spec, steps: ResizeSteps::of_model(&spec), normalised: std::array::from_fn(table), exact: false }
    }

    /// Returns the transform for another `size` of the input (height, width), and another way to fit the photograph
    /// into it. The model's own size with [`Fit::Crop`] is the model's own transform. For all others, the model's
    /// reduction to a small source, if it has one, is left out: it would remove the detail that a larger input needs.
    #[must_use]
    pub fn view(&self, size: [usize; 2], fit: Fit) -> Self {
        if size == self.spec.crop && fit == Fit::Crop {
            return self.clone();
        }
        Self { steps: ResizeSteps::of_view(&self.spec, size, fit), ..self.clone() }
    }

    /// Returns the transform that decodes every image at its full size.
    #[must_use]
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    #[cfg(test)]
    pub(super) fn steps(&self) -> ResizeSteps {
        self.steps
    }

    /// The network's input size in pixels: height, width.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        self.steps.size()
    }

    /// Returns the scale at which a JPEG file may be decoded: the smallest that leaves at least 2.5 times the pixels
    /// of the network's input along each axis. `width` and `height` are as displayed.
    #[must_use]
    pub fn scale(&self, width: u32, height: u32) -> Scale {
        let Placement { visible: [_, _, box_width, box_height], out, .. } = self.steps.first((width, height));
        let is_sufficient = |scale: &Scale| {
            let oversampling = |source: f64, out: u32| source * scale.factor() / f64::from(out);
            oversampling(box_width, out.0).min(oversampling(box_height, out.1)) >= MIN_OVERSAMPLING
        };
        let smallest = || Scale::ALL.into_iter().find(is_sufficient);
        if self.exact { Scale::Full } else { smallest().unwrap_or(Scale::Full) }
    }

    /// Returns the mapping from a photograph of these sides, as displayed, to the network's input.
    #[must_use]
    pub fn geometry(&self, width: u32, height: u32) -> Geometry {
        self.steps.geometry((width, height))
    }

    /// Number of elements of a row: 3 × height × width.
    #[must_use]
    pub fn row_len(&self) -> usize {
        let [height, width] = self.size();
        3 * height * width
    }

    /// Returns the network's view of a photograph as 8-bit RGB: resized, cropped or with a border, turned upright.
    #[must_use]
    pub fn crop(&self, pixels: &Pixels) -> RgbImage {
        let size = displayed(pixels.orientation, pixels.stored.0, pixels.stored.1);
        let (border, filter) = (self.border(), self.spec.interpolation);
        let first = draw(pixels, self.steps.first(size), border, filter);
        let Some(second) = self.steps.second() else { return first };
        let stored = first.dimensions();
        let upright = Pixels { rgb: first, stored, scale: Scale::Full, orientation: Orientation::NoTransforms };
        draw(&upright, second, border, filter)
    }

    /// Colour of the border around a photograph that does not fill the input: the mean colour, which normalises to
    /// nearly zero.
    fn border(&self) -> Rgb<u8> {
        Rgb(self.spec.mean.map(|mean| (mean * 255.0).round_ties_even() as u8))
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

/// The network's view of one image. An image is stored as bytes, which take a quarter of the memory of its row.
#[derive(Clone, Debug)]
pub struct Crop {
    content: CropContent,
    transform: Arc<Transform>,
}

#[derive(Clone, Debug)]
enum CropContent {
    Pixels(Arc<RgbImage>),
    /// The network's input as little-endian f32.
    Tensor(Bytes),
}

impl Crop {
    /// Resizes, crops and turns decoded pixels.
    #[must_use]
    pub fn new(transform: &Arc<Transform>, pixels: &Pixels) -> Self {
        Self { content: CropContent::Pixels(Arc::new(transform.crop(pixels))), transform: Arc::clone(transform) }
    }

    /// Takes values that have been checked to be an input.
    pub(super) fn from_tensor(transform: &Arc<Transform>, values: Bytes) -> Self {
        Self { content: CropContent::Tensor(values), transform: Arc::clone(transform) }
    }

    /// The network's view as an image; `None` if the client sent a tensor.
    #[must_use]
    pub fn pixels(&self) -> Option<&Arc<RgbImage>> {
        match &self.content {
            CropContent::Pixels(pixels) => Some(pixels),
            CropContent::Tensor(_) => None,
        }
    }
}

impl Row for Crop {
    fn elements(&self) -> usize {
        self.transform.row_len()
    }

    fn write(&self, out: &mut [f32]) {
        match &self.content {
            CropContent::Pixels(pixels) => self.transform.normalise(pixels, out),
            CropContent::Tensor(values) => {
                let values = values.as_chunks::<4>().0;
                out.iter_mut().zip(values).for_each(|(out, value)| *out = f32::from_le_bytes(*value));
            }
        }
    }
}

/// Returns the box of the stored image that a box of the displayed image shows. `size` is the displayed width and
/// height.
fn stored_box(orientation: Orientation, [left, top, w, h]: [f64; 4], size: (u32, u32)) -> [f64; 4] {
    let right = f64::from(size.0) - left - w;
    let bottom = f64::from(size.1) - top - h;
    // An orientation tells how the stored image is turned for display. This match reverses it.
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

/// An interval of one axis of the source, and the number of pixels that it is resized to.
#[derive(Clone, Copy, Debug)]
struct AxisSpan {
    start: f64,
    length: f64,
    /// Number of pixels of the source along this axis.
    source: u32,
    out: u32,
}

impl AxisSpan {
    fn new(start: f64, length: f64, source: u32, out: u32) -> Self {
        // Sums of rounded products may lie slightly outside the image, which the resizer rejects.
        let start = start.clamp(0.0, f64::from(source));
        Self { start, length: length.min(f64::from(source) - start), source, out }
    }

    /// Returns the whole pixels that this span's filter reaches, and the span counted from the first of them.
    fn reach(self, filter: Interpolation) -> (Self, Self) {
        let radius = match filter {
            Interpolation::Bilinear => 1.0,
            Interpolation::Bicubic => 2.0,
            Interpolation::Lanczos => 3.0,
        };
        // The radius counts pixels of the coarser of the two images. One more is because of rounding.
        let support = radius * (self.length / f64::from(self.out)).max(1.0) + 1.0;
        let first = (self.start - support).floor().max(0.0);
        let last = (self.start + self.length + support).ceil().min(f64::from(self.source));
        let count = (last - first) as u32;
        let whole = Self { start: first, length: last - first, source: self.source, out: count };
        (whole, Self { start: self.start - first, source: count, ..self })
    }
}

/// Draws the network's input: the visible part of a photograph, resized, on a canvas.
fn draw(pixels: &Pixels, to: Placement, border: Rgb<u8>, filter: Interpolation) -> RgbImage {
    let resized = resize_box(pixels, to.visible, to.out, filter);
    if to.out == to.canvas {
        return resized;
    }
    let mut canvas = RgbImage::from_pixel(to.canvas.0, to.canvas.1, border);
    image::imageops::replace(&mut canvas, &resized, to.position.0.into(), to.position.1.into());
    canvas
}

/// Resizes a box of the displayed image to `width`×`height` pixels, upright.
fn resize_box(pixels: &Pixels, visible: [f64; 4], (width, height): (u32, u32), filter: Interpolation) -> RgbImage {
    let Pixels { rgb, stored, scale, orientation } = pixels;
    let size = displayed(*orientation, stored.0, stored.1);
    // The box is computed for the whole image, with its rules of rounding. In a reduced image it is scaled exactly.
    let [left, top, w, h] = stored_box(*orientation, visible, size).map(|edge| edge * scale.factor());
    let (out_w, out_h) = displayed(*orientation, width, height);
    let across = AxisSpan::new(left, w, rgb.width(), out_w);
    let down = AxisSpan::new(top, h, rgb.height(), out_h);

    // Pillow resizes along the displayed rows first and rounds to 8 bits before the other axis. That clips the
    // cubic's overshoot, so the order is visible at hard edges. In an image that lies on its side, displayed rows are
    // stored columns.
    let crop = if displayed(*orientation, 1, 2) == (1, 2) {
        let (rows, down) = down.reach(filter);
        let narrow = resize(rgb, across, rows, filter);
        resize(&narrow, AxisSpan::new(0.0, f64::from(out_w), out_w, out_w), down, filter)
    } else {
        let (columns, across) = across.reach(filter);
        let flat = resize(rgb, columns, down, filter);
        resize(&flat, across, AxisSpan::new(0.0, f64::from(out_h), out_h, out_h), filter)
    };
    if *orientation == Orientation::NoTransforms {
        return crop;
    }
    let mut crop = DynamicImage::ImageRgb8(crop);
    crop.apply_orientation(*orientation);
    crop.into_rgb8()
}

/// Resizes a box of an image. An axis whose span is whole pixels, one to one, is copied.
fn resize(image: &RgbImage, across: AxisSpan, down: AxisSpan, filter: Interpolation) -> RgbImage {
    let filter = match filter {
        Interpolation::Bilinear => FilterType::Bilinear,
        // The cubic with a = −1/2, which is Pillow's BICUBIC.
        Interpolation::Bicubic => FilterType::CatmullRom,
        Interpolation::Lanczos => FilterType::Lanczos3,
    };
    // As a convolution, a filter widens with the scale, which prevents aliasing.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
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
