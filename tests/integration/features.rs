//! `POST /v1/features` and `POST /v1/attention`: values compared with timm, formats, geometry, bad requests.
//!
//! Reference: timm 1.0.31 on synthetic weights, for 8-bit images that both sides draw alike and that need no resize
//! (`tests/goldens/make_network.py`). Tolerance: 1e-3 of the largest value of a map in f32; in f16, additionally the
//! rounding of half precision (2⁻¹¹ of each value). Gates and probabilities, which are at most 1: 1e-3.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use ghostserve_weights::{SafetensorsFile, TensorSource};
use half::f16;
use image::{ImageFormat, Rgb, RgbImage};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::images::{JPEG, encode, png};
use crate::server::{TestServer, answer, code};
use crate::support::random_model;

const TOLERANCE: f32 = 1e-3;

/// The image that `photograph` in `make_network.py` draws, as a PNG file.
fn photograph(width: u32, height: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| {
        Rgb([0, 1, 2].map(|c| ((x * 5 + y * 3 + c * 85 + (x / 16) * (y / 16) * 37) % 256) as u8))
    });
    encode(&image, ImageFormat::Png)
}

/// A safetensors file: the metadata, and shape and elements of each tensor by name.
struct Tensors {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

fn read_safetensors(bytes: &[u8]) -> Tensors {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let data = match view.dtype() {
            safetensors::Dtype::F32 => floats(view.data(), "f32"),
            safetensors::Dtype::F16 => floats(view.data(), "f16"),
            other => panic!("{other:?}"),
        };
        (name, (view.shape().to_vec(), data))
    });
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    Tensors { tensors: tensors.collect(), metadata }
}

fn floats(bytes: &[u8], dtype: &str) -> Vec<f32> {
    match dtype {
        "f32" => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        _ => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
    }
}

async fn get(server: &TestServer, path: &str, accept: &str, body: impl Into<reqwest::Body>) -> Vec<u8> {
    let response = server.post(path).header("accept", accept).body(body).send().await.unwrap();
    let (status, kind) = (response.status(), response.headers()["content-type"].to_str().unwrap().to_owned());
    let bytes = response.bytes().await.unwrap().to_vec();
    assert_eq!((status.as_u16(), &kind[..]), (200, accept), "{path}: {}", String::from_utf8_lossy(&bytes));
    bytes
}

