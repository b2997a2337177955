//! Checkpoints in the common forms, compared with what PyTorch itself reads from them.
//!
//! `tests/goldens/make_checkpoints.py` writes the files and `expected.safetensors`. Values agree bit for bit.
#![allow(clippy::unwrap_used, clippy::panic)]

use ghostserve_weights::{PytorchFile, SafetensorsFile, TensorSource, WeightsError, open};

const FILES: [(&str, &[u8]); 10] = [
    ("plain.pth", include_bytes!("checkpoints/plain.pth")),
    ("protocol5.bin", include_bytes!("checkpoints/protocol5.bin")),
    ("training.pth.tar", include_bytes!("checkpoints/training.pth.tar")),
    ("training4.pth.tar", include_bytes!("checkpoints/training4.pth.tar")),
    ("averaged.pth", include_bytes!("checkpoints/averaged.pth")),
    ("parallel.pth", include_bytes!("checkpoints/parallel.pth")),
    ("parameters.pt", include_bytes!("checkpoints/parameters.pt")),
    ("views.pth", include_bytes!("checkpoints/views.pth")),
    ("types.pth", include_bytes!("checkpoints/types.pth")),
    ("authors.pth.tar", include_bytes!("checkpoints/authors.pth.tar")),
];

fn file_bytes(name: &str) -> &'static [u8] {
    FILES.iter().find(|(file, _)| *file == name).unwrap().1
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Whether a tensor has no floating-point values: in `types.pth` on purpose, elsewhere the counters of batch norms.
fn is_not_float(key: &str) -> bool {
    ["i64", "i32", "bool", "u16"].contains(&key) || key.ends_with("num_batches_tracked")
}

#[test]
fn every_file_form_has_the_tensors_that_pytorch_finds() {
    let expected = SafetensorsFile::parse(include_bytes!("checkpoints/expected.safetensors")).unwrap();
    let mut compared = 0;
    for (name, bytes) in FILES {
        let file = open(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let prefix = format!("{name}/");
        let mut keys: Vec<_> =
            expected.keys().iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect();
        keys.sort();
        assert_eq!(file.keys(), keys, "{name}");
        for key in keys {
            let golden = format!("{prefix}{key}");
            let shape = expected.shape(&golden, &[]).unwrap();
            assert_eq!(file.shape(&key, &[]), Some(shape.clone()), "{golden}");
            match file.read(&key, &shape) {
                Err(WeightsError::Dtype { key: named, .. }) if is_not_float(&key) => assert_eq!(named, key),
                values => {
                    assert!(!is_not_float(&key), "{golden}");
                    assert_eq!(bits(&values.unwrap()), bits(&expected.read(&golden, &shape).unwrap()), "{golden}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 68);
}

#[test]
fn the_error_of_an_unsupported_type_names_it() {
    let file = PytorchFile::parse(file_bytes("types.pth")).unwrap();
    for (key, shape, found) in
        [("i64", &[][..], "I64"), ("i32", &[2], "I32"), ("bool", &[3], "BOOL"), ("u16", &[2], "U16")]
    {
        let error = WeightsError::Dtype { key: key.into(), found: found.into() };
        assert_eq!(file.read(key, shape), Err(error));
    }
}

#[test]
fn the_plain_weights_are_preferred_to_the_averaged() {
    let plain = PytorchFile::parse(file_bytes("training.pth.tar")).unwrap().read("fc.bias", &[2]).unwrap();
    let start = PytorchFile::parse(file_bytes("plain.pth")).unwrap().read("fc.bias", &[2]).unwrap();
    // One step of training changes them a little; the average in the file differs by one.
    assert!(plain != start && plain.iter().zip(start).all(|(a, b)| (a - b).abs() < 0.5), "{plain:?}");
}

#[test]
fn a_checkpoint_that_runs_a_command_is_refused_by_the_commands_name() {
    let error = PytorchFile::parse(include_bytes!("checkpoints/malicious.pth")).unwrap_err();
    assert_eq!(error, WeightsError::Refused("posix.system".into()));
    assert!(error.to_string().starts_with(
        "the checkpoint asks to call `posix.system`, which no weights need: not loaded; it may be malicious"
    ));
}

#[test]
fn the_error_of_a_file_without_a_state_dict_says_how_to_save_one() {
    for (bytes, hint) in [
        (&include_bytes!("checkpoints/whole.pth")[..], "save `model.state_dict()` alone"),
        (include_bytes!("checkpoints/legacy.pth"), "`torch.save(torch.load(F, weights_only=True), F2)`"),
        (include_bytes!("checkpoints/script.pt"), "`torch.save(torch.jit.load(F).state_dict(), F2)`"),
    ] {
        let error = open(bytes).err().unwrap().to_string();
        assert!(error.contains(hint), "{error}");
    }
}

/// Compares the files in `GHOSTSERVE_CHECKPOINT` and `GHOSTSERVE_SAFETENSORS`: the same weights in both formats, of any
/// size.
#[test]
#[ignore = "needs two files of your own: see tests/goldens/README.md"]
fn a_file_of_your_own_agrees_with_its_safetensors() {
    let [checkpoint, safetensors] = ["GHOSTSERVE_CHECKPOINT", "GHOSTSERVE_SAFETENSORS"]
        .map(|name| std::fs::read(std::env::var(name).unwrap()).unwrap());
    let started = std::time::Instant::now();
    let (found, expected) = (open(&checkpoint).unwrap(), open(&safetensors).unwrap());
    println!("parsed in {:?}", started.elapsed());
    let mut keys = expected.keys();
    keys.sort();
    assert_eq!(found.keys(), keys);
    for key in keys.iter().filter(|key| !is_not_float(key)) {
        let shape = expected.shape(key, &[]).unwrap();
        assert_eq!(found.shape(key, &[]), Some(shape.clone()), "{key}");
        assert_eq!(bits(&found.read(key, &shape).unwrap()), bits(&expected.read(key, &shape).unwrap()), "{key}");
    }
    println!("{} tensors agree, read in {:?}", keys.len(), started.elapsed());
}
