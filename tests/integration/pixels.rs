//! Pre-processing compared with the reference: Pillow, torchvision and timm's evaluation transform.
//!
//! The reference crops are 8-bit RGB, before normalisation (`tests/goldens/make_images.py`). Tolerance: mean absolute
//! difference of at most 0.5, largest of at most 3, of 255. The decoders agree with the reference exactly, except for
//! CMYK in TIFF; the other differences come from the last bits of the resizer's fixed-point arithmetic.

use std::io::Write;
use std::path::{Path, PathBuf};

use ghostserve::preprocess::{Format, ImageError, ImageLimits, Transform, decode, probe};
use ghostserve_manifest::{CropMode, InputSpec, Interpolation, Resize};
use image::RgbImage;
use serde::Deserialize;

use crate::images::input_spec;

const MEAN_TOLERANCE: f64 = 0.5;
const MAX_TOLERANCE: u8 = 3;

fn crop(file: &[u8], spec: InputSpec) -> RgbImage {
    let pixels = decode(probe(file, ImageLimits::default()).unwrap()).unwrap();
    Transform::new(spec).exact().crop(&pixels)
}

/// Mean and largest absolute difference.
fn difference(found: &[u8], expected: &[u8]) -> (f64, u8) {
    assert_eq!(found.len(), expected.len());
    let differences = || found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences().map(u64::from).sum();
    (sum as f64 / found.len() as f64, differences().max().unwrap_or(0))
}

#[derive(Deserialize)]
struct Case {
    file: String,
    format: Format,
    width: u32,
    height: u32,
    what: String,
    transforms: Vec<CaseTransform>,
}

#[derive(Deserialize)]
struct CaseTransform {
    name: String,
    source: Option<usize>,
    resize: usize,
    crop: usize,
    expected: String,
}

/// A crop of `tests/goldens/resizes.json`: the values of a manifest, and the file with the pixels of timm or
/// torchvision.
#[derive(Deserialize)]
struct Resized {
    file: String,
    size: [usize; 2],
    interpolation: Interpolation,
    resize: Resize,
    crop_mode: CropMode,
    expected: String,
}

#[test]
fn every_filter_and_crop_mode_equals_timms_and_torchvisions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let cases: Vec<Resized> = serde_json::from_str(include_str!("../goldens/resizes.json")).unwrap();
    let (mut wrong, mut roundings) = (Vec::new(), Vec::new());
    for case in &cases {
        let Resized { size, interpolation, resize, crop_mode, .. } = *case;
        let spec = InputSpec { crop: size, interpolation, resize, crop_mode, ..InputSpec::imagenet() };
        let found = crop(&std::fs::read(folder.join(&case.file)).unwrap(), spec);
        let expected = image::open(folder.join(&case.expected)).unwrap().into_rgb8();
        assert_eq!(found.dimensions(), expected.dimensions());
        let (mean, max) = difference(&found, &expected);
        println!("{:<30} {interpolation} {crop_mode} {resize}: mean {mean:.3} max {max}", case.expected);
        if mean > MEAN_TOLERANCE || max > MAX_TOLERANCE {
            wrong.push(format!("{}, {interpolation} {crop_mode} {resize}: mean {mean:.3}, max {max}", case.file));
        }
        if crop_mode == CropMode::Center && resize.sides() == [50, 50] {
            roundings.push((&case.file, found));
        }
    }
    assert!(cases.len() > 50 && wrong.is_empty(), "{wrong:#?}");
    // torchvision rounds the longer side down, timm to the nearest: a number and two equal numbers are two rules.
    let differ = roundings.chunks(2).any(|pair| pair[0].0 == pair[1].0 && difference(&pair[0].1, &pair[1].1).1 > 20);
    assert!(differ, "a case tells the two rules apart");
}

#[test]
fn every_kind_of_image_file_decodes_as_in_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let cases: Vec<Case> = serde_json::from_str(include_str!("../goldens/cases.json")).unwrap();
    assert!(cases.len() > 50);
    let mut wrong = Vec::new();
    for case in cases {
        let bytes = std::fs::read(folder.join(&case.file)).unwrap();
        let header = match probe(&bytes, ImageLimits::default()) {
            Ok(header) => header,
            // The TIFF library does not read palettes; the error says so, and what to do.
            Err(ImageError::UnsupportedVariant { format: Format::Tiff, detail })
                if case.what.starts_with("palette") =>
            {
                assert!(detail.contains("Palette"), "{detail}");
                continue;
            }
            Err(error) => {
                wrong.push(format!("{} ({}): {error}", case.file, case.what));
                continue;
            }
        };
        let info = header.info();
        assert_eq!(
            (info.format, info.width, info.height),
            (Some(case.format), case.width, case.height),
            "{}",
            case.file
        );
        for t in &case.transforms {
            let expected = image::open(folder.join(&t.expected)).unwrap().into_rgb8();
            let found = crop(&bytes, input_spec(t.source, t.resize, t.crop));
            let (mean, max) = difference(&found, &expected);
            println!("{:<40} {:<9} mean {mean:.3} max {max}", case.file, t.name);
            // The TIFF library's CMYK conversion truncates where Pillow rounds: half a level on average.
            let allowed =
                if case.what.starts_with("CMYK") && case.format == Format::Tiff { 0.6 } else { MEAN_TOLERANCE };
            if mean > allowed || max > MAX_TOLERANCE {
                wrong.push(format!("{} ({}), {}: mean {mean:.3}, max {max}", case.file, case.what, t.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The same comparison for a folder of your own photographs:
/// `python tests/goldens/reference_photos.py PHOTOS OUT`, then this test with `GHOSTSERVE_PHOTOS=PHOTOS` and
/// `GHOSTSERVE_PHOTOS_REFERENCE=OUT`.
#[test]
fn photographs_decode_as_in_the_reference() {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(photos), Some(reference)) = (folder("GHOSTSERVE_PHOTOS"), folder("GHOSTSERVE_PHOTOS_REFERENCE")) else {
        // To stderr directly, because the test harness captures printed text.
        let reason = "GHOSTSERVE_PHOTOS and GHOSTSERVE_PHOTOS_REFERENCE are not set; see the test's comment";
        writeln!(std::io::stderr(), "SKIPPED: photographs_decode_as_in_the_reference: {reason}").unwrap();
        return;
    };
    for (name, suffix, spec) in
        [("imagenet", "rgb", input_spec(None, 256, 224)), ("cifar", "cifar.rgb", input_spec(Some(32), 64, 64))]
    {
        let (mut worst, mut sum, mut photographs) = ((0.0f64, 0u8), 0.0, 0);
        for photo in std::fs::read_dir(&photos).unwrap().map(|entry| entry.unwrap().path()) {
            let stem = photo.file_stem().unwrap().to_string_lossy().into_owned();
            let expected = std::fs::read(reference.join(format!("{stem}.{suffix}"))).unwrap();
            let (mean, max) = difference(&crop(&std::fs::read(&photo).unwrap(), spec), &expected);
            if mean > MEAN_TOLERANCE || max > MAX_TOLERANCE {
                println!("{name}: {stem}: mean {mean:.3}, max {max}");
            }
            worst = (worst.0.max(mean), worst.1.max(max));
            sum += mean;
            photographs += 1;
        }
        assert!(photographs > 0);
        let mean = sum / f64::from(photographs);
        println!("{name}: {photographs} photographs: mean {mean:.4}; the worst: mean {:.4}, max {}", worst.0, worst.1);
        assert!(worst.0 <= MEAN_TOLERANCE && worst.1 <= MAX_TOLERANCE);
    }
}