const SAFETENSORS: &str = "application/vnd.safetensors";
const NPZ: &str = "application/x-npz";

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, v| max.max(v.abs()))
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_embeddings_gates_and_scores_equal_timms() {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path());
    let model = folder.path().to_str().unwrap().to_owned();
    let server = TestServer::with(|config| {
        config.model = model;
        config.features.feature_sessions = 2;
    })
    .await;
    let goldens = SafetensorsFile::parse(include_bytes!("../goldens/served.safetensors")).unwrap();
    let golden = |name: &str| goldens.read(name, &goldens.shape(name, &[]).unwrap()).unwrap();
    let mut compared = 0;
    for (width, height) in [(224, 224), (416, 320), (640, 640)] {
        let image = photograph(width, height);
        for (cut, dtype) in [("deepest", "f32"), ("timm", "f32"), ("deepest", "f16")] {
            let path = format!(
                "/v1/features?levels=c1,c2,c3,c4,c5,embedding&cut={cut}&size={width}x{height}&fit=stretch\
                 &dtype={dtype}&top_k=1"
            );
            let found = read_safetensors(&get(&server, &path, SAFETENSORS, image.clone()).await);
            assert_eq!(found.tensors.len(), 6);
            for (name, (shape, data)) in &found.tensors {
                let (golden_name, step) = match &name[..] {
                    "embedding" => (format!("{width}x{height}.embedding"), 1),
                    level => (format!("{width}x{height}.{cut}.{level}"), 97),
                };
                let expected = golden(&golden_name);
                let found: Vec<f32> = data.iter().step_by(step).copied().collect();
                assert_eq!((found.len(), shape[0], data.len()), (expected.len(), 1, shape.iter().product()));
                let scale = largest(&expected);
                let worst = expected.iter().zip(&found).map(|(e, f)| {
                    let half = if dtype == "f16" { e.abs() / 2048.0 + 6e-8 } else { 0.0 };
                    ((e - f).abs() - half) / scale
                });
                let worst = worst.fold(f32::MIN, f32::max);
                println!("{golden_name} {dtype}: {worst:.1e}");
                assert!(worst <= TOLERANCE, "{golden_name} {dtype}: {worst}");
                compared += 1;
            }
            let results: Value = serde_json::from_str(&found.metadata["results"]).unwrap();
            let logits = golden(&format!("{width}x{height}.logits"));
            let best = (0..1000).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            let sum: f32 = logits.iter().map(|v| (v - logits[best]).exp()).sum();
            let prediction = &results[0]["predictions"][0];
            assert_eq!(prediction["class"], best);
            assert!((prediction["probability"].as_f64().unwrap() as f32 - 1.0 / sum).abs() <= TOLERANCE);
        }
        for layer in ["3.0", "8.3"] {
            let path = format!("/v1/attention?layer={layer}&size={width}x{height}&fit=stretch");
            let found = read_safetensors(&get(&server, &path, SAFETENSORS, image.clone()).await);
            let expected = golden(&format!("{width}x{height}.attention.{layer}"));
            let found: Vec<f32> = found.tensors["attention"].1.iter().step_by(97).copied().collect();
            assert_eq!(expected.len(), found.len());
            let worst = expected.iter().zip(&found).map(|(e, f)| (e - f).abs()).fold(0.0, f32::max);
            println!("{width}x{height}.attention.{layer}: {worst:.1e}");
            assert!(worst <= TOLERANCE, "{width}x{height} {layer}: {worst}");
            compared += 1;
        }
    }
    assert_eq!(compared, 3 * (3 * 6 + 2));
}

