//! `ghostserve pull` as a user runs it, and that what it makes can be served.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;

use ghostserve::model::ModelFolder;
use ghostserve::runtime::LIBRARY_ENV;
use ghostserve_ghostnet::{Form, Network, Output, Size, Target, preset};
use ghostserve_weights::{Synthetic, TensorSource, WeightsError};
use safetensors::tensor::{Dtype, TensorView};

use crate::fake_hub::{FakeHub, Repository};
use crate::images::JPEG;

/// Makes every tensor that a network asks for, and remembers which those were.
#[derive(Default)]
struct Recorder(RefCell<Vec<Recorded>>);

/// Key, shape, and the values' bytes.
type Recorded = (String, Vec<usize>, Vec<u8>);

impl TensorSource for Recorder {
    fn shape(&self, key: &str, wanted: &[usize]) -> Option<Vec<usize>> {
        Synthetic.shape(key, wanted)
    }
    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let values = Synthetic.read(key, shape)?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.borrow_mut().push((key.to_owned(), shape.to_vec(), bytes));
        Ok(values)
    }
    fn keys(&self) -> Vec<String> {
        Vec::new()
    }
}

fn real_weights() -> Vec<u8> {
    let recorder = Recorder::default();
    let network = Network::new(preset("ghostnetv2_100").unwrap()).unwrap();
    let size = Size { height: 224, width: 224 };
    network.lower(&recorder, &Target { size, outputs: &[Output::Logits], form: Form::Plain }).unwrap();
    let tensors = recorder.0.into_inner();
    let view = |shape: &Vec<usize>, bytes| TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
    safetensors::serialize(tensors.iter().map(|(key, shape, bytes)| (key, view(shape, bytes))), None).unwrap()
}

/// The program, with nothing of this machine's environment that would matter.
fn ghostserve(home: &Path, endpoint: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostserve"));
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN", "GHOSTSERVE_CACHE"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env("HF_ENDPOINT", endpoint).env("XDG_CACHE_HOME", home.join("cache")).current_dir(home);
    command
}

#[test]
fn what_the_program_pulls_classifies() {
    let repository = Repository::new(real_weights());
    let hub = FakeHub::start(move |request, stream| repository.answer(request, stream));
    let home = tempfile::tempdir().unwrap();
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let pull = |arguments: &[&str]| run(ghostserve(home.path(), &hub.url()).arg("pull").args(arguments));

    let (ok, out, err) = pull(&["ghostnetv2_100.in1k"]);
    assert!(ok, "{err}");
    assert!(hub.seen()[0].line.contains("/api/models/timm/ghostnetv2_100.in1k/"), "{:?}", hub.seen());
    assert!(out.contains("ghostserve serve --model ghostnetv2_100.in1k") && out.contains("sha256:"), "{out}");
    assert!(home.path().join("cache/ghostserve/blobs").is_dir());
    let folder = home.path().join("ghostnetv2_100.in1k");
    let loaded = ModelFolder::resolve(folder.to_str().unwrap()).unwrap().load().unwrap();
    assert_eq!((loaded.manifest.id.as_str(), loaded.labels.len()), ("ghostnetv2_100.in1k", 1000));

    std::fs::write(home.path().join("a.jpg"), JPEG).unwrap();
    let runtime = std::env::var_os(LIBRARY_ENV).unwrap();
    let runtime = std::path::absolute(runtime).unwrap();
    let mut classify = ghostserve(home.path(), &hub.url());
    classify.arg("classify").arg(&folder).args(["a.jpg", "--json"]).env(LIBRARY_ENV, runtime);
    let (ok, out, err) = run(&mut classify);
    assert!(ok, "{err}");
    let line: serde_json::Value = serde_json::from_str(&out).unwrap();
    let wnid = line["predictions"][0]["wnid"].as_str().unwrap();
    assert!(ghostserve_hub::IMAGENET_LABELS.contains(&format!("{wnid}\t")), "{out}");

    let offline = |value: &str| {
        let mut command = ghostserve(home.path(), &hub.url());
        run(command.env("HF_HUB_OFFLINE", value).args(["pull", "ghostnetv2_100.in1k", "-o", "again/and again"]))
    };
    let before = hub.seen().len();
    let (ok, out, err) = offline("1");
    assert!(ok && out.contains("--model 'again/and again'"), "{out}{err}");
    assert_eq!(hub.seen().len(), before);
    let (ok, out, _) = offline("0");
    assert!(ok && out.contains("already there, unchanged") && hub.seen().len() == before + 1, "{out}");
    let (ok, _, err) = pull(&["--offline", "ghostnetv2_130.in1k"]);
    assert!(!ok && err.contains("timm/ghostnetv2_130.in1k@main is not in the cache"), "{err}");
    let (ok, _, err) = pull(&["ghostnet"]);
    assert!(!ok && err.contains("ghostnetv2_160.in1k") && err.contains("owner/repository"), "{err}");
}
