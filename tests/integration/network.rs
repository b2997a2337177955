//! The networks' numbers against the reference implementation.
//!
//! Reference: timm 1.0.31 in PyTorch, fp32, on synthetic weights that both sides make from the keys alone
//! (`tests/goldens/make_network.py`). Tolerance: 1e-4 absolute on logits with a standard deviation of about 1; the
//! reference itself is 2e-6 from its own fp64 result.

use ghostserve::ghostnet::{Network, Size, preset};
use ghostserve::model::OnnxSource;
use ghostserve::runtime::SessionSpec;
use ghostserve::weights::{SafetensorsFile, Synthetic, TensorSource, synthetic_tensor};

use crate::runtime;

const TOLERANCE: f32 = 1e-4;

fn golden(name: &str) -> Vec<f32> {
    let bytes = include_bytes!("../goldens/network.safetensors");
    let file = SafetensorsFile::parse(bytes).unwrap();
    let shape = file.shape(name, &[]).unwrap();
    assert_eq!(shape, [2, 1000]);
    file.read(name, &shape).unwrap()
}

fn logits_agree(network: &str, side: usize, golden_name: &str) {
    let size = Size { height: side, width: side };
    let graph = Network::new(preset(network).unwrap()).unwrap().lower(&Synthetic, size).unwrap();
    let graph = OnnxSource::Memory(graph.into_onnx(&[]));
    let spec = SessionSpec { input: [side, side], classes: 1000, max_batch: 2, threads: 1 };
    let mut session = runtime().session(&graph, spec).unwrap();
    let input = synthetic_tensor("input", &[2, 3, side, side]);
    let rows: Vec<&[f32]> = input.chunks_exact(input.len() / 2).collect();

    let expected = golden(golden_name);
    let found = session.run_rows(&rows).unwrap().concat();
    let worst = expected.iter().zip(&found).map(|(e, f)| (e - f).abs()).fold(0.0, f32::max);
    println!("{golden_name}: largest difference {worst:.2e}");
    assert_eq!(found.len(), expected.len());
    assert!(worst <= TOLERANCE, "{golden_name}: {worst}");

    // The batch dimension is symbolic: the same rows one at a time give the same answers.
    let alone = session.run_rows(&rows[1..]).unwrap().concat();
    let worst = alone.iter().zip(&found[1000..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-5, "batch of one against batch of two: {worst}");
}

#[test]
fn width_1_0_agrees_with_timm() {
    logits_agree("ghostnetv2_100", 224, "ghostnetv2_100.logits");
}

#[test]
fn width_1_3_agrees_with_timm() {
    logits_agree("ghostnetv2_130", 224, "ghostnetv2_130.logits");
}

#[test]
fn width_1_6_agrees_with_timm() {
    logits_agree("ghostnetv2_160", 224, "ghostnetv2_160.logits");
}

#[test]
fn a_small_input_agrees_with_timm() {
    logits_agree("ghostnetv2_100", 64, "ghostnetv2_100.64.logits");
}

#[test]
fn synthetic_weights_are_the_same_bits_as_in_python() {
    #[derive(serde::Deserialize)]
    struct Goldens {
        values: Vec<Golden>,
    }
    #[derive(serde::Deserialize)]
    struct Golden {
        key: String,
        shape: Vec<usize>,
        first: Vec<String>,
        last: String,
    }
    let goldens: Goldens = serde_json::from_str(include_str!("../goldens/synthetic.json")).unwrap();
    assert!(goldens.values.len() > 10);
    for Golden { key, shape, first, last } in goldens.values {
        let bits: Vec<String> = synthetic_tensor(&key, &shape).iter().map(|v| format!("{:08x}", v.to_bits())).collect();
        assert_eq!(bits[..first.len()], first, "{key}");
        assert_eq!(bits.last(), Some(&last), "{key}");
    }
}
