//! Estimates the cost of decoding an image before any of it is decoded.
//!
//! A small file can declare a large image. So the cost is estimated from the sizes that the header declares, the
//! length of the file, and measured costs of each format. A running mean of the actual costs corrects the estimate
//! for the machine and its load. Admission counts these costs, and expensive images wait in queues of their own
//! ([`super::expensive`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::header::HeaderInfo;
use super::{Format, ImageLimits, Source, Transform};

/// The expected cost of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    kind: CostKind,
    /// Processor time on the machine where the constants were measured.
    nominal: Duration,
    /// Processor time on this machine, by its recent model.
    pub(super) time: Duration,
    /// Memory of the decoded pixels, in bytes.
    bytes: u64,
}

/// Kinds of images. Each kind has its own model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CostKind {
    Jpeg,
    ProgressiveJpeg,
    Png,
    Gif,
    Bmp,
    Tiff,
    WebP,
    /// Pixels that need no decoding, and files that were not understood.
    Other,
}

const COST_KINDS: usize = 8;

/// Class of an image by its cost. It decides where the image waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CostClass {
    /// Decoded in the order of work on the cores.
    Small,
    /// Takes as long as several small images, such as a photograph of 12 megapixels. Decoded on the cores that small
    /// images leave free.
    Medium,
    /// Takes a noticeable part of a second, or much memory. Only a few are decoded at once.
    Large,
}

/// Maximum time that a small image takes. Ordinary photographs take one or two milliseconds.
pub(super) const SMALL_TIME: Duration = Duration::from_millis(8);

/// Maximum time that a medium image takes.
const MEDIUM_TIME: Duration = Duration::from_millis(50);

/// Maximum memory for decoding an image that is not large: 11 megapixels of RGB, or 2.8 of WebP.
pub(super) const LARGE_BYTES: u64 = 32 << 20;

impl Estimate {
    /// Expected time of decoding and resizing.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// The image's class, by time and memory.
    #[must_use]
    pub fn class(&self) -> CostClass {
        match self.time {
            _ if self.bytes > LARGE_BYTES => CostClass::Large,
            time if time <= SMALL_TIME => CostClass::Small,
            time if time <= MEDIUM_TIME => CostClass::Medium,
            _ => CostClass::Large,
        }
    }

    /// Maximum processor time of decoding in a class. An image that takes longer moves to the class of large images;
    /// a large image that takes longer is rejected.
    pub(super) fn limit(&self, class: CostClass) -> Duration {
        match class {
            CostClass::Small | CostClass::Medium => Duration::from_millis(50) + 4 * self.nominal,
            CostClass::Large => Duration::from_secs(1) + 10 * self.nominal,
        }
    }
}

/// Nanoseconds per pixel and per byte of the file, resizing included. Measured on one core of an Intel server
/// processor of 2023 at full size, and rounded up.
struct UnitCost {
    pixel: f64,
    byte: f64,
}

impl CostKind {
    fn of(header: &HeaderInfo) -> Self {
        match header.format {
            Format::Jpeg if header.scans > 1 => Self::ProgressiveJpeg,
            Format::Jpeg => Self::Jpeg,
            Format::Png => Self::Png,
            Format::Gif => Self::Gif,
            Format::Bmp => Self::Bmp,
            Format::Tiff => Self::Tiff,
            Format::WebP => Self::WebP,
        }
    }

    fn unit_cost(self, header: &HeaderInfo, scale: f64) -> UnitCost {
        let cost = |pixel, byte| UnitCost { pixel, byte };
        match self {
            // A reduced image takes less of everything except reading its bits.
            Self::Jpeg => cost(0.2 + 3.0 * scale * scale, 8.0),
            // Every scan processes all coefficients.
            Self::ProgressiveJpeg => cost(0.5 + 0.3 * header.scans as f64 + 3.0 * scale * scale, 12.0),
            Self::Png => cost(2.5 + 2.3 * f64::from(header.bits_per_pixel) / 8.0, 10.0),
            Self::Gif => cost(10.5, 10.0),
            Self::Bmp => cost(2.0, 1.0),
            Self::Tiff => cost(0.5 + 6.0 * f64::from(header.bits_per_pixel) / 8.0, 10.0),
            Self::WebP => cost(15.5, 10.0),
            Self::Other => cost(0.5, 1.0),
        }
    }
}

/// For each kind of image, the factor between this machine's costs and the measured constants.
#[derive(Debug)]
pub(super) struct CostModel([AtomicU64; COST_KINDS]);

/// The factor 1 as a fixed-point number.
const ONE: u64 = 1 << 16;

impl Default for CostModel {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(ONE)))
    }
}

