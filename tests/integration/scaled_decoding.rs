//! Decoding large JPEG files at a fraction of their size. The network's input and its answers stay within the bounds
//! below of those from the image at full size.
//!
//! The images are drawn to resemble photographs, with a pattern that is worse than any photograph
//! (`tests/goldens/make_scaled.py`).

use std::path::Path;

use ghostserve::model::{EMBEDDED_MODEL, ModelFolder};
use ghostserve::preprocess::{ImageLimits, Scale, Transform, decode, probe};
use ghostserve::runtime::{Backend, SessionSpec};
use ghostserve_manifest::{InputSpec, Interpolation};
use image::RgbImage;

use crate::images::input_spec;
use crate::runtime;

/// Largest allowed differences between decoding at a fraction and at full size.
struct Bounds {
    /// Mean difference of the network's input over an image, of 255.
    mean: f64,
    /// Largest difference of the network's input, of 255.
    max: u8,
    /// Largest difference of a class's probability.
    probability: f32,
}

fn bounds(name: &str) -> Bounds {
    match name {
        // The pattern: fine stripes and dots, finer than any lens reproduces.
        "scaled/scene-3.jpg" => Bounds { mean: 1.0, max: 12, probability: 0.03 },
        _ => Bounds { mean: 0.5, max: 10, probability: 0.012 },
    }
}

fn scenes() -> impl Iterator<Item = (String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let scenes = (0..6).map(|k| format!("scaled/scene-{k}.jpg"));
    scenes.chain(["images/jpeg-large.jpg".to_owned()]).map(move |name| {
        let bytes = std::fs::read(folder.join(&name)).unwrap();
        (name, bytes)
    })
}

/// The network's input for a file, and the scale at which the file was decoded.
fn view(file: &[u8], transform: &Transform) -> (RgbImage, Scale) {
    let header = probe(file, ImageLimits::default()).unwrap();
    let info = header.info();
    let scale = transform.scale(info.width, info.height);
    let pixels = decode(header.reduce(scale)).unwrap();
    (transform.crop(&pixels), scale)
}

#[test]
fn reduced_decoding_keeps_the_networks_input_within_its_bounds() {
    let (mut scales, mut exceeded) = (Vec::new(), Vec::new());
    for (name, file) in scenes() {
        let sizes =
            [(None, 240, 224), (None, 128, 112), (None, 73, 64), (None, 32, 32), (Some(32), 64, 64), (None, 24, 24)];
        let filters = [Interpolation::Bicubic, Interpolation::Bilinear, Interpolation::Lanczos];
        for ((source, resize, crop), interpolation) in
            sizes.into_iter().flat_map(|size| filters.map(|filter| (size, filter)))
        {
            let transform = Transform::new(InputSpec { interpolation, ..input_spec(source, resize, crop) });
            let (found, scale) = view(&file, &transform);
            let (expected, full) = view(&file, &transform.exact());
            assert_eq!(full, Scale::Full);
            let differences = || found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b));
            let mean = differences().map(f64::from).sum::<f64>() / found.len() as f64;
            let max = differences().max().unwrap();
            println!("{name:<22} to {resize:>3} at {scale:?}, {interpolation}: mean {mean:.3}, max {max}");
            if mean > bounds(&name).mean || max > bounds(&name).max {
                exceeded.push(format!("{name} to {resize} at {scale:?}, {interpolation}: mean {mean}, max {max}"));
            }
            if scale == Scale::Full {
                assert_eq!(max, 0);
            }
            scales.push(scale);
        }
    }
    assert!(exceeded.is_empty(), "{exceeded:#?}");
    assert!(Scale::ALL.iter().all(|scale| scales.contains(scale)), "{scales:?}");
}

#[test]
fn reduced_decoding_keeps_the_networks_answers_within_their_bounds() {
    let model = ModelFolder::resolve(EMBEDDED_MODEL).unwrap().load().unwrap();
    let runtime = runtime();
    let input = model.manifest.input;
    let spec = SessionSpec {
        input: input.crop,
        classes: model.labels.len(),
        max_batch: 2,
        threads: 1,
        backend: Backend::default(),
    };
    let graph = runtime.prepare(&model.graph).unwrap();
    let mut session = runtime.session(&graph, spec).unwrap();
    let transform = Transform::new(input);
    for (name, file) in scenes() {
        let row = |transform: &Transform| {
            let (crop, scale) = view(&file, transform);
            let mut row = vec![0.0; transform.row_len()];
            transform.normalise(&crop, &mut row);
            (row, scale)
        };
        let ((found, scale), (expected, _)) = (row(&transform), row(&transform.clone().exact()));
        assert_ne!(scale, Scale::Full, "{name}");
        let scores = session.run_rows(&[&found[..], &expected[..]]).unwrap();
        let [(found, class), (expected, expected_class)] = [probabilities(&scores[0]), probabilities(&scores[1])];
        let largest = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name:<22} at {scale:?}: {} {:.4}, differs by {largest:.4}", model.labels[class].name, found[class]);
        let bound = bounds(&name).probability;
        assert!(largest <= bound, "{name}: {largest}");
        // Two classes whose probabilities differ by less than the bound may swap.
        let lead = expected[expected_class] - expected[class];
        assert!(class == expected_class || lead <= bound, "{name}: {class} instead of {expected_class}, by {lead}");
    }
}

/// The softmax of scores, and the index of the largest.
fn probabilities(scores: &[f32]) -> (Vec<f32>, usize) {
    let top = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
    let powers = scores.iter().map(|score| (score - scores[top]).exp()).collect::<Vec<_>>();
    let sum = powers.iter().sum::<f32>();
    (powers.into_iter().map(|power| power / sum).collect(), top)
}

#[test]
fn an_image_is_reduced_only_if_two_and_a_half_times_the_target_remains() {
    let imagenet = Transform::new(input_spec(None, 256, 224));
    for (width, height, scale) in [
        (500, 375, Scale::Full),
        (2000, 1279, Scale::Full),
        (2000, 1280, Scale::Half),
        (1280, 2000, Scale::Half),
        (4000, 3000, Scale::Quarter),
        (9000, 5120, Scale::Eighth),
        (1, 16_000, Scale::Full),
    ] {
        assert_eq!(imagenet.scale(width, height), scale, "{width}x{height}");
        assert_eq!(imagenet.clone().exact().scale(width, height), Scale::Full);
    }
    // If an image is reduced before it is enlarged, the reduced size counts.
    let small = Transform::new(input_spec(Some(32), 64, 64));
    assert_eq!(
        [(500, 375), (800, 640), (180, 159)].map(|(w, h)| small.scale(w, h)),
        [Scale::Quarter, Scale::Eighth, Scale::Full]
    );
}
