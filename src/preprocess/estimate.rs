//! What decoding an image will cost, estimated before any of it is done.
//!
//! A small file can declare a large picture. So the cost is estimated from what the header declares, the length of the file, and
//! measured costs of each format; a running mean of what images really took corrects it for the machine and its load. Admission
//! counts these costs, and expensive images wait in lines of their own ([`super::line`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::declared::Declared;
use super::{Format, ImageLimits, Source, Transform};

/// What an image is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    kind: Kind,
    /// On the machine where the constants were measured.
    nominal: Duration,
    /// On this one, as of late.
    pub(super) time: Duration,
    /// Memory of the decoded pixels.
    bytes: u64,
}

/// Kinds of images whose costs have little to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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

const KINDS: usize = 8;

/// Which line an image waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Decoded in the order of work on the cores.
    Small,
    /// Takes as long as several small ones, such as a photograph of 12 megapixels. Decoded on the cores that small ones leave.
    Medium,
    /// Takes a noticeable part of a second, or much memory. A few at once.
    Large,
}

/// What a small image takes at most. Ordinary photographs take one or two milliseconds.
pub(super) const SMALL_TIME: Duration = Duration::from_millis(8);

/// What a medium one takes at most.
const MEDIUM_TIME: Duration = Duration::from_millis(50);

/// Memory that decoding an image takes which is not large: 11 megapixels of RGB, or 2.8 of WebP.
pub(super) const LARGE_BYTES: u64 = 32 << 20;

impl Estimate {
    /// Time that decoding and resizing is expected to take.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Which line the image waits in.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.time {
            _ if self.bytes > LARGE_BYTES => Class::Large,
            time if time <= SMALL_TIME => Class::Small,
            time if time <= MEDIUM_TIME => Class::Medium,
            _ => Class::Large,
        }
    }

    /// Processor time that decoding it may take in a line. What takes longer goes to the line of large images; what takes longer there
    /// is refused.
    pub(super) fn limit(&self, class: Class) -> Duration {
        match class {
            Class::Small | Class::Medium => Duration::from_millis(50) + 4 * self.nominal,
            Class::Large => Duration::from_secs(1) + 10 * self.nominal,
        }
    }
}

/// Nanoseconds, measured on one core of an Intel server processor of 2023 at full size, and rounded up; resizing included.
struct Cost {
    pixel: f64,
    byte: f64,
}

impl Kind {
    fn of(declared: &Declared) -> Self {
        match declared.format {
            Format::Jpeg if declared.scans > 1 => Self::ProgressiveJpeg,
            Format::Jpeg => Self::Jpeg,
            Format::Png => Self::Png,
            Format::Gif => Self::Gif,
            Format::Bmp => Self::Bmp,
            Format::Tiff => Self::Tiff,
            Format::WebP => Self::WebP,
        }
    }

    fn cost(self, declared: &Declared, scale: f64) -> Cost {
        let cost = |pixel, byte| Cost { pixel, byte };
        match self {
            // Reduced pictures take less of everything but the reading of their bits.
            Self::Jpeg => cost(0.2 + 3.0 * scale * scale, 8.0),
            // Every scan goes over the coefficients.
            Self::ProgressiveJpeg => cost(0.5 + 0.3 * declared.scans as f64 + 3.0 * scale * scale, 12.0),
            Self::Png => cost(2.5 + 2.3 * f64::from(declared.bits_per_pixel) / 8.0, 10.0),
            Self::Gif => cost(10.5, 10.0),
            Self::Bmp => cost(2.0, 1.0),
            Self::Tiff => cost(0.5 + 6.0 * f64::from(declared.bits_per_pixel) / 8.0, 10.0),
            Self::WebP => cost(15.5, 10.0),
            Self::Other => cost(0.5, 1.0),
        }
    }
}

/// How costs compare to their constants on this machine.
#[derive(Debug)]
pub(super) struct Costs([AtomicU64; KINDS]);

/// Fixed-point one.
const ONE: u64 = 1 << 16;

impl Default for Costs {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(ONE)))
    }
}