impl CostModel {
    /// Estimates the cost of an image with a transform. An image whose header will be rejected costs next to nothing.
    pub(super) fn estimate(&self, transform: &Transform, source: &Source, limits: ImageLimits) -> Estimate {
        let is_acceptable = |header: &HeaderInfo, file: &[u8]| {
            limits.check_size(header.width, header.height).is_ok() && header.check(file).is_ok()
        };
        let (kind, nominal, bytes) = match source {
            Source::File(file) => match HeaderInfo::read(file).filter(|header| is_acceptable(header, file)) {
                Some(header) => {
                    let kind = CostKind::of(&header);
                    let factor = transform.scale(header.width, header.height).factor();
                    let scale = if header.format == Format::Jpeg { factor } else { 1.0 };
                    let UnitCost { pixel, byte } = kind.unit_cost(&header, scale);
                    let pixels = header.pixels() as f64;
                    let native = f64::from(header.bits_per_pixel.div_ceil(8));
                    let with_rgb = if native == 3.0 { 3.0 } else { native + 3.0 };
                    // The same formulas as in `ProbedImage::decoded_bytes`.
                    let bytes = match kind {
                        CostKind::Jpeg => pixels * 3.0 * scale * scale,
                        // Coefficients of the whole image, two bytes each.
                        CostKind::ProgressiveJpeg => pixels * (3.0 + 3.0 * scale * scale),
                        CostKind::Gif => pixels * 9.0,
                        CostKind::WebP => pixels * 12.0,
                        CostKind::Tiff => pixels * with_rgb.max(2.0 * native),
                        CostKind::Png | CostKind::Bmp | CostKind::Other => pixels * with_rgb,
                    };
                    (kind, pixels * pixel + file.len() as f64 * byte, bytes as u64)
                }
                None => (CostKind::Other, file.len() as f64, 0),
            },
            Source::Pixels { rgb, .. } => (CostKind::Other, rgb.len() as f64, rgb.len() as u64),
            Source::Tensor { .. } => (CostKind::Other, 0.0, 0),
        };
        let nominal = Duration::from_nanos(nominal as u64);
        let factor = self.0[kind as usize].load(Ordering::Relaxed) as f64 / ONE as f64;
        Estimate { kind, nominal, time: nominal.mul_f64(factor), bytes }
    }

    /// Records the processor time that an image took. A new value counts one eighth, within bounds, so that no client
    /// can make all images of a format look expensive. Threads may overwrite each other's values; either value is
    /// good enough.
    pub(super) fn record(&self, estimate: &Estimate, took: Duration) {
        // The smallest images spend most of their time on other work than decoding.
        if estimate.nominal < Duration::from_micros(100) {
            return;
        }
        let ratio = (took.as_secs_f64() / estimate.nominal.as_secs_f64()).clamp(0.25, 4.0);
        let factor = &self.0[estimate.kind as usize];
        let old = factor.load(Ordering::Relaxed);
        factor.store(old - old / 8 + (ratio * ONE as f64) as u64 / 8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ghostserve_manifest::InputSpec;

    fn transform() -> Transform {
        Transform::new(InputSpec::imagenet())
    }

    fn png(width: u32, height: u32) -> Source {
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        file.extend(width.to_be_bytes());
        file.extend(height.to_be_bytes());
        file.extend([8, 2, 0, 0, 0]);
        // The minimum length for this number of pixels.
        file.resize(200 + (3 * u64::from(width) * u64::from(height) / 1000) as usize, 0);
        Source::File(file.into())
    }

    #[test]
    fn costs_follow_declared_pixels() {
        let model = CostModel::default();
        let estimate = |width, height| model.estimate(&transform(), &png(width, height), ImageLimits::default());
        let (small, large) = (estimate(500, 375), estimate(7000, 7000));
        assert_eq!(
            [small, estimate(2000, 1000), large].map(|e| e.class()),
            [CostClass::Small, CostClass::Medium, CostClass::Large]
        );
        assert!(large.time() > 100 * small.time(), "{small:?} {large:?}");
        let unknown = Source::File(vec![0xFF; 100_000].into());
        assert_eq!(model.estimate(&transform(), &unknown, ImageLimits::default()).class(), CostClass::Small);
        // Its header is rejected.
        assert_eq!(estimate(16_000, 16_000).class(), CostClass::Small);
    }

    #[test]
    fn recorded_times_correct_the_estimate_within_bounds() {
        let model = CostModel::default();
        let before = model.estimate(&transform(), &png(1000, 1000), ImageLimits::default());
        (0..100).for_each(|_| model.record(&before, 3 * before.time()));
        let after = model.estimate(&transform(), &png(1000, 1000), ImageLimits::default());
        let ratio = after.time().as_secs_f64() / before.time().as_secs_f64();
        assert!((2.9..3.1).contains(&ratio), "{ratio}");
        // However slow images are, they do not look a thousand times as expensive.
        (0..100).for_each(|_| model.record(&before, 1000 * before.time()));
        assert!(model.estimate(&transform(), &png(1000, 1000), ImageLimits::default()).time() <= 5 * before.time());
    }
}
