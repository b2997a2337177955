//! The mapping from a photograph to the network's input: the visible part, its scale and its position.
//!
//! Coordinates refer to pixel edges, not to pixel centres: a photograph of width W reaches from 0 to W. Each
//! photograph has one affine transform. All coordinates are as displayed, that is after the EXIF orientation is
//! applied.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use ghostserve_manifest::{CropMode, InputSpec, Resize};

/// The way to fit a photograph into an input of another shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The model's own rule, by which it was evaluated: the `crop_mode` of its input. In most models the photograph is
    /// resized until it covers a little more than the input, and cropped to its centre.
    #[default]
    Crop,
    /// The whole photograph, in its own proportions, with a border of the mean colour around it.
    Letterbox,
    /// The whole photograph, in the input's proportions.
    Stretch,
}

/// The mapping between positions in the photograph and in the network's input: `input = photograph · scale + offset`,
/// for x and y each. A position on a feature map, times the map's stride, is a position in the input.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Geometry {
    /// The way in which the photograph was fitted.
    pub fit: Fit,
    /// Width of the network's input in pixels.
    pub width: usize,
    /// Height of the network's input in pixels.
    pub height: usize,
    /// Pixels of the input per pixel of the photograph: x, y.
    pub scale: [f64; 2],
    /// Position of the photograph's upper left corner in the input: x, y. Negative where it is cut off.
    pub offset: [f64; 2],
    /// The part of the photograph that the network sees, in pixels of the photograph: left, top, right, bottom.
    pub visible: [f64; 4],
    /// Width of the border around the photograph, in pixels of the input: left, top, right, bottom.
    pub padding: [u32; 4],
}

/// One resize: a box of the source, the pixels that it is resized to, and their position on the canvas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Placement {
    /// The box of the source: left, top, width, height.
    pub(super) visible: [f64; 4],
    /// Size of the resized box: width, height.
    pub(super) out: (u32, u32),
    /// Position of the resized box on the canvas: left, top.
    pub(super) position: (u32, u32),
    /// Size of the canvas: width, height.
    pub(super) canvas: (u32, u32),
}

/// The size of a resized photograph before its centre is cropped, and how it is rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ResizeRule {
    /// Covers the target in its own proportions; the longer side is rounded down. torchvision's `Resize(side)`.
    Cover,
    /// Covers the target in its own proportions; sides are rounded to the nearest. timm's `ResizeKeepRatio`.
    CoverRounded,
    /// Is the target. torchvision's `Resize((height, width))`.
    Squash,
    /// Fits into the target in its own proportions; sides are rounded to the nearest. timm's `ResizeKeepRatio` of the
    /// longest side.
    Inside,
}

impl ResizeRule {
    fn of(spec: &InputSpec) -> Self {
        match (spec.crop_mode, spec.resize) {
            (CropMode::Center, Resize::Side(_)) => Self::Cover,
            (CropMode::Center, Resize::Sides(_)) => Self::CoverRounded,
            (CropMode::Squash, _) => Self::Squash,
            (CropMode::Border, _) => Self::Inside,
        }
    }

    /// Width and height of the resized photograph.
    fn resized(self, image: (u32, u32), target: (u32, u32)) -> (u64, u64) {
        let (w, h) = (u64::from(image.0), u64::from(image.1));
        let (target_w, target_h) = (u64::from(target.0), u64::from(target.1));
        // In timm's order of operations, so that halves round alike.
        let ratios = (f64::from(image.0) / f64::from(target.0), f64::from(image.1) / f64::from(target.1));
        let rounded = |ratio: f64| {
            let side = |side: u32| ((f64::from(side) / ratio).round_ties_even() as u64).max(1);
            (side(image.0), side(image.1))
        };
        match self {
            // As in torchvision, the other side is truncated and not rounded.
            Self::Cover if w * target_h <= h * target_w => (target_w, target_w * h / w),
            Self::Cover => (target_h * w / h, target_h),
            Self::CoverRounded => rounded(ratios.0.min(ratios.1)),
            Self::Squash => (target_w, target_h),
            Self::Inside => rounded(ratios.0.max(ratios.1)),
        }
    }
}

/// A resize whose box depends on the photograph.
#[derive(Clone, Copy, Debug, PartialEq)]
struct ResizeStep {
    fit: Fit,
    /// The rule of [`Fit::Crop`].
    rule: ResizeRule,
    /// Size that the rule resizes to before the crop: width, height.
    cover: (u32, u32),
    canvas: (u32, u32),
}