impl Costs {
    /// What a source is expected to cost with a transform. One that is going to be refused by its header costs next to nothing.
    pub(super) fn estimate(&self, transform: &Transform, source: &Source, limits: ImageLimits) -> Estimate {
        let acceptable = |declared: &Declared, file: &[u8]| {
            let side = declared.width.max(declared.height);
            side <= limits.max_side && declared.pixels() <= limits.max_pixels && declared.check(file).is_ok()
        };
        let (kind, nominal, bytes) = match source {
            Source::File(file) => match Declared::of(file).filter(|declared| acceptable(declared, file)) {
                Some(declared) => {
                    let kind = Kind::of(&declared);
                    let factor = transform.scale(declared.width, declared.height).factor();
                    let scale = if declared.format == Format::Jpeg { factor } else { 1.0 };
                    let Cost { pixel, byte } = kind.cost(&declared, scale);
                    let pixels = declared.pixels() as f64;
                    let native = f64::from(declared.bits_per_pixel.div_ceil(8));
                    let with_rgb = if native == 3.0 { 3.0 } else { native + 3.0 };
                    // As the decoders' headers count it (`Header::decoded_bytes`).
                    let bytes = match kind {
                        Kind::Jpeg => pixels * 3.0 * scale * scale,
                        // Coefficients of the whole picture, two bytes each.
                        Kind::ProgressiveJpeg => pixels * (3.0 + 3.0 * scale * scale),
                        Kind::Gif => pixels * 9.0,
                        Kind::WebP => pixels * 12.0,
                        Kind::Tiff => pixels * with_rgb.max(2.0 * native),
                        Kind::Png | Kind::Bmp | Kind::Other => pixels * with_rgb,
                    };
                    (kind, pixels * pixel + file.len() as f64 * byte, bytes as u64)
                }
                None => (Kind::Other, file.len() as f64, 0),
            },
            Source::Pixels { rgb, .. } => (Kind::Other, rgb.len() as f64, rgb.len() as u64),
            Source::Values { .. } => (Kind::Other, 0.0, 0),
        };
        let nominal = Duration::from_nanos(nominal as u64);
        let factor = self.0[kind as usize].load(Ordering::Relaxed) as f64 / ONE as f64;
        Estimate { kind, nominal, time: nominal.mul_f64(factor), bytes }
    }

    /// Notes the processor time that an image took. Takes an eighth of every new value, within bounds: nobody should be able to make all pictures of
    /// a format look expensive. Threads may overwrite each other; either value will do.
    pub(super) fn record(&self, estimate: &Estimate, took: Duration) {
        // Of the smallest pictures most is not decoding.
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
        Transform::new(InputSpec { crop: [224, 224], source: None, resize: 256, mean: [0.5; 3], std: [0.25; 3] })
    }

    fn png(width: u32, height: u32) -> Source {
        let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        file.extend(width.to_be_bytes());
        file.extend(height.to_be_bytes());
        file.extend([8, 2, 0, 0, 0]);
        // As long as so many pixels must be at least.
        file.resize(200 + (3 * u64::from(width) * u64::from(height) / 1000) as usize, 0);
        Source::File(file.into())
    }

    #[test]
    fn costs_follow_declared_pixels() {
        let costs = Costs::default();
        let estimate = |width, height| costs.estimate(&transform(), &png(width, height), ImageLimits::default());
        let (small, large) = (estimate(500, 375), estimate(7000, 7000));
        assert_eq!(
            [small, estimate(2000, 1000), large].map(|e| e.class()),
            [Class::Small, Class::Medium, Class::Large]
        );
        assert!(large.time() > 100 * small.time(), "{small:?} {large:?}");
        let unknown = Source::File(vec![0xFF; 100_000].into());
        assert_eq!(costs.estimate(&transform(), &unknown, ImageLimits::default()).class(), Class::Small);
        // Its header is refused.
        assert_eq!(estimate(16_000, 16_000).class(), Class::Small);
    }

    #[test]
    fn what_images_took_corrects_the_estimate_within_bounds() {
        let costs = Costs::default();
        let before = costs.estimate(&transform(), &png(1000, 1000), ImageLimits::default());
        (0..100).for_each(|_| costs.record(&before, 3 * before.time()));
        let after = costs.estimate(&transform(), &png(1000, 1000), ImageLimits::default());
        let ratio = after.time().as_secs_f64() / before.time().as_secs_f64();
        assert!((2.9..3.1).contains(&ratio), "{ratio}");
        // Other kinds are not concerned, and nobody makes one look a thousand times as expensive.
        (0..100).for_each(|_| costs.record(&before, 1000 * before.time()));
        assert!(costs.estimate(&transform(), &png(1000, 1000), ImageLimits::default()).time() <= 5 * before.time());
    }
}
