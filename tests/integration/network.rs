//! The networks' outputs compared with the reference implementation, in both forms of the graph.
//!
//! Reference: timm 1.0.31 in PyTorch, fp32, and for the ablations our own PyTorch reference, which equals timm where
//! timm has the network (`tests/goldens/make_network.py`). Both sides generate the synthetic weights from the keys.
//! Tolerance: 1e-4 absolute on logits, whose standard deviation is about 1, on embeddings and gates; on feature maps,
//! whose values reach 44, 1e-4 of the largest value where that is more than 1. fp32 itself is 6e-6 from fp64 on logits.

use std::collections::BTreeMap;

use ghostserve::model::{ModelGraph, OnnxSource};
use ghostserve::runtime::{Backend, NamedTensor, PreparedGraph, SessionSpec};
use ghostserve_ghostnet::{Config, Cost, Form, Network, Output, PRESETS, Size, Target, preset};
use ghostserve_kernels::native_block;
use ghostserve_weights::{SafetensorsFile, Seeded, Synthetic, TensorSource, synthetic_tensor};

use crate::runtime;

const TOLERANCE: f32 = 1e-4;

struct Goldens(SafetensorsFile<'static>);

impl Goldens {
    fn read() -> Self {
        Self(SafetensorsFile::parse(include_bytes!("../goldens/network.safetensors")).unwrap())
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name, &[]).unwrap_or_else(|| panic!("no golden `{name}`"));
        self.0.read(name, &shape).unwrap()
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<_> = self.0.keys().into_iter().filter(|k| k.starts_with(prefix)).collect();
        names.sort();
        names
    }
}

/// The plain form, and the blocked form if ONNX Runtime has one for this processor.
fn forms() -> Vec<Form> {
    let blocked = native_block().map(Form::Blocked);
    if blocked.is_none() {
        println!("SKIPPED: the blocked form: ONNX Runtime has none for this processor");
    }
    std::iter::once(Form::Plain).chain(blocked).collect()
}

fn published_network(name: &str) -> Network {
    Network::new(preset(name).unwrap()).unwrap()
}

fn onnx_graph(network: &Network, size: [usize; 2], outputs: &[Output], form: Form) -> OnnxSource {
    let target = Target { size: Size { height: size[0], width: size[1] }, outputs, form };
    OnnxSource::Memory(network.lower(&Synthetic, &target).unwrap().graph.into_onnx(&[]).into())
}

fn run(network: &Network, input: [usize; 4], outputs: &[Output], form: Form) -> Vec<NamedTensor> {
    let graph = onnx_graph(network, [input[2], input[3]], outputs, form);
    // The goldens are made with an input of two images; this takes its first images.
    let two = synthetic_tensor("input", &[2, input[1], input[2], input[3]]);
    runtime().run_once(&graph, input, &two[..input.iter().product()]).unwrap()
}

/// Largest absolute difference, relative to the largest expected value if that is more than 1.
fn largest_difference(expected: &[f32], found: &[f32]) -> f32 {
    assert_eq!(expected.len(), found.len());
    let scale = expected.iter().fold(1.0f32, |max, v| max.max(v.abs()));
    expected.iter().zip(found).map(|(e, f)| (e - f).abs()).fold(0.0, f32::max) / scale
}

fn assert_agrees(what: &str, expected: &[f32], found: &[f32]) {
    let worst = largest_difference(expected, found);
    println!("{what}: largest difference {worst:.2e}");
    assert!(worst <= TOLERANCE, "{what}: {worst}");
}

#[test]
fn logits_of_every_published_network_agree_with_timm() {
    let goldens = Goldens::read();
    for name in PRESETS {
        if goldens.names(&format!("{name}.logits")).is_empty() {
            // timm has no DFC for MobileNetV2 (a variant covers it), and the goldens leave out one of its widths.
            assert!(name.starts_with("mobilenetv2"), "{name}");
            continue;
        }
        for form in forms() {
            let found = run(&published_network(name), [2, 3, 224, 224], &[Output::Logits], form);
            assert_agrees(&format!("{name} {form:?}"), &goldens.get(&format!("{name}.logits")), &found[0].data);
        }
    }
}

#[test]
fn sessions_of_fixed_batch_sizes_agree_with_timm() {
    let expected = Goldens::read().get("ghostnetv2_100.64.logits");
    for form in forms() {
        let graph = onnx_graph(&published_network("ghostnetv2_100"), [64, 64], &[Output::Logits], form);
        let spec =
            SessionSpec { input: [64, 64], classes: 1000, max_batch: 4, threads: 1, backend: Backend::default() };
        let mut session = runtime().session(&graph.into(), spec).unwrap();
        assert_eq!(session.batch_sizes(), [4, 2, 1]);
        let input = synthetic_tensor("input", &[2, 3, 64, 64]);
        let (a, b) = input.split_at(input.len() / 2);
        // Every combination of the batch sizes: 1, 2, 2 + 1, 4, 4 + 2 + 1.
        for rows in [&[a][..], &[a, b], &[b, a, b], &[a, b, b, a], &[a, a, b, b, a, b, a]] {
            let found = session.run_rows(rows).unwrap();
            for (row, found) in rows.iter().zip(&found) {
                let expected = if *row == a { &expected[..1000] } else { &expected[1000..] };
                assert!(largest_difference(expected, found) <= TOLERANCE, "{form:?}, {} rows", rows.len());
            }
            assert_eq!(found.len(), rows.len());
        }
    }
}

