//! PyTorch's checkpoints (`.pth`, `.pth.tar`, `.pt`, `.bin`): a zip file with a pickle and the bytes of each storage.
//!
//! ```text
//! archive/data.pkl     dicts, names, shapes              `pickle` and `reduce` → values; `state` → the state dict
//! archive/data/0 …     the storages' bytes, stored       `archive` → slices; `tensor` → elements
//! archive/byteorder    "little"
//! ```
//!
//! A pickle is a program. This reader executes none of it: see [`pickle`]. It reads the files that `torch.save` writes
//! since PyTorch 1.6; for older ones, the error says how to re-save them. It does not know networks. The names in the
//! authors' files are the subject of [`super::authors`].

mod archive;
mod limits;
mod opcode;
mod pickle;
mod reduce;
mod state;
mod tensor;
mod value;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;

use std::collections::BTreeMap;

use self::archive::ZipArchive;
use self::tensor::StoredTensor;
use super::{TensorSource, WeightsError, authors};

/// An open PyTorch checkpoint. It borrows the bytes and converts a tensor only when it is read.
///
/// The state dict is the file's top level, or the first dict among its keys `state_dict`, `model`, `state_dict_ema`
/// and `model_ema`. Other values that training stores beside it are skipped. Keys have timm's names: the prefix
/// `module.` of all keys is removed, thop's counters are left out, the authors' names of batch norms are translated.
///
/// float32, float16, bfloat16 and float64 are read. Tensors of other types have a key and a shape, and reading one is
/// the error [`WeightsError::Dtype`].
#[derive(Debug)]
pub struct PytorchFile<'a>(BTreeMap<String, StoredTensor<'a>>);

impl<'a> PytorchFile<'a> {
    /// Reads the directory and the pickle of `bytes`, and checks that every tensor of the state dict lies inside its
    /// storage.
    ///
    /// # Errors
    /// [`WeightsError::Refused`]: the file names a function or class that weights do not need.
    /// [`WeightsError::Format`]: it is not such a file, an older kind, a TorchScript archive, cut off, beyond a
    /// limit, or contradicts itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        if let Some(reason) = older_format(bytes) {
            return Err(bad(reason));
        }
        let archive = ZipArchive::parse(bytes)?;
        let root = root_folder(&archive)?;
        archive.check_stored()?;
        let entry = |name: &str| archive.get(&format!("{root}/{name}"));
        match entry("byteorder") {
            None | Some(b"little") => {}
            Some(order) => {
                let order = String::from_utf8_lossy(order);
                return Err(bad(format!("expected byte order `little`, found `{}`", shown(&order))));
            }
        }
        let (values, result) = pickle::read(entry("data.pkl").unwrap_or_default())?;
        let mut tensors = Vec::new();
        for (key, description) in state::state_dict(&values, result)? {
            let storage = entry(&format!("data/{}", description.storage.key));
            tensors.push((key, StoredTensor::resolve(key, description, storage)?));
        }
        let duplicate = |key: String| bad(format!("tensor `{}`: expected one of that name, found two", shown(&key)));
        authors::normalise(tensors).map(Self).map_err(duplicate)
    }
}

impl TensorSource for PytorchFile<'_> {
    fn shape(&self, key: &str, _expected: &[usize]) -> Option<Vec<usize>> {
        self.0.get(key).map(|tensor| tensor.shape.clone())
    }

    fn read(&self, key: &str, _shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.0.get(key);
        tensor.ok_or_else(|| bad(format!("expected a tensor `{}`, found none", shown(key))))?.read(key)
    }

    fn keys(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

/// The archive's folder that holds `data.pkl`: it is named after the file, or `archive`.
fn root_folder<'a>(archive: &ZipArchive<'a>) -> Result<&'a str, WeightsError> {
    let mut roots =
        archive.names().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    let root = match (roots.next(), roots.next()) {
        (Some(root), None) => root,
        (None, _) => return Err(bad("expected a checkpoint of torch.save, found a zip file without a `data.pkl`")),
        (Some(_), Some(_)) => return Err(bad("expected one `data.pkl`, found several")),
    };
    let is_torchscript = |name: &str| {
        let inner = name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
        inner.is_some_and(|inner| inner == "constants.pkl" || inner.starts_with("code/"))
    };
    if archive.names().any(is_torchscript) {
        return Err(bad("expected a state dict, found a TorchScript archive; to re-save its weights: \
             `torch.save(torch.jit.load(F).state_dict(), F2)`"));
    }
    Ok(root)
}

/// The message for a file from before PyTorch 1.6 (a plain pickle, or the even older tar archive); `None` for others.
fn older_format(bytes: &[u8]) -> Option<&'static str> {
    let tar = bytes.get(257..262) == Some(b"ustar");
    let pickle = matches!(bytes, [0x80, 1..=5, ..]);
    (tar || pickle).then_some(
        "expected a zip file, as torch.save has written since PyTorch 1.6, found an older kind; \
         to re-save it: `torch.save(torch.load(F, weights_only=True), F2)`",
    )
}

/// Whether `bytes` begin like a checkpoint, including the older kinds.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK") || older_format(bytes).is_some()
}

/// A [`WeightsError::Format`] of a PyTorch file.
fn bad(reason: impl Into<String>) -> WeightsError {
    WeightsError::Format { kind: "PyTorch", reason: reason.into() }
}

/// A name from the file for a message: escaped, and cut off after 120 characters.
fn shown(name: &str) -> String {
    const MAX_SHOWN: usize = 120;
    let mut text: String = name.escape_debug().take(MAX_SHOWN).collect();
    if name.escape_debug().nth(MAX_SHOWN).is_some() {
        text.push('…');
    }
    text
}

impl WeightsError {
    fn refused(module: &str, name: &str) -> Self {
        Self::Refused(format!("{}.{}", shown(module), shown(name)))
    }
}