/// The resizes from photograph to input: one; or two for a network that was trained on small images, the first to
/// their size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ResizeSteps {
    first: ResizeStep,
    second: Option<ResizeStep>,
}

impl ResizeSteps {
    /// The steps of the model's own transform.
    pub(super) fn of_model(spec: &InputSpec) -> Self {
        let square = |side: usize| (side as u32, side as u32);
        let [height, width] = spec.crop.map(|side| side as u32);
        let [cover_height, cover_width] = spec.resize.sides().map(|side| side as u32);
        let (cover, canvas) = ((cover_width, cover_height), (width, height));
        let own = ResizeStep { fit: Fit::Crop, rule: ResizeRule::of(spec), cover, canvas };
        match spec.source {
            None => Self { first: own, second: None },
            Some(source) => {
                let (cover, canvas) = (square(source), square(source));
                let small = ResizeStep { fit: Fit::Crop, rule: ResizeRule::Cover, cover, canvas };
                Self { first: small, second: Some(own) }
            }
        }
    }

    /// The steps for another size (height, width) or fit than the model's own. A crop removes the same fraction at
    /// the edges as the model's own crop.
    pub(super) fn of_view(spec: &InputSpec, [height, width]: [usize; 2], fit: Fit) -> Self {
        let rule = ResizeRule::of(spec);
        let longer = spec.crop[0].max(spec.crop[1]);
        let of = if rule == ResizeRule::Cover { [longer; 2] } else { spec.crop };
        let resize = spec.resize.sides();
        let cover = |axis: usize, side: usize| ((side * resize[axis] / of[axis].max(1)) as u32).max(1);
        let (cover, canvas) = ((cover(1, width), cover(0, height)), (width as u32, height as u32));
        Self { first: ResizeStep { fit, rule, cover, canvas }, second: None }
    }

    /// Size of the input: height, width.
    pub(super) fn size(&self) -> [usize; 2] {
        let (width, height) = self.second.unwrap_or(self.first).canvas;
        [height as usize, width as usize]
    }

    /// The first resize of a photograph of this width and height, as displayed.
    pub(super) fn first(&self, image: (u32, u32)) -> Placement {
        self.first.place(image)
    }

    /// The second resize, of the first one's result.
    pub(super) fn second(&self) -> Option<Placement> {
        self.second.map(|step| step.place(self.first.canvas))
    }

    /// The mapping of a photograph of this width and height, as displayed.
    pub(super) fn geometry(&self, image: (u32, u32)) -> Geometry {
        let image = (image.0.max(1), image.1.max(1));
        let first = self.first(image);
        let last = self.second().unwrap_or(first);
        let (mut scale, mut offset) = first.affine();
        if let Some(second) = self.second() {
            let (second_scale, second_offset) = second.affine();
            offset = [0, 1].map(|axis| offset[axis] * second_scale[axis] + second_offset[axis]);
            scale = [0, 1].map(|axis| scale[axis] * second_scale[axis]);
        }
        let [height, width] = self.size();
        let sides = [f64::from(image.0), f64::from(image.1)];
        let canvas = [width as f64, height as f64];
        let to_photograph = |axis: usize, input: f64| {
            let (start, length) = (first.visible[axis], first.visible[axis + 2]);
            ((input - offset[axis]) / scale[axis]).max(start).min(start + length).clamp(0.0, sides[axis])
        };
        let (right, bottom) = (last.position.0 + last.out.0, last.position.1 + last.out.1);
        Geometry {
            fit: self.first.fit,
            width,
            height,
            scale,
            offset,
            visible: [
                to_photograph(0, 0.0),
                to_photograph(1, 0.0),
                to_photograph(0, canvas[0]),
                to_photograph(1, canvas[1]),
            ],
            padding: [last.position.0, last.position.1, last.canvas.0 - right, last.canvas.1 - bottom],
        }
    }
}

impl Placement {
    /// Scale and offset of x and y.
    fn affine(&self) -> ([f64; 2], [f64; 2]) {
        let [left, top, width, height] = self.visible;
        let scale = [f64::from(self.out.0) / width, f64::from(self.out.1) / height];
        (scale, [f64::from(self.position.0) - left * scale[0], f64::from(self.position.1) - top * scale[1]])
    }
}

