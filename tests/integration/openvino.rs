//! OpenVINO as the execution provider. Its library is another build of ONNX Runtime, and a process can load only one
//! build, so these tests run the program. They need `make runtime EP=openvino` or GHOSTSERVE_ONNXRUNTIME_OPENVINO;
//! without it they are skipped, and say so.

use std::io::Write;
use std::path::{Path, PathBuf};

use ghostserve::runtime::{Backend, Precision, Provider};
use image::ImageFormat;
use serde_json::Value;

use crate::cli::{Process, run};
use crate::images::{JPEG, drawn_image};
use crate::models::{FOREIGN, colour_network, write_model_folder};
use crate::runtime;
use crate::server::probabilities;

const MODEL: &str = "ghostnetv2-cifar10";
const OPENVINO: Backend = Backend { provider: Provider::OpenVino, precision: Precision::F32 };

/// The folder of the library. If there is none, prints why `test` is skipped.
fn find_library(test: &str) -> Option<String> {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/onnxruntime-openvino");
    let folder = std::env::var_os("GHOSTSERVE_ONNXRUNTIME_OPENVINO").map_or_else(fetched, PathBuf::from);
    if folder.join("libonnxruntime.so").is_file() {
        return Some(folder.to_str().unwrap().to_owned());
    }
    skipped(test, &format!("{} is not there; `make runtime EP=openvino` fetches it", folder.display()));
    None
}

/// Prints why a test is skipped. Writes to stderr directly, because the test harness captures printed text.
fn skipped(test: &str, reason: &str) {
    let mut terminal = std::io::stderr();
    writeln!(terminal, "SKIPPED: {test}: {reason}").unwrap();
}

/// Whether the processor has bf16 arithmetic.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

#[test]
fn bf16_needs_openvino() {
    for arguments in [&["serve", "--listen", "127.0.0.1:0"][..], &["classify", MODEL, "photo.jpg"]] {
        let (ok, _, err) = run(&[arguments, &["--provider", "cpu", "--precision", "bf16"]].concat());
        assert!(!ok && err.contains("--precision bf16 needs --provider openvino"), "{arguments:?}: {err}");
    }
}

#[test]
fn a_library_without_openvino_is_refused_with_advice() {
    if runtime().has(OPENVINO) {
        return skipped("a_library_without_openvino_is_refused_with_advice", "the tests' own library has it");
    }
    let (ok, _, err) = run(&["serve", "--listen", "127.0.0.1:0", "--provider", "openvino"]);
    assert!(!ok && err.contains("no OpenVINO provider"), "{err}");
    assert!(err.contains("`make runtime EP=openvino`") && err.contains("--onnxruntime"), "{err}");
}

/// Starts a server. Returns its model's description, and the probabilities in class order of each of eight images.
async fn serve(arguments: &[&str]) -> (Value, Vec<Vec<f64>>) {
    let (_process, address, _log) = Process::start(arguments);
    let client = reqwest::Client::new();
    let model = client.get(format!("http://{address}/v1/models/{MODEL}")).send().await.unwrap().json().await.unwrap();
    let mut images = vec![JPEG.to_vec()];
    images.extend((0..7).map(|seed| drawn_image(80, 60, seed, ImageFormat::Png)));
    let mut rows = Vec::new();
    for image in images {
        let request = client.post(format!("http://{address}/v1/classify?top_k=10")).body(image);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        rows.push(probabilities(&answer));
    }
    (model, rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn openvino_agrees_with_the_cpu_provider_and_reports_how_closely() {
    let Some(library) = find_library("openvino_agrees_with_the_cpu_provider_and_reports_how_closely") else { return };
    let (default, expected) = serve(&[]).await;
    assert_eq!(default["plan"]["provider"], "cpu");
    assert_eq!(default["plan"]["precision"], "f32");
    assert!(default["plan"].get("agreement").is_none());
    for (precision, tolerance) in [("f32", 1e-3), ("bf16", 0.05)] {
        let arguments = ["--onnxruntime", &library, "--provider", "openvino", "--precision", precision];
        let (model, found) = serve(&arguments).await;
        let plan = &model["plan"];
        assert_eq!((&plan["provider"], &plan["precision"]), (&"openvino".into(), &precision.into()));
        assert_eq!(plan["graph"], "plain");
        let agreement = &plan["agreement"];
        assert!(agreement["inputs"].as_u64().unwrap() >= 16, "{plan}");
        assert!(agreement["top1_agreement"].as_f64().unwrap() > 0.8, "{plan}");
        assert!(agreement["max_probability_difference"].as_f64().unwrap() <= tolerance, "{plan}");
        let pairs = expected.iter().flatten().zip(found.iter().flatten());
        let worst = pairs.map(|(e, f)| (e - f).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance, "{precision}: {worst}");
    }
}

#[test]
fn openvino_runs_foreign_graphs_and_refuses_a_precision_that_changes_answers() {
    let Some(library) = find_library("openvino_runs_foreign_graphs_and_refuses_a_precision_that_changes_answers")
    else {
        return;
    };
    let photos = tempfile::tempdir().unwrap();
    let photo = photos.path().join("photo.jpg");
    std::fs::write(&photo, JPEG).unwrap();
    let classify = |offset, precision| {
        let folder = write_model_folder(FOREIGN, "red\ngreen\nblue\n", "model.onnx", &colour_network(offset));
        let (folder, photo) = (folder.path().to_str().unwrap(), photo.to_str().unwrap());
        let backend = ["--onnxruntime", &library, "--provider", "openvino", "--precision", precision];
        run(&[&["classify", folder, photo][..], &backend].concat())
    };
    let (ok, out, err) = classify(0.0, "f32");
    assert!(ok && out.contains("photo.jpg"), "{err}");
    if !has_bf16() {
        return skipped("the refusal of bf16", "this processor computes it in f32");
    }
    // The scores are so large that bf16's eight significant bits cannot represent their differences.
    let (ok, _, err) = classify(2000.0, "bf16");
    assert!(!ok && err.contains("--precision bf16 gives this model other answers"), "{err}");
    assert!(err.contains("`--precision f32` is the way out"), "{err}");
}
