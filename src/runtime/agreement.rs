//! Checks that a backend computes a model's outputs correctly. A backend other than the default serves only after
//! this check.
//!
//! A lower precision changes every number a little, by an amount that depends on the model. A provider rewrites the
//! whole graph. So the outputs of both are compared with those of the plain graph in f32 on ONNX Runtime's own
//! provider, on generated images. These are smooth noise with edges, because white noise has few features that a
//! network reacts to.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Backend, Precision, PreparedGraph, Runtime, RuntimeError, SessionSpec};
use crate::model::LoadedModel;
use crate::softmax::softmax;
use ghostserve_manifest::{InputSpec, OutputKind};
use ghostserve_weights::synthetic_tensor;

/// Smallest number of images to compare. There are more if filling every batch size needs more.
const MIN_INPUTS: usize = 16;

/// How a backend's outputs differ from those of the reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Agreement {
    /// Number of images compared.
    pub inputs: usize,
    /// Share of the images with the same most probable class.
    pub top1_agreement: f64,
    /// The largest difference in the probability of any class.
    pub max_probability_difference: f32,
}

impl Backend {
    /// The allowed difference of a probability from the reference. OpenVINO sums in a different order, which changes
    /// the probabilities of the embedded model by a millionth. bf16 has eight bits, which changes them by up to 0.02.
    fn tolerance(self) -> f32 {
        match self.precision {
            Precision::F32 => 1e-3,
            Precision::Bf16 => 0.05,
        }
    }
}

/// The running result of comparing scores with the reference.
#[derive(Debug)]
struct Comparison {
    tolerance: f32,
    kind: OutputKind,
    inputs: usize,
    /// Images with the same class as the reference.
    same: usize,
    /// Images with a different class where the reference was not a near tie.
    wrong: usize,
    /// The largest difference of a probability.
    worst: f32,
    /// The largest difference as a share of the difference allowed for that image.
    worst_share: f32,
}

impl Comparison {
    fn new(tolerance: f32, kind: OutputKind) -> Self {
        Self { tolerance, kind, inputs: 0, same: 0, wrong: 0, worst: 0.0, worst_share: 0.0 }
    }

    /// Compares the scores of one image.
    fn add(&mut self, expected: &[f32], found: &[f32]) {
        let (expected, found) = (to_probabilities(expected, self.kind), to_probabilities(found, self.kind));
        let (class, margin) = best_class(&expected);
        // Where none of a thousand classes is likely, all probabilities are small, so the allowed difference is
        // small, too.
        let allowed = self.tolerance * expected.get(class).map_or(1.0, |top| (2.0 * top).min(1.0));
        let same = best_class(&found).0 == class;
        self.inputs += 1;
        self.same += usize::from(same);
        // At a near tie in the reference, either class is right.
        self.wrong += usize::from(!same && margin >= allowed);
        for (e, f) in expected.iter().zip(&found) {
            let difference = (e - f).abs();
            // NaN counts as infinitely different.
            let difference = if difference.is_nan() { f32::INFINITY } else { difference };
            self.worst = self.worst.max(difference);
            self.worst_share = self.worst_share.max(difference / allowed);
        }
    }

    fn agreement(&self) -> Agreement {
        Agreement {
            inputs: self.inputs,
            top1_agreement: self.same as f64 / self.inputs.max(1) as f64,
            max_probability_difference: self.worst,
        }
    }

    fn holds(&self) -> bool {
        self.wrong == 0 && self.worst_share <= 1.0
    }
}

/// The probabilities that a row of scores stands for.
fn to_probabilities(scores: &[f32], kind: OutputKind) -> Vec<f32> {
    let mut row = scores.to_vec();
    if kind == OutputKind::Logits {
        softmax(&mut row);
    }
    row
}