/// The files of a zip archive in which nothing is compressed.
fn unzip(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let half = |at: usize| usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()));
    let (mut files, mut at) = (BTreeMap::new(), 0);
    while word(at) == 0x0403_4b50 {
        let (size, name) = (word(at + 18), half(at + 26));
        let start = at + 30 + name + half(at + 28);
        let name = String::from_utf8(bytes[at + 30..at + 30 + name].to_vec()).unwrap();
        files.insert(name, bytes[start..start + size].to_vec());
        at = start + size;
    }
    assert_eq!(word(at), 0x0201_4b50, "the directory follows the files");
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn json_safetensors_and_npz_contain_the_same_values() {
    let server = TestServer::start().await;
    for dtype in ["f32", "f16"] {
        let path = format!("/v1/features?levels=c4,embedding&normalize=true&dtype={dtype}");
        let tensors = read_safetensors(&get(&server, &path, SAFETENSORS, JPEG).await);
        let (shape, c4) = &tensors.tensors["c4"];
        assert_eq!(shape, &[1, 112, 4, 4]);
        let (_, embedding) = &tensors.tensors["embedding"];
        let norm = embedding.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((norm - 1.0).abs() < 1e-3, "{norm}");

        let json: Value = serde_json::from_slice(&get(&server, &path, "application/json", JPEG).await).unwrap();
        let features = json["results"][0]["features"].as_array().unwrap();
        assert_eq!(features.len(), 2);
        let head = |i: usize| {
            let mut head = features[i].clone();
            head.as_object_mut().unwrap().remove("data");
            head
        };
        assert_eq!(head(0), json!({"name": "c4", "shape": [112, 4, 4], "channels": 112, "stride": 16, "dtype": dtype}));
        assert_eq!(head(1), json!({"name": "embedding", "shape": [1280], "dtype": dtype}));
        let data = |i: usize| floats(&STANDARD.decode(features[i]["data"].as_str().unwrap()).unwrap(), dtype);
        assert_eq!((&data(0), &data(1)), (c4, embedding));
        assert_eq!(json["results"][0]["image"], json!({"format": "jpeg", "width": 96, "height": 80}));
        assert_eq!(json["model"]["id"], "ghostnetv2-cifar10");

        let files = unzip(&get(&server, &path, NPZ, JPEG).await);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["about.json", "c4.npy", "embedding.npy"]);
        let npy = &files["c4.npy"];
        let header = usize::from(u16::from_le_bytes([npy[8], npy[9]])) + 10;
        assert_eq!((&npy[..8], header % 64), (&b"\x93NUMPY\x01\x00"[..], 0));
        let text = String::from_utf8_lossy(&npy[10..header]).into_owned();
        assert!(text.contains("'shape': (1, 112, 4, 4, )") && text.ends_with('\n'), "{text}");
        assert_eq!(&floats(&npy[header..], dtype), c4);
        let about: Value = serde_json::from_slice(&files["about.json"]).unwrap();
        assert_eq!(about["strides"], json!({"c4": 16}));
        let in_safetensors: Value = serde_json::from_str(&tensors.metadata["results"]).unwrap();
        assert_eq!(about["results"], in_safetensors);
        assert_eq!(about["results"][0]["row"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_with_tensors_are_not_compressed() {
    let server = TestServer::start().await;
    for accept in ["application/json", SAFETENSORS, NPZ] {
        let request = server.post("/v1/features").header("accept", accept).header("accept-encoding", "gzip, zstd");
        let response = request.body(JPEG).send().await.unwrap();
        assert_eq!(response.headers().get("content-encoding"), None, "{accept}");
        assert!(response.headers()["vary"].to_str().unwrap().contains("accept"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_gives_features_and_the_classification() {
    let server = TestServer::start().await;
    let (_, expected) = server.classify("?top_k=3", JPEG).await;
    let (status, found) = answer(server.post("/v1/features?levels=c5&top_k=3").body(JPEG).send().await.unwrap()).await;
    assert_eq!(status, 200);
    let of = |json: &Value| json["results"][0]["predictions"].as_array().unwrap().clone();
    assert_eq!(of(&found).len(), 3);
    for (expected, found) in of(&expected).iter().zip(of(&found)) {
        assert_eq!((&expected["class"], &expected["label"]), (&found["class"], &found["label"]));
        let p = |v: &Value| v["probability"].as_f64().unwrap();
        assert!((p(expected) - p(&found)).abs() < 1e-5);
    }
    assert_eq!(server.metric("ghostserve_batch_size_count{model=\"ghostnetv2-cifar10\"}").await, 2.0, "one run each");
    let (_, without) = answer(server.post("/v1/features").body(JPEG).send().await.unwrap()).await;
    assert_eq!(without["results"][0].get("predictions"), None, "none were requested");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_gets_no_row_and_the_others_keep_their_order() {
    let server = TestServer::start().await;
    let mut form = Form::new();
    for (i, bytes) in [png(1), b"no image".to_vec(), png(2)].into_iter().enumerate() {
        form = form.part(format!("f{i}"), Part::bytes(bytes).file_name("x.png"));
    }
    let request = server.post("/v1/features?levels=c5").header("accept", SAFETENSORS).multipart(form);
    let all = read_safetensors(&request.send().await.unwrap().bytes().await.unwrap());
    let (shape, data) = &all.tensors["c5"];
    assert_eq!(shape, &[2, 160, 2, 2]);
    let results: Value = serde_json::from_str(&all.metadata["results"]).unwrap();
    assert_eq!((&results[0]["row"], &results[2]["row"]), (&json!(0), &json!(1)));
    assert_eq!(results[1]["error"]["code"], "unsupported_image_format");
    for (row, seed) in [(0, 1), (1, 2)] {
        let alone = read_safetensors(&get(&server, "/v1/features?levels=c5", SAFETENSORS, png(seed)).await);
        let (found, expected) = (&data[row * 640..][..640], &alone.tensors["c5"].1);
        let worst = expected.iter().zip(found).map(|(e, f)| (e - f).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4 * largest(expected), "{worst}");
    }
    let bad = server.post("/v1/features").body("no image").send().await.unwrap();
    assert_eq!(code(answer(bad).await), (415, "unsupported_image_format".into()));
}

/// Draws a marker into a photograph, finds the cells of a feature map that change, and maps them back to the
/// photograph.
#[tokio::test(flavor = "multi_thread")]
async fn the_geometry_maps_feature_cells_back_to_the_photograph() {
    let server = TestServer::start().await;
    let marker = [150u32, 200, 250, 260];
    let draw = |marked: bool| {
        let image = RgbImage::from_fn(400, 460, |x, y| {
            let inside = (marker[0]..marker[2]).contains(&x) && (marker[1]..marker[3]).contains(&y);
            if marked && inside { Rgb([255, 40, 0]) } else { Rgb([90, 100, 110]) }
        });
        encode(&image, ImageFormat::Png)
    };
    for fit in ["crop", "letterbox", "stretch"] {
        for size in ["320", "416x320", "640"] {
            // A cell of timm's first level depends on 3×3 pixels, fewer than at any other level.
            let path = format!("/v1/features?levels=c1&cut=timm&size={size}&fit={fit}");
            let (_, with) = answer(server.post(&path).body(draw(true)).send().await.unwrap()).await;
            let (_, without) = answer(server.post(&path).body(draw(false)).send().await.unwrap()).await;
            let maps = |json: &Value| {
                let feature = &json["results"][0]["features"][0];
                let shape: Vec<usize> = serde_json::from_value(feature["shape"].clone()).unwrap();
                (shape, floats(&STANDARD.decode(feature["data"].as_str().unwrap()).unwrap(), "f32"))
            };
            let ((shape, with_marker), (_, without)) = (maps(&with), maps(&without));
            let (height, width) = (shape[1], shape[2]);
            let mut change = vec![0.0f32; height * width];
            for (i, (a, b)) in with_marker.iter().zip(&without).enumerate() {
                change[i % (height * width)] += (a - b).abs();
            }
            let threshold = largest(&change) / 2.0;
            let cells = || (0..height * width).filter(|i| change[*i] > threshold);
            let stride = with["results"][0]["features"][0]["stride"].as_f64().unwrap();
            let edges = [
                cells().map(|i| i % width).min().unwrap(),
                cells().map(|i| i / width).min().unwrap(),
                cells().map(|i| i % width).max().unwrap() + 1,
                cells().map(|i| i / width).max().unwrap() + 1,
            ];
            let geometry = &with["results"][0]["geometry"];
            for (i, (edge, expected)) in edges.into_iter().zip(marker).enumerate() {
                let of = |name: &str| geometry[name][i % 2].as_f64().unwrap();
                let position = (edge as f64 * stride - of("offset")) / of("scale");
                // A cell covers two pixels of the input and depends on one beyond them.
                let allowed = (stride + 1.0) / of("scale");
                let distance = (position - f64::from(expected)).abs();
                assert!(
                    distance <= allowed,
                    "{fit} {size} edge {i}: {position}, expected {expected} ± {allowed:.1}; {geometry}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_and_attention_are_rendered_as_png_images() {
    let server = TestServer::start().await;
    let decoded = |bytes: Vec<u8>| image::load_from_memory_with_format(&bytes, ImageFormat::Png).unwrap().into_rgb8();
    // 112 maps of 4×4 in 11 columns and 11 rows, each pixel 12 wide.
    let tiles = decoded(get(&server, "/v1/features?levels=c4", "image/png", JPEG).await);
    assert_eq!(tiles.dimensions(), (11 * 50 + 2, 11 * 50 + 2));
    assert!(tiles.pixels().map(|p| p.0).collect::<std::collections::BTreeSet<_>>().len() > 50);
    assert_is_attention_figure(&decoded(get(&server, "/v1/attention", "image/png", JPEG).await));
    assert_is_attention_figure(&decoded(get(&server, "/v1/attention?size=64", "image/png", JPEG).await));
    // The `Accept` header of browsers includes images.
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,*/*;q=0.8";
    let response = server.post("/v1/attention").header("accept", browser).body(JPEG).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(response.headers()["content-disposition"], "inline; filename=\"attention.7.0.png\"");
    for (path, words) in [
        ("/v1/features?levels=c3,c4", "one level"),
        ("/v1/features?levels=embedding", "one level"),
        ("/v1/features?levels=c3&top_k=2", "predictions"),
        ("/v1/attention?dtype=f16", "dtype"),
        ("/v1/attention?layer=8.3&size=64", "`layer=8.3` has one cell at size 64x64"),
        ("/v1/attention?layer=8.3&size=64", "ask for `layer=3.0`, which has 8x8, or for a larger `size`, such as 224"),
    ] {
        let response = server.post(path).header("accept", "image/png").body(JPEG).send().await.unwrap();
        let (status, problem) = answer(response).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_parameter")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
}

/// Whether a picture has a photograph, the same with a gate of many colours over it, and a colour bar with labels.
fn assert_is_attention_figure(figure: &RgbImage) {
    let (width, height) = figure.dimensions();
    assert_eq!(height, 448 + 40);
    assert!((2 * 448..2 * 448 + 250).contains(&width), "{width}");
    let pixels = |columns: std::ops::Range<u32>| {
        let pixels = columns.flat_map(|x| (20..height - 20).map(move |y| (x, y)));
        pixels.map(|(x, y)| figure.get_pixel(x, y).0.map(i32::from)).collect::<Vec<_>>()
    };
    let (photograph, overlay) = (pixels(20..468), pixels(488..936));
    assert_ne!(photograph, overlay);
    // The ends of the colour map: yellow has more green than blue, violet less.
    let tint = |pixel: &[i32; 3]| pixel[1] - pixel[2];
    let count = |test: &dyn Fn(i32) -> bool| overlay.iter().filter(|pixel| test(tint(pixel))).count();
    let (yellow, violet) = (count(&|tint| tint > 60), count(&|tint| tint < -20));
    assert!(yellow > 500 && violet > 500, "the gate's whole range is shown: {yellow} yellow, {violet} violet");
    assert!(pixels(990..width).contains(&[32; 3]), "labels");
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_chooses_a_layer_and_a_size_that_show_something() {
    let server = TestServer::start().await;
    let input_of = |json: &Value| {
        let geometry = &json["results"][0]["geometry"];
        json!([geometry["width"], geometry["height"]])
    };
    for (query, layer, cells, input) in [
        ("", "7.0", [7, 7], [224, 224]),
        ("?size=64", "3.0", [8, 8], [64, 64]),
        ("?size=448", "8.3", [7, 7], [448, 448]),
        ("?size=320x224", "7.0", [7, 10], [320, 224]),
        ("?layer=8.3", "8.3", [3, 3], [224, 224]),
        ("?layer=8.3&size=64", "8.3", [1, 1], [64, 64]),
    ] {
        let path = format!("/v1/attention{query}");
        let (status, json) = answer(server.post(&path).body(JPEG).send().await.unwrap()).await;
        assert_eq!((status, &json["layer"]), (200, &json!(layer)), "{query}");
        let result = &json["results"][0];
        assert_eq!(result["features"][0]["shape"].as_array().unwrap()[1..], [json!(cells[0]), json!(cells[1])]);
        assert_eq!(input_of(&json), json!(input), "{query}");
    }
    let found = read_safetensors(&get(&server, "/v1/attention", SAFETENSORS, JPEG).await);
    assert_eq!(found.metadata["layer"], "7.0");
    let about = &unzip(&get(&server, "/v1/attention", NPZ, JPEG).await)["about.json"];
    assert_eq!(serde_json::from_slice::<Value>(about).unwrap()["layer"], "7.0");
    // Below the limit of pixels, the default is the largest input that it allows.
    let small = TestServer::with(|config| config.features.max_feature_pixels = 200 * 200).await;
    let (_, json) = answer(small.post("/v1/attention").body(JPEG).send().await.unwrap()).await;
    assert_eq!(input_of(&json), json!([192, 192]));
}

#[tokio::test(flavor = "multi_thread")]
async fn attention_lists_its_layers() {
    let server = TestServer::start().await;
    let (status, json) = answer(server.post("/v1/attention").body(JPEG).send().await.unwrap()).await;
    assert_eq!(status, 200);
    let layers = json["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 14, "all bottlenecks but the first two");
    assert_eq!(layers[0], json!({"layer": "2.0", "channels": 72, "height": 28, "width": 28, "stride": 8}));
    // 7 pixels of the features are pooled to 3 cells of 2 each.
    assert_eq!(layers[13], json!({"layer": "8.3", "channels": 960, "height": 3, "width": 3, "stride": 64}));
    let gate = &json["results"][0]["features"][0];
    assert_eq!((&gate["name"], &gate["shape"]), (&json!("attention"), &json!([672, 7, 7])));
    assert_eq!(gate["stride"], 32);
    let wide = answer(server.post("/v1/attention?size=416x320&layer=8.3").body(JPEG).send().await.unwrap()).await.1;
    assert_eq!(wide["layers"][13], json!({"layer": "8.3", "channels": 960, "height": 5, "width": 6, "stride": 64}));
    assert_eq!(wide["results"][0]["features"][0]["stride"], 64, "of both axes");
    let (_, named) = answer(server.post("/v1/attention?layer=blocks.2.0").body(JPEG).send().await.unwrap()).await;
    let gate = &named["results"][0]["features"][0];
    assert_eq!(gate["shape"], json!([72, 28, 28]));
    let values = floats(&STANDARD.decode(gate["data"].as_str().unwrap()).unwrap(), "f32");
    assert!(values.iter().all(|v| (0.0..=1.0).contains(v)), "a sigmoid");
    let form =
        Form::new().part("a", Part::bytes(JPEG).file_name("a.jpg")).part("b", Part::bytes(JPEG).file_name("b.jpg"));
    let two = server.post("/v1/attention").multipart(form).send().await.unwrap();
    assert_eq!(code(answer(two).await), (413, "too_many_images".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_get_a_problem_that_says_what_to_do() {
    let server = TestServer::with(|config| config.features.max_feature_pixels = 320 * 320).await;
    for (path, status, problem_code, words) in [
        ("/v1/features?levels=c6", 400, "invalid_parameter", "c1 to c5"),
        ("/v1/features?levels=", 400, "invalid_parameter", "c1 to c5"),
        ("/v1/features?levels=c3,c3", 400, "invalid_parameter", "twice"),
        ("/v1/features?levels=logits", 400, "invalid_parameter", "c1 to c5"),
        ("/v1/features?cut=shallow", 400, "invalid_parameter", "deepest"),
        ("/v1/features?fit=squeeze", 400, "invalid_parameter", "letterbox"),
        ("/v1/features?dtype=int8", 400, "invalid_parameter", "f16"),
        ("/v1/features?size=100", 400, "invalid_parameter", "multiples of 32"),
        ("/v1/features?size=32", 400, "invalid_parameter", "at least 64"),
        ("/v1/features?size=0x64", 400, "invalid_parameter", "at least 64"),
        ("/v1/features?size=64x64x3", 400, "invalid_parameter", "WIDTHxHEIGHT"),
        ("/v1/features?size=-64", 400, "invalid_parameter", "WIDTHxHEIGHT"),
        ("/v1/features?size=352", 413, "features_too_large", "smaller `size`"),
        ("/v1/features?size=65504x64", 413, "features_too_large", "smaller `size`"),
        ("/v1/features?normalize=true", 400, "invalid_parameter", "embedding"),
        ("/v1/features?top_k=0", 400, "invalid_parameter", "between 1 and"),
        ("/v1/features?top_k=11", 400, "invalid_parameter", "10 classes"),
        ("/v1/features?min_confidence=2", 400, "invalid_parameter", "between 0 and 1"),
        ("/v1/features?level=c3", 400, "invalid_parameter", "unknown field"),
        ("/v1/features?model=other", 404, "unknown_model", "other"),
        ("/v1/attention?layer=0.0", 400, "invalid_parameter", "2.0"),
        ("/v1/attention?levels=c3", 400, "invalid_parameter", "unknown field"),
    ] {
        let (found, problem) = answer(server.post(path).body(JPEG).send().await.unwrap()).await;
        assert_eq!((found, &problem["code"]), (status, &json!(problem_code)), "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{path}: {problem}");
    }
    let response = server.post("/v1/features").header("accept", "text/html").body(JPEG).send().await.unwrap();
    let (status, problem) = answer(response).await;
    assert_eq!((status, &problem["code"]), (406, &json!("not_acceptable")));
    assert!(problem["detail"].as_str().unwrap().contains(SAFETENSORS), "{problem}");
    assert_eq!(server.get("/v1/features").await.status(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_for_maps_is_bounded() {
    // c1 at 320: 16 maps of 160×160, once in f32 and once in the answer, and the crop: 3.6 MB.
    let server = TestServer::with(|config| {
        config.features.max_feature_bytes = 8 << 20;
        config.features.max_feature_bytes_in_flight = 8 << 20;
    })
    .await;
    let form =
        |n: usize| (0..n).fold(Form::new(), |f, i| f.part(format!("{i}"), Part::bytes(png(1)).file_name("x.png")));
    let send =
        async |n| answer(server.post("/v1/features?levels=c1&size=320").multipart(form(n)).send().await.unwrap()).await;
    assert_eq!(send(2).await.0, 200);
    let (status, problem) = send(3).await;
    assert_eq!((status, &problem["code"]), (413, &json!("features_too_large")));
    assert!(problem["detail"].as_str().unwrap().contains("fewer `levels`"), "{problem}");
    let statuses = futures::future::join_all((0..6).map(|_| async { send(2).await.0 })).await;
    assert!(statuses.iter().all(|s| [200, 429].contains(s)) && statuses.contains(&200), "{statuses:?}");
    assert_eq!(send(2).await.0, 200, "the memory is free again");
    server.settles("ghostserve_feature_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_replace_each_other_when_the_limit_is_reached() {
    let server = TestServer::with(|config| {
        config.features.feature_sessions = 1;
        config.execution.workers = Some(1);
    })
    .await;
    for size in ["64", "96", "64x96", "96", "64"] {
        let (status, json) =
            answer(server.post(&format!("/v1/features?levels=c5&size={size}")).body(JPEG).send().await.unwrap()).await;
        assert_eq!(status, 200, "{json}");
    }
    assert_eq!(server.classify("", JPEG).await.0, 200);
    let series = "ghostserve_sessions_opened_total{model=\"ghostnetv2-cifar10\"}";
    assert_eq!(server.metric(series).await, 5.0, "none was reused");
    for levels in ["c5", "c4,c5", "c5,c4", "c4,c5"] {
        let path = format!("/v1/features?levels={levels}&size=64");
        assert_eq!(server.post(&path).body(JPEG).send().await.unwrap().status(), 200);
    }
    assert_eq!(server.metric(series).await, 6.0, "the first existed already, and the order of levels does not matter");
    assert_eq!(server.metric("ghostserve_worker_restarts_total{model=\"ghostnetv2-cifar10\"}").await, 0.0);
}

/// The time to create a session counts once in the predicted wait, not once for each waiting request.
#[tokio::test(flavor = "multi_thread")]
async fn many_requests_for_a_new_size_are_admitted_at_once() {
    let server = TestServer::with(|config| config.load.max_wait = std::time::Duration::from_millis(400)).await;
    for size in [96, 128, 160] {
        let path = format!("/v1/features?levels=c5&size={size}");
        let sent = (0..12).map(|_| async { server.post(&path).body(JPEG).send().await.unwrap().status().as_u16() });
        assert_eq!(futures::future::join_all(sent).await, [200; 12], "{size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_description_lists_levels_and_attention_layers() {
    let server = TestServer::start().await;
    let (_, model) = answer(server.get("/v1/models/ghostnetv2-cifar10").await).await;
    let features = &model["features"];
    assert_eq!(features["embedding"], 1280);
    let levels = features["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 10);
    assert_eq!(levels[3], json!({"level": "c4", "cut": "deepest", "channels": 112, "stride": 16}));
    assert_eq!(levels[8], json!({"level": "c4", "cut": "timm", "channels": 80, "stride": 16}));
    assert_eq!(features["attention"].as_array().unwrap().len(), 14);
    let deepest = json!({"layer": "8.3", "channels": 960, "height": 1, "width": 1, "stride": 64});
    assert_eq!(features["attention"][13], deepest, "at the model's own size");
}

/// Sends a thousand requests with random combinations of parameters, some valid and most not.
#[tokio::test(flavor = "multi_thread")]
async fn no_combination_of_parameters_is_an_internal_error() {
    let server = TestServer::with(|config| config.features.feature_sessions = 2).await;
    let mut state = 20_261_124u64;
    let mut pick = move |from: &[&'static str]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(state >> 33) as usize % from.len()]
    };
    let requests: Vec<_> = (0..1000)
        .map(|_| {
            let route = pick(&["features", "features", "features", "attention"]);
            let mut query: Vec<String> = Vec::new();
            let mut add = |name: &str, value: &str| {
                if value != "-" {
                    query.push(format!("{name}={value}"));
                }
            };
            add(
                "size",
                pick(&[
                    "-", "-", "-", "-", "64", "64", "64", "96x64", "96x64", "128", "33", "0", "x", "640x64", "4096",
                ]),
            );
            add(
                "fit",
                pick(&["-", "-", "-", "-", "crop", "crop", "letterbox", "letterbox", "stretch", "stretch", "fill"]),
            );
            add("dtype", pick(&["-", "-", "-", "-", "-", "-", "f32", "f16", "f16", "f64"]));
            if route == "features" {
                let levels =
                    ["-", "c1", "c3", "c4,c5", "c5,embedding", "embedding", "c1,c2,c3,c4,c5,embedding", "c9", ","];
                add("levels", pick(&levels));
                add("cut", pick(&["-", "-", "-", "timm", "timm", "deepest", "deepest", "none"]));
                add("normalize", pick(&["-", "-", "-", "-", "-", "-", "-", "-", "true", "false", "maybe"]));
                add("top_k", pick(&["-", "-", "-", "-", "-", "-", "-", "1", "10", "11", "-1"]));
                add("min_confidence", pick(&["-", "-", "-", "-", "-", "-", "-", "-", "0.5", "NaN", "inf"]));
            } else {
                add("layer", pick(&["-", "2.0", "8.3", "blocks.6.2", "0.0", "x", "8.3.output"]));
            }
            let accept =
                pick(&["*/*", "application/json", SAFETENSORS, NPZ, "image/png", "*/*;q=0.1", "text/plain", ";;q"]);
            let body = pick(&["jpeg", "jpeg", "jpeg", "png", "png", "garbage", "empty"]);
            (format!("/v1/{route}?{}", query.join("&")), accept, body)
        })
        .collect();
    let server = &server;
    let answers = futures::stream::iter(requests).map(|(path, accept, body)| async move {
        let body = match body {
            "jpeg" => JPEG.to_vec(),
            "png" => png(3),
            "garbage" => b"\xff\xd8\xff garbage".to_vec(),
            _ => Vec::new(),
        };
        let response = server.post(&path).header("accept", accept).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        assert!(!response.bytes().await.unwrap().is_empty());
        (status, path)
    });
    let mut counts = BTreeMap::new();
    for (status, path) in answers.buffer_unordered(8).collect::<Vec<_>>().await {
        assert!([200, 400, 406, 413, 415, 422, 429].contains(&status), "{status}: {path}");
        *counts.entry(status).or_insert(0) += 1;
    }
    println!("{counts:?}");
    assert!(counts[&200] >= 120, "{counts:?}");
    assert_eq!(server.metric("ghostserve_images_in_flight{model=\"ghostnetv2-cifar10\"}").await, 0.0);
    assert_eq!(server.metric("ghostserve_worker_restarts_total{model=\"ghostnetv2-cifar10\"}").await, 0.0);
}
