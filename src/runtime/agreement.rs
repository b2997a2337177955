//! Whether a backend gives a model's answers: what must hold before one other than the default serves.
//!
//! A precision moves every number a little, and by how much depends on the model; a provider rewrites the whole graph. So
//! both are held against the plain graph in f32 on ONNX Runtime's own provider, over pictures made here: smooth noise with
//! edges in it, because on white noise a network sees little that it knows.

use schemars::JsonSchema;
use serde::Serialize;

use super::{Backend, Precision, Prepared, Runtime, RuntimeError, SessionSpec};
use crate::model::LoadedModel;
use ghostserve_manifest::{InputSpec, OutputKind};
use ghostserve_weights::synthetic_tensor;

/// Pictures that are compared at least; more if the batch sizes need more to be filled.
const INPUTS: usize = 16;

/// How a backend's answers differ from the reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Agreement {
    /// Pictures compared.
    pub inputs: usize,
    /// Share of them with the same most probable class.
    pub top1_agreement: f64,
    /// The largest difference of any class's probability.
    pub max_probability_difference: f32,
}

impl Backend {
    /// How far a probability may be from the reference's. OpenVINO sums in another order, which moves those of the embedded
    /// model by a millionth; bf16 has eight bits, which move them by up to 0.02.
    fn tolerance(self) -> f32 {
        match self.precision {
            Precision::F32 => 1e-3,
            Precision::Bf16 => 0.05,
        }
    }
}

/// Counts as answers come in.
#[derive(Debug)]
struct Comparison {
    tolerance: f32,
    kind: OutputKind,
    inputs: usize,
    same: usize,
    /// Another class than the reference's, though that was not a near tie.
    wrong: usize,
    worst: f32,
    /// The largest difference as a share of what was allowed there.
    used: f32,
}

impl Comparison {
    fn new(tolerance: f32, kind: OutputKind) -> Self {
        Self { tolerance, kind, inputs: 0, same: 0, wrong: 0, worst: 0.0, used: 0.0 }
    }