/// The most probable class, and the difference of its probability to the second.
fn best_class(probabilities: &[f32]) -> (usize, f32) {
    let (mut class, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (index, &p) in probabilities.iter().enumerate() {
        if p > first {
            (class, first, second) = (index, p, first);
        } else if p > second {
            second = p;
        }
    }
    (class, first - second)
}

impl Runtime {
    /// Runs a model on the backend of `spec` and on the reference, at every batch size, and compares the outputs.
    ///
    /// # Errors
    /// The outputs do not agree, or one of the two does not accept the model.
    pub(super) fn check_agreement(
        &self,
        graph: &PreparedGraph,
        model: &LoadedModel,
        spec: SessionSpec,
    ) -> Result<Agreement, RuntimeError> {
        let mut reference = self.session(graph, SessionSpec { backend: Backend::default(), ..spec })?;
        let mut candidate = self.session(graph, spec)?;
        let sizes = match candidate.batch_sizes() {
            none if none.is_empty() => vec![spec.max_batch.max(1)],
            sizes => sizes,
        };
        let inputs = MIN_INPUTS.max(sizes.iter().sum());
        let mut comparison = Comparison::new(spec.backend.tolerance(), model.manifest.network.output);
        for &size in sizes.iter().cycle() {
            let next = comparison.inputs..inputs.min(comparison.inputs + size);
            if next.is_empty() {
                break;
            }
            let images: Vec<_> = next.map(|index| calibration_image(index, &model.manifest.input)).collect();
            let rows: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
            let load = |e: crate::batch::ModelFailure| RuntimeError::Load(e.to_string());
            let (expected, found) =
                (reference.run_rows(&rows).map_err(load)?, candidate.run_rows(&rows).map_err(load)?);
            expected.iter().zip(&found).for_each(|(e, f)| comparison.add(e, f));
        }
        let agreement = comparison.agreement();
        let Backend { provider, precision } = spec.backend;
        let share = comparison.worst_share;
        tracing::info!(%provider, %precision, ?agreement, share_of_tolerance = share, "compared with f32 on cpu");
        if comparison.holds() {
            return Ok(agreement);
        }
        Err(RuntimeError::Disagreement {
            backend: spec.backend,
            agreement,
            wrong: comparison.wrong,
            tolerance: comparison.tolerance,
        })
    }
}

/// The grids of noise whose sum is an image: the side and the share of each.
const OCTAVES: [(usize, f32); 4] = [(3, 0.5), (6, 0.25), (13, 0.15), (29, 0.1)];

/// Number of rectangles of one colour in an image.
const RECTANGLES: usize = 4;

/// Generates image number `index` as a row of the network's input. It is the same on every machine.
fn calibration_image(index: usize, input: &InputSpec) -> Vec<f32> {
    let [height, width] = input.crop;
    // Values in ±1. Every kind of noise has its own random stream.
    let noise = |kind: &str, shape: &[usize]| {
        let values = synthetic_tensor(&format!("calibration.{index}.{kind}"), shape);
        values.into_iter().map(|v| v / 2.0).collect::<Vec<f32>>()
    };
    let mut pixels = vec![0.5; 3 * height * width];
    for (side, share) in OCTAVES {
        let grid = noise(&format!("octave{side}"), &[3, side, side]);
        for (channel, plane) in pixels.chunks_exact_mut(height * width).enumerate() {
            for (y, line) in plane.chunks_exact_mut(width).enumerate() {
                let (top, below) = grid_position(y, height, side);
                for (x, pixel) in line.iter_mut().enumerate() {
                    let (left, right) = grid_position(x, width, side);
                    let at = |row: usize, column: usize| grid[(channel * side + row) * side + column];
                    let along = |row: usize| at(row, left) * (1.0 - right) + at(row, left + 1) * right;
                    *pixel += share * (along(top) * (1.0 - below) + along(top + 1) * below);
                }
            }
        }
    }
    // Each rectangle: two opposite corners, a colour, an opacity.
    for shape in noise("rectangles", &[RECTANGLES, 8]).chunks_exact(8) {
        let cell = |value: f32, size: usize| ((value + 1.0) / 2.0 * size as f32) as usize;
        let (rows, columns) = (
            cell(shape[0].min(shape[1]), height)..cell(shape[0].max(shape[1]), height),
            cell(shape[2].min(shape[3]), width)..cell(shape[2].max(shape[3]), width),
        );
        let opacity = (shape[7] + 1.0) / 2.0;
        for (channel, plane) in pixels.chunks_exact_mut(height * width).enumerate() {
            let colour = (shape[4 + channel] + 1.0) / 2.0;
            for line in plane.chunks_exact_mut(width).skip(rows.start).take(rows.len()) {
                for pixel in line.iter_mut().skip(columns.start).take(columns.len()) {
                    *pixel += opacity * (colour - *pixel);
                }
            }
        }
    }
    for (plane, (mean, std)) in pixels.chunks_exact_mut(height * width).zip(input.mean.iter().zip(input.std)) {
        plane.iter_mut().for_each(|pixel| *pixel = (pixel.clamp(0.0, 1.0) - mean) / std);
    }
    pixels
}

/// Places a pixel on a grid that spans the image: the grid point before it, and the fraction of the way to the next.
fn grid_position(pixel: usize, size: usize, side: usize) -> (usize, f32) {
    let position = pixel as f32 / size as f32 * (side - 1) as f32;
    let point = (position as usize).min(side - 2);
    (point, position - point as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(tolerance: f32, pairs: &[(&[f32], &[f32])]) -> Comparison {
        let mut comparison = Comparison::new(tolerance, OutputKind::Probabilities);
        pairs.iter().for_each(|(expected, found)| comparison.add(expected, found));
        comparison
    }

    #[test]
    fn small_differences_agree() {
        let comparison = compare(0.05, &[(&[0.7, 0.2, 0.1], &[0.68, 0.21, 0.11]), (&[0.1, 0.9], &[0.1, 0.9])]);
        assert!(comparison.holds());
        let Agreement { inputs, top1_agreement, max_probability_difference } = comparison.agreement();
        assert_eq!((inputs, top1_agreement), (2, 1.0));
        assert!((max_probability_difference - 0.02).abs() < 1e-6);
    }

    #[test]
    fn a_different_class_or_a_large_difference_disagrees() {
        // Each probability is within the tolerance, but the class differs.
        let comparison = compare(0.05, &[(&[0.50, 0.44, 0.06], &[0.46, 0.48, 0.06])]);
        assert!(comparison.worst <= 0.05 && comparison.wrong == 1 && !comparison.holds());
        let comparison = compare(0.05, &[(&[0.7, 0.3], &[0.6, 0.4])]);
        assert!(comparison.wrong == 0 && !comparison.holds());
    }

    #[test]
    fn near_ties_may_choose_either_class_but_are_counted() {
        let comparison = compare(0.05, &[(&[0.41, 0.39, 0.2], &[0.39, 0.41, 0.2])]);
        assert!(comparison.holds());
        assert_eq!(comparison.agreement().top1_agreement, 0.0);
    }

    #[test]
    fn the_tolerance_is_smaller_where_no_class_is_likely() {
        // The differences are far below the tolerance, but the probabilities have nothing in common.
        let (mut expected, mut found) = ([0.001; 1000], [0.001; 1000]);
        (expected[3], found[3], expected[4], found[4]) = (0.0018, 0.0002, 0.0002, 0.0018);
        let comparison = compare(0.05, &[(&expected, &found)]);
        assert!(comparison.worst < 0.002 && comparison.wrong == 1 && comparison.worst_share > 1.0);
        (found[3], found[4]) = (0.0017, 0.0003);
        assert!(compare(0.05, &[(&expected, &found)]).holds());
    }

    #[test]
    fn nan_never_agrees() {
        assert!(!compare(0.05, &[(&[0.6, 0.4], &[f32::NAN, 0.4])]).holds());
        let mut comparison = Comparison::new(0.05, OutputKind::Logits);
        comparison.add(&[1.0, 2.0], &[f32::NAN, 2.0]);
        assert!(!comparison.holds());
    }

    #[test]
    fn logits_are_compared_as_probabilities() {
        // Adding a constant to all logits does not change the probabilities.
        let mut comparison = Comparison::new(1e-3, OutputKind::Logits);
        comparison.add(&[1.0, 3.0, -2.0], &[101.0, 103.0, 98.0]);
        assert!(comparison.holds(), "{comparison:?}");
    }

    #[test]
    fn calibration_images_are_smooth_have_edges_and_differ() {
        let input = InputSpec { crop: [48, 64], mean: [0.5; 3], std: [0.25; 3], ..InputSpec::imagenet() };
        let all: Vec<_> = (0..MIN_INPUTS).map(|index| calibration_image(index, &input)).collect();
        let (mut smooth, mut edges) = (0, 0);
        for (index, image) in all.iter().enumerate() {
            assert_eq!(image.len(), 3 * 48 * 64);
            assert!(image.iter().all(|v| (-2.0..=2.0).contains(v)));
            let spread = |values: &[f32]| values.iter().fold((2.0f32, -2.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
            let (low, high) = spread(image);
            assert!(high - low > 1.0, "image {index} is flat: {low} to {high}");
            for line in image.chunks_exact(64) {
                smooth += line.windows(2).filter(|w| (w[0] - w[1]).abs() < 0.2).count();
                edges += line.windows(2).filter(|w| (w[0] - w[1]).abs() > 0.5).count();
            }
            assert!(all[..index].iter().all(|other| other != image));
        }
        assert!(edges > 100 && smooth > 50 * edges, "{smooth} smooth, {edges} edges");
    }
}
