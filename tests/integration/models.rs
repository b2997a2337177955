//! Models: their descriptions, and valid and invalid model folders.

use std::path::Path;

use ghostserve::model::{EMBEDDED_MODEL, ModelFolder};
use ghostserve::server::{Server, StartError};
use ghostserve_ghostnet::graph::{Conv2d, Graph, Tensor};
use ghostserve_manifest::Digest;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::cli::run;
use crate::images::{JPEG, encode};
use crate::runtime;
use crate::server::{TestServer, answer, code, config};

#[tokio::test(flavor = "multi_thread")]
async fn the_default_model_is_described() {
    let server = TestServer::start().await;
    let (status, list) = answer(server.get("/v1/models").await).await;
    assert_eq!((status, list["models"].as_array().unwrap().len()), (200, 1));
    assert_eq!(list["models"][0]["id"], EMBEDDED_MODEL);
    assert_eq!(list["models"][0]["default"], true);

    let (_, model) = answer(server.get("/v1/models/ghostnetv2-cifar10").await).await;
    assert_eq!(model["architecture"], "ghostnetv2_100");
    // ImageNet's 6,156,908 minus 990 outputs, each with 1280 weights and a bias.
    assert_eq!(model["parameters"], 6_156_908 - 990 * 1281);
    assert_eq!(model["input"]["size"], json!([64, 64]));
    assert_eq!(model["input"]["source"], 32);
    assert_eq!(model["labels"][3]["label"], "cat");
    assert_eq!(model["plan"]["workers"], 2);
    assert!(model["plan"]["onnxruntime"].as_str().unwrap().starts_with("1."), "{}", model["plan"]);

    assert_eq!(code(answer(server.get("/v1/models/other").await).await), (404, "unknown_model".into()));
    assert_eq!(code(answer(server.get("/v1/models?id=x").await).await), (400, "invalid_parameter".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_can_have_their_own_listener() {
    let server = TestServer::with(|c| c.addresses.admin_addr = Some(([127, 0, 0, 1], 0).into())).await;
    assert_eq!(server.classify("", JPEG).await.0, 200);
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(server.get(path).await.status(), 404, "{path} is not for clients");
        let url = format!("http://{}{path}", server.admin.unwrap());
        let response = server.client.get(url).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    let url = format!("http://{}/v1/classify", server.admin.unwrap());
    assert_eq!(server.client.post(url).body(JPEG).send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stage_is_measured() {
    let server = TestServer::start().await;
    for _ in 0..3 {
        assert_eq!(server.classify("", JPEG).await.0, 200);
    }
    for stage in ["read", "decode", "resize", "queue", "infer", "encode", "total"] {
        let series = format!("ghostserve_stage_duration_seconds_count{{stage=\"{stage}\"}}");
        assert_eq!(server.metric(&series).await, 3.0, "{stage}");
    }
    let requests = "ghostserve_http_requests_total{route=\"/v1/classify\",status=\"200\"}";
    assert_eq!(server.metric(requests).await, 3.0);
    assert_eq!(server.metric("ghostserve_batch_size_sum{model=\"ghostnetv2-cifar10\"}").await, 3.0);
}

/// Writes a model folder. In the manifest, `DIGEST` stands for the digest of the weights.
pub(crate) fn write_model_folder(manifest: &str, labels: &str, file: &str, weights: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let manifest = manifest.replace("DIGEST", Digest::of(weights).as_str());
    for (name, bytes) in [("manifest.toml", manifest.as_bytes()), ("labels.txt", labels.as_bytes()), (file, weights)] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Manifest of an ONNX classifier that is not one of our networks.
pub(crate) const FOREIGN: &str = r#"
id = "colours"
[network]
architecture = "onnx"
weights = "model.onnx"
digest = "DIGEST"
output = "logits"
[input]
size = [8, 8]
resize = 8
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
[labels]
file = "labels.txt"
"#;

/// A network that classifies an image by its strongest channel: red, green or blue. A score is 20 times the channel's
/// mean, plus `offset` times the sum of all three means, which softmax cancels.
pub(crate) fn colour_network(offset: f32) -> Vec<u8> {
    let mut graph = Graph::new("colours");
    let x = graph.input("pixels", &[3, 8, 8]).unwrap();
    let data = (0..9).map(|i| if i % 4 == 0 { 20.0 + offset } else { offset }).collect();
    let weight = Tensor { shape: vec![3, 3, 1, 1], data };
    let conv = Conv2d { weight, bias: None, stride: 1, padding: [0, 0], dilation: 1, groups: 1 };
    let x = graph.conv2d("scale", &x, conv).unwrap();
    let x = graph.global_average_pool("mean", &x).unwrap();
    let x = graph.flatten("flatten", &x).unwrap();
    graph.output("scores", &x).unwrap();
    graph.into_onnx(&[])
}

/// A PNG image of one colour.
fn one_colour(rgb: [u8; 3]) -> Vec<u8> {
    encode(&RgbImage::from_pixel(30, 20, Rgb(rgb)), ImageFormat::Png)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_onnx_classifier_is_served_from_a_folder() {
    let folder = write_model_folder(FOREIGN, "n1\tred\nn2\tgreen\nn3\tblue\n", "model.onnx", &colour_network(0.0));
    let server = TestServer::with(|c| c.model = folder.path().to_str().unwrap().to_owned()).await;
    for (rgb, label) in [([250, 0, 0], "red"), ([0, 250, 9], "green"), ([9, 0, 250], "blue")] {
        let (status, json) = server.classify("", one_colour(rgb)).await;
        assert_eq!(status, 200);
        let best = &json["results"][0]["predictions"][0];
        assert_eq!(best["label"], label);
        assert!(best["wnid"].as_str().unwrap().starts_with('n'));
        assert!(best["probability"].as_f64().unwrap() > 0.99);
        assert_eq!(json["results"][0]["predictions"].as_array().unwrap().len(), 3, "fewer classes than five");
    }
    let (_, model) = answer(server.get("/v1/models/colours").await).await;
    assert_eq!((&model["architecture"], &model["parameters"]), (&json!("onnx"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_digest_is_served_with_its_transform_and_a_warning() {
    let weights = colour_network(0.0);
    let manifest = FOREIGN
        .replace("digest = \"DIGEST\"\n", "")
        .replace("resize = 8\n", "resize = [9, 10]\ncrop_mode = \"border\"\ninterpolation = \"bilinear\"\n");
    let folder = write_model_folder(&manifest, "red\ngreen\nblue\n", "model.onnx", &weights);
    let path = folder.path().to_str().unwrap().to_owned();

    // Without a log, the line to add goes to standard error.
    let digest = Digest::of(&weights);
    let (ok, out, err) = run(&["inspect", &path]);
    assert!(ok && out.contains(digest.as_str()), "{out}{err}");
    assert!(err.contains("manifest.toml has no `network.digest`"), "{err}");
    assert!(err.contains(&format!("\ndigest = \"{digest}\"\n")), "{err}");

    let server = TestServer::with(|c| c.model = path).await;
    let (status, json) = server.classify("", one_colour([0, 250, 9])).await;
    assert_eq!((status, &json["results"][0]["predictions"][0]["label"]), (200, &json!("green")));
    assert_eq!(json["model"]["digest"], digest.as_str(), "that of the file which was loaded");
    let (_, model) = answer(server.get("/v1/models/colours").await).await;
    assert_eq!(model["digest"], digest.as_str());
    assert_eq!(model["interpolation"], "bilinear, antialiased");
    let input = &model["input"];
    assert_eq!((&input["resize"], &input["crop_mode"]), (&json!([9, 10]), &json!("border")));
    assert_eq!(input["interpolation"], "bilinear");
}

async fn start_error(folder: &Path) -> String {
    let mut config = config();
    config.model = folder.to_str().unwrap().to_owned();
    match Server::start(config, &runtime()).await {
        Err(error @ (StartError::Model(_) | StartError::Runtime(_))) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_of_an_invalid_model_folder_says_what_is_wrong_and_where() {
    let labels = "red\ngreen\nblue\n";
    let good = colour_network(0.0);

    let two = write_model_folder(FOREIGN, "red\ngreen\n", "model.onnx", &good);
    let error = start_error(two.path()).await;
    assert!(error.contains("2 scores an image") && error.contains("scores"), "{error}");

    let size = write_model_folder(&FOREIGN.replace("[8, 8]", "[4, 8]"), labels, "model.onnx", &good);
    let error = start_error(size.path()).await;
    assert!(error.contains("Nx3x4x8") && error.contains("pixels"), "{error}");

    let changed = write_model_folder(FOREIGN, labels, "model.onnx", &good);
    std::fs::write(changed.path().join("model.onnx"), &good[1..]).unwrap();
    let error = start_error(changed.path()).await;
    assert!(
        error.contains("model.onnx") && error.contains("expected sha256:") && error.contains("found sha256:"),
        "{error}"
    );

    let garbage = write_model_folder(FOREIGN, labels, "model.onnx", b"\x08garbage that is no model");
    let error = start_error(garbage.path()).await;
    assert!(error.contains("model.onnx") && error.contains("ONNX"), "{error}");

    let unknown = write_model_folder(&FOREIGN.replace("\"onnx\"", "\"resnet50\""), labels, "model.onnx", &good);
    let error = start_error(unknown.path()).await;
    assert!(error.contains("ghostnetv2_100") && error.contains("`resnet50`"), "{error}");

    // The weights belong to another architecture than the manifest names.
    let other = FOREIGN.replace("\"onnx\"", "\"ghostnetv2_130\"").replace("model.onnx", "weights.safetensors");
    let weights =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ghostnetv2-cifar10/weights.safetensors"));
    let wrong = write_model_folder(
        &other.replace("[8, 8]", "[64, 64]").replace("resize = 8", "resize = 64"),
        labels,
        "weights.safetensors",
        &weights.unwrap(),
    );
    let error = start_error(wrong.path()).await;
    assert!(error.contains("`conv_stem.weight`: expected shape [20, 3, 3, 3], found [16, 3, 3, 3]"), "{error}");

    let error = start_error(Path::new("no/such/folder")).await;
    assert!(error.contains("no/such/folder") && error.contains("manifest.toml"), "{error}");
}

#[test]
fn the_embedded_model_is_the_folder_in_the_repository() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ghostnetv2-cifar10");
    let from_folder = ModelFolder::resolve(folder.to_str().unwrap()).unwrap().load().unwrap();
    let embedded = ModelFolder::resolve(EMBEDDED_MODEL).unwrap().load().unwrap();
    assert_eq!(from_folder.manifest, embedded.manifest);
    assert_eq!(from_folder.labels, embedded.labels);
}
