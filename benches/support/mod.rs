//! Shared by the benchmarks and the integration tests: photographs, and a model with synthetic weights.
#![allow(dead_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ghostserve_ghostnet::{Form, Network, Output, Size, Target, preset};
use ghostserve_manifest::Digest;
use ghostserve_weights::{Synthetic, TensorSource, WeightsError};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub(crate) const NETWORK: &str = "ghostnetv2_100";
pub(crate) const SIDE: usize = 224;

/// Reads the JPEG files of the folder that PHOTOS names, or else the tests' drawn images. Prints which, and their size.
pub(crate) fn load_photos() -> Vec<Vec<u8>> {
    let folder = std::env::var_os("PHOTOS").map(PathBuf::from);
    let drawn = folder.is_none();
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/scaled"));
    let mut paths: Vec<_> = fs::read_dir(&folder).expect("PHOTOS is a folder").map(|e| e.unwrap().path()).collect();
    paths.retain(|path| {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        ["jpg", "jpeg"].contains(&&extension[..])
    });
    paths.sort();
    if drawn {
        println!("PHOTOS is not set: drawn images are used, whose cost differs from that of photographs");
    }
    let photos: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let bytes: usize = photos.iter().map(Vec::len).sum();
    println!("{} images, {:.1} kB on average", photos.len(), bytes as f64 / 1e3 / photos.len() as f64);
    photos
}

/// Synthetic weights that record every tensor that is read.
#[derive(Default)]
#[allow(clippy::type_complexity)]
struct RecordingSource(RefCell<BTreeMap<String, (Vec<usize>, Vec<u8>)>>);

impl TensorSource for RecordingSource {
    fn shape(&self, key: &str, expected: &[usize]) -> Option<Vec<usize>> {
        Synthetic.shape(key, expected)
    }

    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let data = Synthetic.read(key, shape)?;
        let bytes = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.borrow_mut().insert(key.to_owned(), (shape.to_vec(), bytes));
        Ok(data)
    }

    fn keys(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A safetensors file with all tensors of [`NETWORK`] and synthetic values, the same on every machine.
pub(crate) fn synthetic_weights() -> Vec<u8> {
    let network = Network::new(preset(NETWORK).unwrap()).unwrap();
    let source = RecordingSource::default();
    let size = Size { height: SIDE, width: SIDE };
    network.lower(&source, &Target { size, outputs: &[Output::Logits], form: Form::Plain }).unwrap();
    let tensors = source.0.into_inner();
    let views: Vec<_> = tensors
        .iter()
        .map(|(key, (shape, bytes))| (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    safetensors::serialize(views, None).unwrap()
}

/// Writes a model folder of [`NETWORK`] with synthetic weights, the same on every machine.
pub(crate) fn random_model(folder: &Path) {
    let weights = synthetic_weights();
    fs::create_dir_all(folder).unwrap();
    let labels: String = (0..1000).map(|class| format!("class {class}\n")).collect();
    let manifest = format!(
        "id = \"random\"\n[network]\narchitecture = \"{NETWORK}\"\nweights = \"weights.safetensors\"\n\
         digest = \"{}\"\noutput = \"logits\"\n[input]\nsize = [{SIDE}, {SIDE}]\nresize = 256\n\
         mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n[labels]\nfile = \"labels.txt\"\n",
        Digest::of(&weights).as_str()
    );
    for (name, bytes) in [
        ("weights.safetensors", &weights[..]),
        ("labels.txt", labels.as_bytes()),
        ("manifest.toml", manifest.as_bytes()),
    ] {
        fs::write(folder.join(name), bytes).unwrap();
    }
}