    /// Takes the scores of one picture.
    fn add(&mut self, expected: &[f32], found: &[f32]) {
        let (expected, found) = (probabilities(expected, self.kind), probabilities(found, self.kind));
        let (class, margin) = best(&expected);
        // Among a thousand classes of which none is likely, all probabilities are small, and so must differences be.
        let allowed = self.tolerance * expected.get(class).map_or(1.0, |top| (2.0 * top).min(1.0));
        let same = best(&found).0 == class;
        self.inputs += 1;
        self.same += usize::from(same);
        // Where the reference itself can hardly choose, either choice is as good.
        self.wrong += usize::from(!same && margin >= allowed);
        for (e, f) in expected.iter().zip(&found) {
            let difference = (e - f).abs();
            // Not a number is further than anything.
            let difference = if difference.is_nan() { f32::INFINITY } else { difference };
            self.worst = self.worst.max(difference);
            self.used = self.used.max(difference / allowed);
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
        self.wrong == 0 && self.used <= 1.0
    }
}

/// A row's probabilities.
fn probabilities(scores: &[f32], kind: OutputKind) -> Vec<f32> {
    if kind == OutputKind::Probabilities {
        return scores.to_vec();
    }
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// The most probable class, and how far it is ahead of the next.
fn best(probabilities: &[f32]) -> (usize, f32) {
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
    /// Runs a model on `spec`'s backend and on the reference, at every batch size, and compares.
    ///
    /// # Errors
    /// They do not agree; or one does not take the model.
    pub(super) fn agree(
        &self,
        graph: &Prepared,
        model: &LoadedModel,
        spec: SessionSpec,
    ) -> Result<Agreement, RuntimeError> {
        let mut reference = self.session(graph, SessionSpec { backend: Backend::default(), ..spec })?;
        let mut chosen = self.session(graph, spec)?;
        let sizes = match chosen.batch_sizes() {
            none if none.is_empty() => vec![spec.max_batch.max(1)],
            sizes => sizes,
        };
        let inputs = INPUTS.max(sizes.iter().sum());
        let mut comparison = Comparison::new(spec.backend.tolerance(), model.manifest.network.output);
        for &size in sizes.iter().cycle() {
            let next = comparison.inputs..inputs.min(comparison.inputs + size);
            if next.is_empty() {
                break;
            }
            let pictures: Vec<_> = next.map(|index| picture(index, &model.manifest.input)).collect();
            let rows: Vec<&[f32]> = pictures.iter().map(Vec::as_slice).collect();
            let load = |e: crate::batch::ModelFailure| RuntimeError::Load(e.to_string());
            let (expected, found) = (reference.run_rows(&rows).map_err(load)?, chosen.run_rows(&rows).map_err(load)?);
            expected.iter().zip(&found).for_each(|(e, f)| comparison.add(e, f));
        }
        let agreement = comparison.agreement();
        let Backend { provider, precision } = spec.backend;
        let used = comparison.used;
        tracing::info!(%provider, %precision, ?agreement, share_of_tolerance = used, "compared with f32 on cpu");
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

/// Grids of noise that a picture is the sum of: their sides, and their shares.
const OCTAVES: [(usize, f32); 4] = [(3, 0.5), (6, 0.25), (13, 0.15), (29, 0.1)];

/// Rectangles of one colour in a picture.
const RECTANGLES: usize = 4;

/// Picture number `index` as a row of the network's input: the same on every machine.
fn picture(index: usize, input: &InputSpec) -> Vec<f32> {
    let [height, width] = input.crop;
    // In ±1; every kind of noise has a stream of its own.
    let noise = |kind: &str, shape: &[usize]| {
        let values = synthetic_tensor(&format!("calibration.{index}.{kind}"), shape);
        values.into_iter().map(|v| v / 2.0).collect::<Vec<f32>>()
    };
    let mut pixels = vec![0.5; 3 * height * width];
    for (side, share) in OCTAVES {
        let grid = noise(&format!("octave{side}"), &[3, side, side]);
        for (channel, plane) in pixels.chunks_exact_mut(height * width).enumerate() {
            for (y, line) in plane.chunks_exact_mut(width).enumerate() {
                let (top, below) = position(y, height, side);
                for (x, pixel) in line.iter_mut().enumerate() {
                    let (left, right) = position(x, width, side);
                    let at = |row: usize, column: usize| grid[(channel * side + row) * side + column];
                    let along = |row: usize| at(row, left) * (1.0 - right) + at(row, left + 1) * right;
                    *pixel += share * (along(top) * (1.0 - below) + along(top + 1) * below);
                }
            }
        }
    }
    // A corner, an opposite one, a colour, and how opaque it is.
    for shape in noise("rectangles", &[RECTANGLES, 8]).chunks_exact(8) {
        let cell = |value: f32, size: usize| ((value + 1.0) / 2.0 * size as f32) as usize;
        let (rows, columns) = (
            cell(shape[0].min(shape[1]), height)..cell(shape[0].max(shape[1]), height),
            cell(shape[2].min(shape[3]), width)..cell(shape[2].max(shape[3]), width),
        );
        let opaque = (shape[7] + 1.0) / 2.0;
        for (channel, plane) in pixels.chunks_exact_mut(height * width).enumerate() {
            let colour = (shape[4 + channel] + 1.0) / 2.0;
            for line in plane.chunks_exact_mut(width).skip(rows.start).take(rows.len()) {
                for pixel in line.iter_mut().skip(columns.start).take(columns.len()) {
                    *pixel += opaque * (colour - *pixel);
                }
            }
        }
    }
    for (plane, (mean, std)) in pixels.chunks_exact_mut(height * width).zip(input.mean.iter().zip(input.std)) {
        plane.iter_mut().for_each(|pixel| *pixel = (pixel.clamp(0.0, 1.0) - mean) / std);
    }
    pixels
}

/// The grid point before a pixel, and how far the pixel is on the way to the next, of a grid that spans the picture.
fn position(pixel: usize, size: usize, side: usize) -> (usize, f32) {
    let position = pixel as f32 / size as f32 * (side - 1) as f32;
    let point = (position as usize).min(side - 2);
    (point, position - point as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(tolerance: f32, pairs: &[(&[f32], &[f32])]) -> Comparison {
        let mut comparison = Comparison::new(tolerance, OutputKind::Probabilities);
        pairs.iter().for_each(|(expected, found)| comparison.add(expected, found));
        comparison
    }

    #[test]
    fn small_differences_agree() {
        let comparison = compared(0.05, &[(&[0.7, 0.2, 0.1], &[0.68, 0.21, 0.11]), (&[0.1, 0.9], &[0.1, 0.9])]);
        assert!(comparison.holds());
        let Agreement { inputs, top1_agreement, max_probability_difference } = comparison.agreement();
        assert_eq!((inputs, top1_agreement), (2, 1.0));
        assert!((max_probability_difference - 0.02).abs() < 1e-6);
    }

    #[test]
    fn another_class_or_a_large_difference_disagree() {
        // Each probability is within the tolerance, and yet the class is another.
        let comparison = compared(0.05, &[(&[0.50, 0.44, 0.06], &[0.46, 0.48, 0.06])]);
        assert!(comparison.worst <= 0.05 && comparison.wrong == 1 && !comparison.holds());
        let comparison = compared(0.05, &[(&[0.7, 0.3], &[0.6, 0.4])]);
        assert!(comparison.wrong == 0 && !comparison.holds());
    }

    #[test]
    fn near_ties_may_fall_either_way_but_are_counted() {
        let comparison = compared(0.05, &[(&[0.41, 0.39, 0.2], &[0.39, 0.41, 0.2])]);
        assert!(comparison.holds());
        assert_eq!(comparison.agreement().top1_agreement, 0.0);
    }

    #[test]
    fn where_no_class_is_likely_less_is_allowed() {
        // Far below the tolerance, and yet nothing in common.
        let (mut expected, mut found) = ([0.001; 1000], [0.001; 1000]);
        (expected[3], found[3], expected[4], found[4]) = (0.0018, 0.0002, 0.0002, 0.0018);
        let comparison = compared(0.05, &[(&expected, &found)]);
        assert!(comparison.worst < 0.002 && comparison.wrong == 1 && comparison.used > 1.0);
        (found[3], found[4]) = (0.0017, 0.0003);
        assert!(compared(0.05, &[(&expected, &found)]).holds());
    }

    #[test]
    fn not_a_number_never_agrees() {
        assert!(!compared(0.05, &[(&[0.6, 0.4], &[f32::NAN, 0.4])]).holds());
        let mut comparison = Comparison::new(0.05, OutputKind::Logits);
        comparison.add(&[1.0, 2.0], &[f32::NAN, 2.0]);
        assert!(!comparison.holds());
    }

    #[test]
    fn logits_are_compared_as_probabilities() {
        // A constant added to all logits changes nothing.
        let mut comparison = Comparison::new(1e-3, OutputKind::Logits);
        comparison.add(&[1.0, 3.0, -2.0], &[101.0, 103.0, 98.0]);
        assert!(comparison.holds(), "{comparison:?}");
    }

    #[test]
    fn pictures_are_smooth_have_edges_and_differ() {
        let input = InputSpec { crop: [48, 64], source: None, resize: 64, mean: [0.5; 3], std: [0.25; 3] };
        let all: Vec<_> = (0..INPUTS).map(|index| picture(index, &input)).collect();
        let (mut smooth, mut edges) = (0, 0);
        for (index, picture) in all.iter().enumerate() {
            assert_eq!(picture.len(), 3 * 48 * 64);
            assert!(picture.iter().all(|v| (-2.0..=2.0).contains(v)));
            let spread = |values: &[f32]| values.iter().fold((2.0f32, -2.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
            let (low, high) = spread(picture);
            assert!(high - low > 1.0, "picture {index} is flat: {low} to {high}");
            for line in picture.chunks_exact(64) {
                smooth += line.windows(2).filter(|w| (w[0] - w[1]).abs() < 0.2).count();
                edges += line.windows(2).filter(|w| (w[0] - w[1]).abs() > 0.5).count();
            }
            assert!(all[..index].iter().all(|other| other != picture));
        }
        assert!(edges > 100 && smooth > 50 * edges, "{smooth} smooth, {edges} edges");
    }
}
