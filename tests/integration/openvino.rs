//! OpenVINO as the provider. Its library is another ONNX Runtime, of which a process can load one: these tests run the
//! program. They need `make runtime EP=openvino`, or GHOSTSERVE_ONNXRUNTIME_OPENVINO, and say so if it is not there.

use std::io::Write;
use std::path::{Path, PathBuf};

use ghostserve::runtime::{Backend, Precision, Provider};
use image::ImageFormat;
use serde_json::Value;

use crate::cli::{Process, run};
use crate::images::{JPEG, picture};
use crate::models::{FOREIGN, colours_over, folder};
use crate::runtime;

const MODEL: &str = "ghostnetv2-cifar10";
const OPENVINO: Backend = Backend { provider: Provider::OpenVino, precision: Precision::F32 };

/// The folder of the library, or the reason why a test is skipped.
fn library(test: &str) -> Option<String> {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".runtime/onnxruntime-openvino");
    let folder = std::env::var_os("GHOSTSERVE_ONNXRUNTIME_OPENVINO").map_or_else(fetched, PathBuf::from);
    if folder.join("libonnxruntime.so").is_file() {
        return Some(folder.to_str().unwrap().to_owned());
    }
    skipped(test, &format!("{} is not there; `make runtime EP=openvino` fetches it", folder.display()));
    None
}

/// Says so past the test harness, which would swallow it.
fn skipped(test: &str, why: &str) {
    let mut terminal = std::io::stderr();
    writeln!(terminal, "SKIPPED: {test}: {why}").unwrap();
}

/// Whether the processor computes in bf16 when told to.
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
fn a_library_without_openvino_says_where_there_is_one() {
    if runtime().has(OPENVINO) {
        return skipped("a_library_without_openvino_says_where_there_is_one", "the tests' own library has it");
    }
    let (ok, _, err) = run(&["serve", "--listen", "127.0.0.1:0", "--provider", "openvino"]);
    assert!(!ok && err.contains("no OpenVINO provider"), "{err}");
    assert!(err.contains("`make runtime EP=openvino`") && err.contains("--onnxruntime"), "{err}");
}

/// Starts a server and returns its model's description and the probabilities, in the order of classes, of some pictures.
async fn serve(arguments: &[&str]) -> (Value, Vec<Vec<f64>>) {
    let (_process, address, _log) = Process::start(arguments);
    let client = reqwest::Client::new();
    let model = client.get(format!("http://{address}/v1/models/{MODEL}")).send().await.unwrap().json().await.unwrap();
    let mut pictures = vec![JPEG.to_vec()];
    pictures.extend((0..7).map(|seed| picture(80, 60, seed, ImageFormat::Png)));
    let mut rows = Vec::new();
    for picture in pictures {
        let request = client.post(format!("http://{address}/v1/classify?top_k=10")).body(picture);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        let mut row = vec![0.0; 10];
        for prediction in answer["results"][0]["predictions"].as_array().unwrap() {
            row[prediction["class"].as_u64().unwrap() as usize] = prediction["probability"].as_f64().unwrap();
        }
        rows.push(row);
    }
    (model, rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn openvino_answers_as_the_default_does_and_says_how_closely() {
    let Some(library) = library("openvino_answers_as_the_default_does_and_says_how_closely") else { return };
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
fn openvino_takes_foreign_graphs_and_refuses_to_change_their_answers() {
    let Some(library) = library("openvino_takes_foreign_graphs_and_refuses_to_change_their_answers") else { return };
    let photos = tempfile::tempdir().unwrap();
    let photo = photos.path().join("photo.jpg");
    std::fs::write(&photo, JPEG).unwrap();
    let classify = |all, precision| {
        let folder = folder(FOREIGN, "red\ngreen\nblue\n", "model.onnx", &colours_over(all));
        let (folder, photo) = (folder.path().to_str().unwrap(), photo.to_str().unwrap());
        let backend = ["--onnxruntime", &library, "--provider", "openvino", "--precision", precision];
        run(&[&["classify", folder, photo][..], &backend].concat())
    };
    let (ok, out, err) = classify(0.0, "f32");
    assert!(ok && out.contains("photo.jpg"), "{err}");
    if !has_bf16() {
        return skipped("the refusal of bf16", "this processor computes it in f32");
    }
    // Sums so large that eight bits have no room for what tells the classes apart.
    let (ok, _, err) = classify(2000.0, "bf16");
    assert!(!ok && err.contains("--precision bf16 gives this model other answers"), "{err}");
    assert!(err.contains("`--precision f32` is the way out"), "{err}");
}
