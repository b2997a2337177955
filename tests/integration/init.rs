//! `ghostserve init`, weights under a wrong name, `--pull`, and the commands of docs/fine-tuning.md.
//!
//! The manual's Python needs PyTorch (`tests/clients/requirements-torch.txt`), which is too large for continuous
//! integration. Where it is missing, files of the same kind stand in for what the scripts write, and every other
//! command of the manual is run as printed there.

use std::path::{Path, PathBuf};
use std::process::Command;

use ghostserve_ghostnet::{Config, Form, Network, Output, Size, Target, preset};
use ghostserve_weights::Synthetic;
use image::{ImageFormat, Rgb, RgbImage};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::fake_hub::{FakeHub, Repository};
use crate::images::{JPEG, encode};
use crate::models::{FOREIGN, colour_network, write_model_folder};
use crate::runtime_path;
use crate::support::synthetic_weights;

const MANUAL: &str = include_str!("../../docs/fine-tuning.md");
const CLASSES: [&str; 3] = ["circle", "square", "triangle"];

/// The program in a folder of its own, with a hub.
struct Home {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), endpoint: "http://127.0.0.1:9".to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN", "GHOSTSERVE_CACHE"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("XDG_CACHE_HOME", self.path("cache"));
        command.env(ghostserve::runtime::LIBRARY_ENV, runtime_path()).current_dir(&self.folder);
        command
    }

    /// Runs `ghostserve` with these words: success, standard output, standard error.
    fn run(&self, words: &[&str]) -> (bool, String, String) {
        let output = self.command(env!("CARGO_BIN_EXE_ghostserve")).args(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    fn succeeds(&self, words: &[&str]) -> (String, String) {
        let (ok, out, err) = self.run(words);
        assert!(ok, "{words:?}: {out}{err}");
        (out, err)
    }

    fn fails(&self, words: &[&str]) -> String {
        let (ok, out, err) = self.run(words);
        assert!(!ok, "{words:?}: {out}{err}");
        err
    }

    fn manifest(&self, folder: &str) -> ghostserve_manifest::Manifest {
        ghostserve_manifest::Manifest::parse(&std::fs::read_to_string(self.path(folder).join("manifest.toml")).unwrap())
            .unwrap()
    }
}

/// A safetensors file of a preset with synthetic values.
fn weights_of(name: &str, classes: usize) -> Vec<u8> {
    let network = Network::new(Config { classes, ..preset(name).unwrap() }).unwrap();
    let tensors: Vec<_> = network
        .tensors()
        .into_iter()
        .map(|(key, shape)| {
            let values = ghostserve_weights::synthetic_tensor(&key, &shape);
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (key, shape, bytes)
        })
        .collect();
    let views =
        tensors.iter().map(|(key, shape, bytes)| (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A whole network as a foreign ONNX file.
fn onnx_of(name: &str, classes: usize) -> Vec<u8> {
    let network = Network::new(Config { classes, ..preset(name).unwrap() }).unwrap();
    let size = Size { height: 224, width: 224 };
    let target = Target { size, outputs: &[Output::Logits], form: Form::Plain };
    network.lower(&Synthetic, &target).unwrap().graph.into_onnx(&[])
}

#[test]
fn weights_are_identified_and_become_a_folder_that_serves() {
    let home = Home::new();
    home.write("net.safetensors", weights_of("ghostnet_050", 3));
    home.write("labels.txt", "a\nb\nc\n");
    home.write("photo.jpg", JPEG);
    let (out, err) = home.succeeds(&["init", "net.safetensors", "--labels", "labels.txt", "--size", "64"]);
    assert!(out.contains("architecture  ghostnet_050") && out.contains("serve --model net"), "{out}");
    assert!(err.contains("pre-processing is that of timm") && err.contains("--preset"), "{err}");
    let manifest = home.manifest("net");
    assert_eq!((manifest.id.as_str(), manifest.input.crop), ("net", [64, 64]));
    assert_eq!(
        (manifest.input.resize.to_string(), manifest.input.interpolation.to_string()),
        ("73".into(), "bicubic".into())
    );
    assert!(manifest.network.digest.is_some());
    assert!(home.succeeds(&["classify", "net", "photo.jpg"]).0.contains('%'));

    // Again: unchanged. With other values: only if they may be replaced.
    let again = ["init", "net.safetensors", "--labels", "labels.txt", "--size", "64"];
    assert!(home.succeeds(&again).0.contains("unchanged"));
    let other = [&again[..], &["--preset", "torchvision"]].concat();
    assert!(home.fails(&other).contains("--force"));
    home.succeeds(&[&other[..], &["--force"]].concat());
    assert_eq!(home.manifest("net").input.interpolation.to_string(), "bilinear");

    for (words, expected) in [
        (&["--labels", "labels.txt", "--architecture", "ghostnetv2_100"][..], "weights of ghostnet_050, not of"),
        (&["--labels", "two.txt"], "two.txt has 2 lines"),
        (&[], "LC_ALL=C ls"),
        (&["--labels", "labels.txt", "--architecture", "resnet50"], "expected a .toml file or one of ghostnet_050"),
    ] {
        home.write("two.txt", "a\nb\n");
        let error = home.fails(&[&["init", "net.safetensors", "-o", "never"], words].concat());
        assert!(error.contains(expected), "{error}");
    }
    let left: Vec<_> = std::fs::read_dir(&home.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "never" || name.to_string_lossy().starts_with(".init")), "{left:?}");
}

#[test]
fn onnx_files_are_described_by_what_is_in_them() {
    let home = Home::new();
    home.write("resnet50.onnx", colour_network(0.0));
    home.write("labels.txt", "red\ngreen\nblue\n");
    let (out, err) = home.succeeds(&["init", "resnet50.onnx", "--labels", "labels.txt", "-o", "colours"]);
    assert!(out.contains("8x8: resize 9 bilinear") && err.contains("`resnet50.onnx`"), "{out}{err}");
    let red = encode(&RgbImage::from_pixel(30, 20, Rgb([250, 0, 0])), ImageFormat::Png);
    home.write("red.png", red);
    let (out, _) = home.succeeds(&["classify", "colours", "red.png", "--json"]);
    assert!(out.contains("\"label\":\"red\""), "{out}");

    let error = home.fails(&["init", "resnet50.onnx", "--labels", "labels.txt", "-o", "x", "--size", "16"]);
    assert!(error.contains("--size") && error.contains("8x8"), "{error}");
    let error =
        home.fails(&["init", "resnet50.onnx", "--labels", "labels.txt", "-o", "x", "--output", "probabilities"]);
    assert!(error.contains("no probabilities") && error.contains("--output logits"), "{error}");
    home.write("page.onnx", "<!DOCTYPE html>");
    let error = home.fails(&["init", "page.onnx", "--labels", "labels.txt"]);
    assert!(error.contains("a web page"), "{error}");
    assert!(!home.path("x").exists());
    // A file in the place of a folder.
    let error = home.fails(&["classify", "resnet50.onnx", "red.png"]);
    assert!(error.contains("ghostserve init resnet50.onnx --labels"), "{error}");
}

#[test]
fn weights_of_another_network_are_named_at_the_load() {
    let manifest = FOREIGN.replace("model.onnx", "weights.safetensors").replace("[8, 8]", "[64, 64]");
    let manifest = manifest.replace("resize = 8", "resize = 64");
    for (declared, held) in [
        ("ghostnetv2_100", "ghostnet_100"),
        ("ghostnet_100", "ghostnetv2_100"),
        ("ghostnet_100", "ghostnet_130"),
        ("ghostnetv2_100", "ghostnetv3_100"),
    ] {
        let manifest = manifest.replace("\"onnx\"", &format!("\"{declared}\""));
        let folder = write_model_folder(&manifest, "a\nb\nc\n", "weights.safetensors", &weights_of(held, 3));
        let error = Home::new().fails(&["inspect", folder.path().to_str().unwrap()]);
        let advice = format!("these are the weights of {held}: set `network.architecture = \"{held}\"`");
        assert!(error.contains(&advice), "{declared}: {error}");
    }
    let manifest = manifest.replace("\"onnx\"", "\"ghostnet_100\"");
    let folder = write_model_folder(&manifest, "a\nb\nc\n", "weights.safetensors", &weights_of("ghostnet_100", 5));
    let error = Home::new().fails(&["inspect", folder.path().to_str().unwrap()]);
    assert!(error.contains("the weights have 5 classes, the labels file has 3 lines"), "{error}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_folder_that_exists_may_be_on_another_disk() {
    let home = Home::new();
    home.write("net.safetensors", weights_of("ghostnet_050", 2));
    home.write("labels.txt", "a\nb\n");
    // A file system of its own on Linux, as a volume is.
    let disk = tempfile::tempdir_in("/dev/shm").unwrap();
    std::os::unix::fs::symlink(disk.path(), home.path("volume")).unwrap();
    let words = ["init", "net.safetensors", "--labels", "labels.txt", "--size", "64", "-o", "volume"];
    home.succeeds(&words);
    let names = || std::fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let mut found = names();
    found.sort();
    assert_eq!(found, ["labels.txt", "manifest.toml", "weights.safetensors"]);

    // A link of the user's that leads nowhere is not replaced.
    std::fs::remove_file(disk.path().join("labels.txt")).unwrap();
    std::os::unix::fs::symlink("elsewhere.txt", disk.path().join("labels.txt")).unwrap();
    let error = home.fails(&words);
    assert!(error.contains("labels.txt") && error.contains("--force"), "{error}");
    home.write("taken", "");
    let error = home.fails(&["init", "net.safetensors", "--labels", "labels.txt", "-o", "taken"]);
    assert!(error.contains("taken is a file: choose the folder to make with -o"), "{error}");
}

#[test]
fn a_catalogue_name_that_is_another_folder_is_explained() {
    let home = Home::new();
    std::fs::create_dir(home.path("ghostnetv2_100.in1k")).unwrap();
    home.write("a.jpg", JPEG);
    let error = home.fails(&["classify", "ghostnetv2_100.in1k", "a.jpg", "--pull"]);
    assert!(error.contains("is a folder without a manifest.toml: remove it"), "{error}");
}

#[test]
fn a_model_that_is_not_on_disk_is_pulled_or_says_how() {
    let repository = Repository::new(synthetic_weights());
    let hub = FakeHub::start(move |request, stream| repository.answer(request, stream));
    let home = Home { endpoint: hub.url(), ..Home::new() };
    home.write("a.jpg", JPEG);
    for words in [
        &["classify", "ghostnetv2_100.in1k", "a.jpg"][..],
        &["eval", "ghostnetv2_100.in1k", "."],
        &["inspect", "ghostnetv2_100.in1k"],
        &["serve", "--model", "ghostnetv2_100.in1k", "--listen", "127.0.0.1:0"],
    ] {
        let error = home.fails(words);
        assert!(error.contains("`ghostserve pull ghostnetv2_100.in1k`") && error.contains("--pull"), "{error}");
    }
    let error = home.fails(&["classify", "ghostnetv2_10.in1k", "a.jpg"]);
    assert!(error.contains("did you mean ghostnetv2_100.in1k?"), "{error}");
    let error = home.fails(&["classify", "me/net", "a.jpg"]);
    assert!(error.contains("`ghostserve pull me/net`"), "{error}");
    let error = home.fails(&["classify", "nothing", "a.jpg"]);
    assert!(error.contains("ghostserve init") && error.contains("ghostnetv2_160.in1k"), "{error}");
    assert!(hub.seen().is_empty(), "nothing is sent without --pull");

    let (out, err) = home.succeeds(&["classify", "ghostnetv2_100.in1k", "a.jpg", "--pull"]);
    assert!(out.contains('%') && err.contains("pulled ghostnetv2_100.in1k into ghostnetv2_100.in1k"), "{out}{err}");
    let sent = hub.seen().len();
    home.succeeds(&["classify", "ghostnetv2_100.in1k", "a.jpg", "--pull"]);
    home.succeeds(&["classify", "timm/ghostnetv2_100.in1k", "a.jpg", "--pull"]);
    assert_eq!(hub.seen().len(), sent, "it is on disk");
    let error = home.fails(&["classify", "timm/ghostnetv2_100.in1k", "a.jpg"]);
    assert!(error.contains("give `ghostnetv2_100.in1k`"), "{error}");
}

/// `tests/goldens/make_export.py` makes the files.
#[test]
fn an_export_of_pytorch_gives_pytorchs_probabilities() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let expected = std::fs::read(goldens.join("exported/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let (file, image) =
        (goldens.join("exported/net.onnx"), goldens.join("images").join(expected["image"].as_str().unwrap()));
    let home = Home::new();
    home.write("labels.txt", "a\nb\nc\n");
    let file = file.to_str().unwrap();
    let (out, _) = home.succeeds(&["init", file, "--labels", "labels.txt", "--preset", "torchvision", "-o", "net"]);
    assert!(out.contains("output        probabilities") && out.contains("64x64: resize 73 bilinear"), "{out}");
    assert!(home.path("net/net.onnx.data").is_file(), "the tensors beside the file");

    let (out, _) = home.succeeds(&["classify", "net", image.to_str().unwrap(), "--json"]);
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    for prediction in line["predictions"].as_array().unwrap() {
        let class = prediction["label"].as_str().unwrap().as_bytes()[0] - b'a';
        let (found, expected) = (&prediction["probability"], &expected["probabilities"][usize::from(class)]);
        let difference = (found.as_f64().unwrap() - expected.as_f64().unwrap()).abs();
        assert!(difference < 5e-3, "class {class}: expected {expected}, found {found}");
    }
}

/// The manual's blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    MANUAL.split(&format!("```{language}\n")).skip(1).map(|rest| rest.split_once("```\n").unwrap().0).collect()
}

/// Draws a few shapes of each class.
fn draw_photographs(home: &Home) {
    for part in ["train", "val"] {
        for (class, name) in CLASSES.iter().enumerate() {
            let folder = home.path("data").join(part).join(name);
            std::fs::create_dir_all(&folder).unwrap();
            for index in 0..4_u32 {
                let inside = |x: i64, y: i64| match class {
                    0 => (x - 150).pow(2) + (y - 120).pow(2) < 70_i64.pow(2),
                    1 => (x - 150).abs().max((y - 120).abs()) < 60,
                    _ => y < 190 && (x - 150).abs() * 2 < y - 50,
                };
                let image = RgbImage::from_fn(300 + index, 240, |x, y| match inside(i64::from(x), i64::from(y)) {
                    true => Rgb([200, 60 * class as u8, 40 * index as u8]),
                    false => Rgb([(x / 4) as u8, 30, (y / 4) as u8]),
                });
                std::fs::write(folder.join(format!("{index}.png")), encode(&image, ImageFormat::Png)).unwrap();
            }
        }
    }
}

/// A Python with PyTorch and timm, if GHOSTSERVE_CLIENTS_PYTHON names one.
fn torch_python() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("GHOSTSERVE_CLIENTS_PYTHON")?);
    let imports = "import onnxscript, requests, safetensors, timm, torch, torchvision";
    let has = Command::new(&python).args(["-c", imports]).output().is_ok_and(|output| output.status.success());
    has.then_some(python)
}

/// Runs a script of the manual, with fewer epochs and without the download.
fn run_script(home: &Home, python: &Path, code: &str) -> String {
    let code = code.replace("pretrained=True", "pretrained=False").replace("EPOCHS = 10", "EPOCHS = 1");
    let code = code.replace("batch_size=32", "batch_size=6");
    let output =
        home.command(python.to_str().unwrap()).args(["-W", "ignore", "-c", &code]).env("NO_PROXY", "*").output();
    let output = output.unwrap();
    assert!(output.status.success(), "{code}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_manual_of_fine_tuning_is_run() {
    let home = Home::new();
    draw_photographs(&home);
    let python = torch_python();
    let scripts = blocks("python");
    let [finetune, compare, export] = scripts[..] else { panic!("{} scripts", scripts.len()) };
    match &python {
        Some(python) => {
            assert!(run_script(&home, python, finetune).contains("epoch 1: loss"));
            run_script(&home, python, export);
        }
        None => {
            println!("NOT RUN: the scripts with PyTorch; `make test-clients TORCH=1` runs them");
            home.write("model.safetensors", weights_of("ghostnetv2_100", 3));
            home.write("labels.txt", CLASSES.join("\n"));
            home.write("mobilenet_v3.onnx", onnx_of("mobilenetv2_050", 3));
        }
    }
    let commands: Vec<_> = blocks("sh").concat().lines().map(str::to_owned).collect();
    assert_eq!(commands.len(), 6, "{commands:?}");
    for line in &commands {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["ghostserve", "serve", ref rest @ ..] => {
                let mut arguments = vec!["--model".to_owned(), home.path(rest[1]).to_str().unwrap().to_owned()];
                assert_eq!(rest[0], "--model");
                arguments.push("--no-calibration".to_owned());
                let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
                let (process, address, _log) = crate::cli::Process::start(&arguments);
                if let Some(python) = &python {
                    let out = run_script(&home, python, &compare.replace("localhost:8080", &address));
                    assert!(out.contains("12 photographs, largest difference 0.0"), "{out}");
                }
                process.stop();
            }
            ["ghostserve", ref rest @ ..] => {
                let (out, _) = home.succeeds(rest);
                assert!(!out.is_empty(), "{line}");
            }
            _ => assert!(line.starts_with("curl --data-binary @"), "{line}"),
        }
    }
    assert_eq!(home.manifest("flowers").network.architecture.to_string(), "ghostnetv2_100");
    assert_eq!(home.manifest("shapes").input.interpolation.to_string(), "bilinear");
    assert_eq!(home.path("shapes/mobilenet_v3.onnx.data").exists(), home.path("mobilenet_v3.onnx.data").exists());
}