/// Elements 0, 97, 194, … of the flattened maps: those that the goldens contain.
fn sample(maps: &NamedTensor) -> Vec<f32> {
    maps.data.iter().step_by(97).copied().collect()
}

#[test]
fn features_embeddings_and_attention_agree_with_timm() {
    #[derive(serde::Deserialize)]
    struct Features {
        shapes: BTreeMap<String, Vec<usize>>,
    }
    let shapes = serde_json::from_str::<Features>(include_str!("../goldens/features.json")).unwrap().shapes;
    let goldens = Goldens::read();
    let mut compared = 0;
    for (name, [height, width], tag) in [
        ("ghostnet_100", [224, 224], ""),
        ("ghostnetv2_100", [224, 224], ""),
        ("ghostnetv3_100", [224, 224], ""),
        ("mobilenetv2_100", [224, 224], ""),
        ("ghostnetv2_100", [320, 416], ".320x416"),
    ] {
        let network = published_network(name);
        let outputs = network.outputs();
        for form in forms() {
            for found in run(&network, [1, 3, height, width], &outputs, form) {
                let output = found.name.parse::<Output>().unwrap();
                let predicted = network.shapes(Size { height, width }).of(output).unwrap();
                assert_eq!(predicted.shape, found.shape[1..], "{name} {output}");
                let golden = match found.name.split('.').collect::<Vec<_>>()[..] {
                    ["embedding"] => format!("{name}{tag}.embedding"),
                    ["timm", level] => format!("{name}{tag}.features.timm.{level}"),
                    [level] if level.starts_with('c') => format!("{name}{tag}.features.deepest.{level}"),
                    _ => format!("{name}{tag}.{}", found.name),
                };
                if golden.ends_with("logits") || goldens.names(&golden).first() != Some(&golden) {
                    continue;
                }
                if let Some(shape) = shapes.get(&golden) {
                    assert_eq!(&found.shape, shape, "{golden}");
                    assert_agrees(&format!("{golden} {form:?}"), &goldens.get(&golden), &sample(&found));
                } else {
                    assert_agrees(&format!("{golden} {form:?}"), &goldens.get(&golden), &found.data);
                }
                compared += 1;
            }
        }
    }
    // Four networks with ten maps and an embedding, six maps of the large input, fourteen gates.
    assert_eq!(compared, (4 * 11 + 6 + 14) * forms().len());
}