impl ResizeStep {
    fn place(self, image: (u32, u32)) -> Placement {
        let Self { fit, rule, cover, canvas } = self;
        // No decoder returns an image without pixels. If one did, the image would be placed as a line or a point;
        // dividing by its side would panic.
        let image = (image.0.max(1), image.1.max(1));
        let whole = [0.0, 0.0, f64::from(image.0), f64::from(image.1)];
        match fit {
            Fit::Crop => centre(image, rule.resized(image, cover), canvas),
            Fit::Stretch => Placement { visible: whole, out: canvas, position: (0, 0), canvas },
            Fit::Letterbox => {
                let [across, down] = [f64::from(canvas.0) / whole[2], f64::from(canvas.1) / whole[3]];
                let fitted = |side: f64, max: u32| ((side * across.min(down)).round() as u32).clamp(1, max);
                let out = (fitted(whole[2], canvas.0), fitted(whole[3], canvas.1));
                // An odd pixel of the border goes to the right and to the bottom.
                let position = ((canvas.0 - out.0) / 2, (canvas.1 - out.1) / 2);
                Placement { visible: whole, out, position, canvas }
            }
        }
    }
}

/// Places the centre of a photograph that is resized to `resized` on a canvas. Where it is smaller than the canvas,
/// all of it is visible. All three sizes are width and height.
fn centre(image: (u32, u32), resized: (u64, u64), canvas: (u32, u32)) -> Placement {
    // Start and length in the photograph, length and position on the canvas.
    let axis = |old: u32, new: u64, canvas: u32| match new.checked_sub(u64::from(canvas)) {
        Some(surplus) => {
            let scale = f64::from(old) / new as f64;
            // As Python's `round`, halves go to the even number.
            let offset = (surplus as f64 / 2.0).round_ties_even();
            (offset * scale, f64::from(canvas) * scale, canvas, 0)
        }
        // An odd pixel of the border goes to the right and to the bottom.
        None => (0.0, f64::from(old), new as u32, (canvas - new as u32) / 2),
    };
    let (left, width, out_width, x) = axis(image.0, resized.0, canvas.0);
    let (top, height, out_height, y) = axis(image.1, resized.1, canvas.1);
    Placement { visible: [left, top, width, height], out: (out_width, out_height), position: (x, y), canvas }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use image::metadata::Orientation;
    use image::{DynamicImage, Rgb, RgbImage};
    use proptest::prelude::*;

    use ghostserve_manifest::Interpolation;

    use super::*;
    use crate::preprocess::{Crop, Pixels, Scale, Transform};

    fn spec(source: Option<usize>) -> InputSpec {
        InputSpec { source, ..InputSpec::imagenet() }
    }

    fn squash() -> InputSpec {
        InputSpec { crop_mode: CropMode::Squash, interpolation: Interpolation::Bilinear, ..spec(None) }
    }

    fn border() -> InputSpec {
        InputSpec { crop_mode: CropMode::Border, interpolation: Interpolation::Lanczos, ..spec(None) }
    }

    fn wide() -> InputSpec {
        InputSpec { crop: [192, 256], resize: Resize::Sides([202, 269]), ..spec(None) }
    }

    /// Returns left, top, right and bottom of a green box on black, where it is half as bright.
    fn green_box(image: &RgbImage) -> [f64; 4] {
        let row = |y: u32| (0..image.width()).map(|x| f64::from(image.get_pixel(x, y)[1])).collect::<Vec<_>>();
        let column = |x: u32| (0..image.height()).map(|y| f64::from(image.get_pixel(x, y)[1])).collect::<Vec<_>>();
        let bright = image.enumerate_pixels().filter(|(_, _, p)| p[1] > 200 && p[0] < 60);
        let (mut x, mut y, mut n) = (0, 0, 0);
        for (px, py, _) in bright {
            (x, y, n) = (x + px, y + py, n + 1);
        }
        let edge = |values: &[f64], from: usize, step: isize| {
            let mut at = from as isize;
            while (0..values.len() as isize).contains(&(at + step)) && values[(at + step) as usize] >= 128.0 {
                at += step;
            }
            at as f64
        };
        let (x, y) = (x / n, y / n);
        let (across, down) = (row(y), column(x));
        [
            edge(&across, x as usize, -1),
            edge(&down, y as usize, -1),
            edge(&across, x as usize, 1) + 1.0,
            edge(&down, y as usize, 1) + 1.0,
        ]
    }

    #[test]
    fn a_marker_is_found_where_the_geometry_says() {
        let sides = [(640, 480), (480, 640), (1200, 300), (300, 1000), (2000, 1500), (224, 224), (97, 131)];
        let (own, small) = (spec(None), spec(Some(96)));
        let views = [
            (own, [224, 224]),
            (own, [320, 416]),
            (own, [640, 640]),
            (own, [416, 320]),
            (small, [224, 224]),
            (squash(), [224, 224]),
            (squash(), [320, 416]),
            (border(), [224, 224]),
            (border(), [320, 416]),
            (wide(), [192, 256]),
            (wide(), [320, 320]),
        ];
        let mut checked = 0;
        for (width, height) in sides {
            // A green box that is off the centre and visible in every view.
            let marker = [0.42, 0.40, 0.55, 0.58];
            let edges = [width, height, width, height].map(f64::from);
            let marker: [f64; 4] = std::array::from_fn(|i| (marker[i] * edges[i]).round());
            let image = RgbImage::from_fn(width, height, |x, y| {
                let (x, y) = (f64::from(x), f64::from(y));
                let inside = (marker[0]..marker[2]).contains(&x) && (marker[1]..marker[3]).contains(&y);
                if inside { Rgb([0, 255, 0]) } else { Rgb([0, 0, 0]) }
            });
            for (spec, size) in views {
                for fit in [Fit::Crop, Fit::Letterbox, Fit::Stretch] {
                    for orientation in [Orientation::NoTransforms, Orientation::Rotate90, Orientation::FlipHorizontal] {
                        // The stored image is turned so that the orientation turns it back.
                        let mut stored = DynamicImage::ImageRgb8(image.clone());
                        stored.apply_orientation(match orientation {
                            Orientation::Rotate90 => Orientation::Rotate270,
                            other => other,
                        });
                        let stored = stored.into_rgb8();
                        let sides = stored.dimensions();
                        let pixels = Pixels { rgb: stored, stored: sides, scale: Scale::Full, orientation };
                        let transform = Arc::new(Transform::new(spec).view(size, fit));
                        let crop = Crop::new(&transform, &pixels);
                        assert_eq!(crop.pixels().unwrap().dimensions(), (size[1] as u32, size[0] as u32));

                        let geometry = transform.geometry(width, height);
                        let on_input = green_box(crop.pixels().unwrap());
                        let is_small = spec.source.is_some() && fit == Fit::Crop;
                        for (i, (input, edge)) in on_input.into_iter().zip(marker).enumerate() {
                            let expected = edge * geometry.scale[i % 2] + geometry.offset[i % 2];
                            // The tolerance is a pixel of the input. Pixels of the small source are three times as
                            // wide.
                            let tolerance = if is_small { 2.0 } else { 1.0 };
                            let what = format!("{width}x{height} {spec:?} {size:?} {fit:?} {orientation:?} edge {i}");
                            assert!((input - expected).abs() <= tolerance, "{what}: {input}, expected {expected}");
                            checked += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(checked, 7 * 11 * 3 * 3 * 4);
    }

    #[test]
    fn the_geometry_of_a_letterbox_is_exact() {
        let transform = Transform::new(spec(None)).view([640, 640], Fit::Letterbox);
        let geometry = transform.geometry(1280, 721);
        // 721 / 2 = 360.5 is rounded to 361 rows, with 139 above and 140 below.
        assert_eq!((geometry.padding, geometry.offset), ([0, 139, 0, 140], [0.0, 139.0]));
        assert_eq!(geometry.scale, [0.5, 361.0 / 721.0]);
        assert_eq!(geometry.visible, [0.0, 0.0, 1280.0, 721.0]);
        let crop = Transform::new(spec(None)).geometry(512, 256);
        assert_eq!((crop.scale, crop.offset), ([1.0, 1.0], [-144.0, -16.0]));
        assert_eq!(crop.visible, [144.0, 16.0, 368.0, 240.0]);
    }

    #[test]
    fn the_geometry_of_a_squashed_and_of_a_bordered_photograph() {
        let squashed = Transform::new(squash()).geometry(512, 256);
        assert_eq!((squashed.scale, squashed.offset), ([0.5, 1.0], [-16.0, -16.0]));
        assert_eq!((squashed.visible, squashed.padding), ([32.0, 16.0, 480.0, 240.0], [0; 4]));
        let bordered = Transform::new(border()).geometry(512, 256);
        assert_eq!((bordered.scale, bordered.offset), ([0.5, 0.5], [-16.0, 48.0]));
        assert_eq!((bordered.visible, bordered.padding), ([32.0, 0.0, 480.0, 256.0], [0, 48, 0, 48]));
        // The small source is a square of the photograph; the border around it is not the photograph's rest.
        let small = InputSpec { source: Some(100), resize: Resize::Side(200), ..border() };
        let small = Transform::new(small).geometry(200, 100);
        assert_eq!((small.visible, small.padding), ([50.0, 0.0, 150.0, 100.0], [12; 4]));
    }

    #[test]
    fn the_view_of_the_models_own_size_is_its_own_transform() {
        for source in [None, Some(96)] {
            let own = Transform::new(spec(source));
            assert_eq!(own.view([224, 224], Fit::Crop).steps(), own.steps());
            assert_eq!(own.view([320, 320], Fit::Crop).geometry(365, 365).scale, [1.0, 1.0], "365 = 320 · 256 / 224");
        }
        for spec in [squash(), border(), wide()] {
            assert_eq!(ResizeSteps::of_view(&spec, spec.crop, Fit::Crop), ResizeSteps::of_model(&spec));
        }
    }

    #[test]
    fn the_border_is_the_mean_colour() {
        let rgb = RgbImage::from_pixel(100, 50, Rgb([255, 0, 0]));
        let pixels = Pixels { rgb, stored: (100, 50), scale: Scale::Full, orientation: Orientation::NoTransforms };
        let view = Transform::new(spec(None)).view([64, 64], Fit::Letterbox).crop(&pixels);
        // ImageNet's mean, times 255.
        let mean = Rgb([124, 116, 104]);
        assert_eq!((view.get_pixel(0, 0), view.get_pixel(63, 63)), (&mean, &mean));
        assert_eq!(view.get_pixel(32, 32), &Rgb([255, 0, 0]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every size, from zero to the largest that a format can declare, has a finite box and a scale for decoding.
        #[test]
        fn every_size_has_a_finite_geometry(
            width in prop_oneof![0u32..4, 0u32..20_000, any::<u32>()],
            height in prop_oneof![0u32..4, 0u32..20_000, any::<u32>()],
            source in prop_oneof![Just(None), Just(Some(32)), Just(Some(224))],
            spec in prop_oneof![Just(spec(None)), Just(squash()), Just(border()), Just(wide())],
            rows in 2usize..20, columns in 2usize..20,
            fit in prop_oneof![Just(Fit::Crop), Just(Fit::Letterbox), Just(Fit::Stretch)],
        ) {
            let own = Transform::new(InputSpec { source, ..spec });
            for transform in [own.clone(), own.view([32 * rows, 32 * columns], fit)] {
                let geometry = transform.geometry(width, height);
                let numbers = geometry.scale.iter().chain(&geometry.offset).chain(&geometry.visible);
                prop_assert!(numbers.clone().all(|number| number.is_finite()), "{geometry:?}");
                prop_assert!(geometry.scale.iter().all(|scale| *scale > 0.0), "{geometry:?}");
                let [left, top, right, bottom] = geometry.visible;
                prop_assert!(0.0 <= left && left <= right && right <= f64::from(width.max(1)), "{geometry:?}");
                prop_assert!(0.0 <= top && top <= bottom && bottom <= f64::from(height.max(1)), "{geometry:?}");
                let _ = transform.scale(width, height);
            }
        }
    }

    #[test]
    fn photographs_of_extreme_shapes_are_fitted() {
        for (width, height) in [(1, 1), (1, 5000), (5000, 1), (3, 2)] {
            let rgb = RgbImage::from_pixel(width, height, Rgb([9, 200, 30]));
            let pixels =
                Pixels { rgb, stored: (width, height), scale: Scale::Full, orientation: Orientation::NoTransforms };
            for fit in [Fit::Crop, Fit::Letterbox, Fit::Stretch] {
                let transform = Transform::new(spec(None)).view([64, 96], fit);
                assert_eq!(transform.crop(&pixels).dimensions(), (96, 64), "{width}x{height} {fit:?}");
                let geometry = transform.geometry(width, height);
                assert!(geometry.scale.iter().chain(&geometry.offset).all(|v| v.is_finite()), "{geometry:?}");
            }
        }
    }
}
