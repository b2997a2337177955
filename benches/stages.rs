//! The stages of a request on one thread: decoding, resizing, assembling a batch, inference. Criterion reports medians.
//!
//! Environment variables: PHOTOS is a folder of JPEG files; LARGE a file that is timed separately, decoded at full size
//! and at the reduced size that the server decodes.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod support;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use ghostserve::model::ModelFolder;
use ghostserve::preprocess::{Crop, ImageLimits, Pixels, Transform, decode, probe};
use ghostserve::row::Row;
use ghostserve::runtime::{Backend, LIBRARY_ENV, Runtime, SessionSpec};
use ghostserve_manifest::InputSpec;
use support::{SIDE, load_photos, random_model};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let photos = load_photos();
    let spec = InputSpec { crop: [SIDE, SIDE], ..InputSpec::imagenet() };
    let transform = Arc::new(Transform::new(spec));

    let mut group = criterion.benchmark_group("per image");
    group.throughput(Throughput::Elements(1));
    let mut next_photo = photos.iter().cycle();
    group.bench_function("decode", |b| {
        b.iter_batched(|| next_photo.next().unwrap(), |photo| decode_reduced(photo, &transform), BatchSize::SmallInput);
    });
    let pixels: Vec<Pixels> = photos.iter().map(|photo| decode_reduced(photo, &transform)).collect();
    let mut next_pixels = pixels.iter().cycle();
    group.bench_function("resize", |b| {
        b.iter_batched(|| next_pixels.next().unwrap(), |pixels| Crop::new(&transform, pixels), BatchSize::SmallInput);
    });
    group.finish();

    if let Some(file) = std::env::var_os("LARGE").map(PathBuf::from) {
        let photo = std::fs::read(&file).expect("LARGE is a file");
        let mut group = criterion.benchmark_group(file.file_name().unwrap_or_default().to_string_lossy());
        group.sample_size(20);
        for (name, transform) in [("reduced", Transform::new(spec)), ("full size", Transform::new(spec).exact())] {
            let transform = Arc::new(transform);
            group.bench_function(name, |b| b.iter(|| Crop::new(&transform, &decode_reduced(&photo, &transform))));
        }
        group.finish();
    }

    let library = std::env::var_os(LIBRARY_ENV).expect("cargo sets it, see .cargo/config.toml");
    let runtime = Runtime::load(Some(Path::new(&library))).expect("`make runtime` has been run");
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path());
    let model = ModelFolder::resolve(&folder.path().to_string_lossy()).unwrap().load().unwrap();
    let spec =
        SessionSpec { input: [SIDE, SIDE], classes: 1000, max_batch: 4, threads: 1, backend: Backend::default() };
    let graph = runtime.prepare(&model.graph).unwrap();
    let mut session = runtime.session(&graph, spec).unwrap();
    let crops: Vec<Crop> = pixels.iter().take(4).cycle().take(4).map(|pixels| Crop::new(&transform, pixels)).collect();
    for size in [1, 2, 4] {
        let mut group = criterion.benchmark_group(format!("batch of {size}"));
        group.throughput(Throughput::Elements(size as u64));
        let mut buffer = vec![0.0; size * transform.row_len()];
        group.bench_function("assembly", |b| {
            b.iter(|| {
                let rows = buffer.chunks_exact_mut(transform.row_len());
                rows.zip(&crops).for_each(|(row, crop)| crop.write(row));
                black_box(&buffer);
            });
        });
        group.bench_function("inference", |b| b.iter(|| session.run_rows(&crops[..size]).unwrap()));
        group.finish();
    }
    criterion.final_summary();
}

/// Decodes a photograph as the server does: at the reduced scale that the transform needs.
fn decode_reduced(photo: &[u8], transform: &Transform) -> Pixels {
    let probed = probe(photo, ImageLimits::default()).unwrap();
    let info = probed.info();
    decode(probed.reduce(transform.scale(info.width, info.height))).unwrap()
}