#[test]
fn every_ablation_agrees_with_the_reference() {
    #[derive(serde::Deserialize)]
    struct Variant {
        input: [usize; 4],
        classes: usize,
        parameters: Option<u64>,
        macs: Option<u64>,
    }
    let variants: BTreeMap<String, Variant> = serde_json::from_str(include_str!("../goldens/variants.json")).unwrap();
    let goldens = Goldens::read();
    assert!(variants.len() > 20);
    for (name, Variant { input, classes, parameters, macs }) in variants {
        let path = format!("{}/tests/goldens/variants/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let config = Config::parse(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((config.classes, config.input_channels), (classes, input[1]), "{name}");
        let network = Network::new(config).unwrap();
        let cost = network.cost(Size { height: input[2], width: input[3] });
        if let (Some(parameters), Some(macs)) = (parameters, macs) {
            assert_eq!(cost, Cost { parameters, macs }, "{name}");
        }
        let expected = goldens.get(&format!("variant.{name}.logits"));
        // The logits must not change when every output is selected.
        let all = network.outputs();
        for form in forms() {
            let found = run(&network, input, &[Output::Logits], form);
            assert_agrees(&format!("{name} {form:?}"), &expected, &found[0].data);
            let found = run(&network, input, &all, form);
            let logits = found.iter().find(|t| t.name == "logits").unwrap();
            assert_agrees(&format!("{name} {form:?}, all outputs"), &expected, &logits.data);
            assert_eq!(found.len(), all.len(), "{name}");
        }
    }
}

#[test]
fn both_forms_have_the_same_outputs() {
    if native_block().is_none() {
        println!("SKIPPED: the blocked form: ONNX Runtime has none for this processor");
        return;
    }
    // Every output of a network that combines all options, and of networks whose layouts do not line up without
    // conversions.
    for name in ["everything", "mobile_both", "after_bicubic_odd", "after_nearest"] {
        let path = format!("{}/tests/goldens/variants/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let network = Network::new(Config::parse(&std::fs::read_to_string(path).unwrap()).unwrap()).unwrap();
        let input = [2, network.config().input_channels, 96, 128];
        let outputs = network.outputs();
        let [plain, blocked] = [forms()[0], forms()[1]].map(|form| run(&network, input, &outputs, form));
        for (plain, blocked) in plain.iter().zip(&blocked) {
            assert_eq!((&plain.name, &plain.shape), (&blocked.name, &blocked.shape), "{name}");
            let worst = largest_difference(&plain.data, &blocked.data);
            assert!(worst <= TOLERANCE, "{name} {}: {worst}", plain.name);
        }
    }
}

#[test]
fn a_blocked_graph_that_disagrees_or_does_not_load_is_not_used() {
    let Some(block) = native_block() else {
        println!("SKIPPED: the blocked form: ONNX Runtime has none for this processor");
        return;
    };
    let network = published_network("ghostnetv2_100");
    let source = |form| onnx_graph(&network, [64, 64], &[Output::Logits], form);
    let other_weights = || {
        let size = Size { height: 64, width: 64 };
        let target = Target { size, outputs: &[Output::Logits], form: Form::Blocked(block) };
        OnnxSource::Memory(network.lower(&Seeded(1), &target).unwrap().graph.into_onnx(&[]).into())
    };
    let prepared = |blocked| {
        let built = ModelGraph::Built { input: [3, 64, 64], plain: source(Form::Plain), blocked };
        runtime().prepare(&built).unwrap().form().as_str()
    };
    assert_eq!(prepared(Some(source(Form::Blocked(block)))), "blocked");
    assert_eq!(prepared(None), "plain");
    assert_eq!(prepared(Some(other_weights())), "plain");
    assert_eq!(prepared(Some(OnnxSource::Memory((*b"garbage").into()))), "plain");
}

/// A graph as other programs write it: its batch dimension (`dim_param: "batch"`, seven bytes of the file) is replaced.
fn with_batch_dimension(replacement: [u8; 7]) -> PreparedGraph {
    let OnnxSource::Memory(bytes) =
        onnx_graph(&published_network("ghostnetv2_100"), [64, 64], &[Output::Logits], Form::Plain)
    else {
        unreachable!("graphs are made in memory")
    };
    let mut bytes = bytes.to_vec();
    let positions: Vec<_> = (0..bytes.len() - 7).filter(|&i| bytes[i..i + 7] == *b"\x12\x05batch").collect();
    assert_eq!(positions.len(), 2, "of the input and of the output");
    positions.iter().for_each(|&i| bytes[i..i + 7].copy_from_slice(&replacement));
    OnnxSource::Memory(bytes.into()).into()
}

#[test]
fn foreign_graphs_keep_their_own_batch_dimension() {
    let golden = Goldens::read().get("ghostnetv2_100.64.logits");
    let expected = [&golden[1000..], &golden[..1000], &golden[1000..]].concat();
    let input = synthetic_tensor("input", &[2, 3, 64, 64]);
    let (a, b) = input.split_at(input.len() / 2);
    // With another name, one session accepts every batch size. With the size 2 (and an unknown field that fills the
    // seven bytes), the session accepts only that size.
    for (graph, sizes) in [
        (with_batch_dimension(*b"\x12\x05count"), &[][..]),
        (with_batch_dimension([0x08, 2, 0x7a, 3, b'x', b'x', b'x']), &[2]),
    ] {
        for max_batch in [1, 2, 4] {
            let spec =
                SessionSpec { input: [64, 64], classes: 1000, max_batch, threads: 1, backend: Backend::default() };
            let mut session = runtime().session(&graph, spec).unwrap();
            assert_eq!(session.batch_sizes(), sizes);
            let found = session.run_rows(&[b, a, b]).unwrap().concat();
            assert_agrees(&format!("batch sizes {sizes:?} of up to {max_batch}"), &expected, &found);
        }
    }
}

#[test]
fn sessions_can_be_created_concurrently() {
    let graph = PreparedGraph::from(onnx_graph(
        &published_network("ghostnet_050"),
        [32, 32],
        &[Output::Logits],
        *forms().last().unwrap(),
    ));
    let spec = SessionSpec { input: [32, 32], classes: 1000, max_batch: 4, threads: 1, backend: Backend::default() };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| runtime().session(&graph, spec).map(|_| ()))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
}

#[test]
fn parameter_and_mac_counts_equal_the_reference() {
    #[derive(serde::Deserialize)]
    struct Count {
        parameters: u64,
        macs: u64,
    }
    let counts: BTreeMap<String, Count> = serde_json::from_str(include_str!("../goldens/counts.json")).unwrap();
    assert!(counts.len() > 10);
    for (name, Count { parameters, macs }) in counts {
        let cost = published_network(&name).cost(Size { height: 224, width: 224 });
        assert_eq!(cost, Cost { parameters, macs }, "{name}");
    }
}

#[test]
fn synthetic_weights_equal_pythons_bit_for_bit() {
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
