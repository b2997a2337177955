//! PyTorch's checkpoints (`.pth`, `.pth.tar`, `.pt`, `.bin`): a zip file with a pickle and the bytes of each storage.
//!
//! ```text
//! archive/data.pkl     what the file says: dicts, names, shapes        pickle → values, by reduce's notes of tensors
//! archive/data/0 …     the storages' bytes, stored                     archive → slices; tensor views them
//! archive/byteorder    "little"
//! ```
//!
//! A pickle is a program. This reader executes none of it: see [`pickle`]. It reads what `torch.save` writes since
//! PyTorch 1.6, and tells how to re-save what is older. It knows nothing of networks; what the authors' files call
//! things is [`super::authors`]' matter.

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

use self::archive::Archive;
use self::tensor::Tensor;
use super::{TensorSource, WeightsError, authors};

/// An open checkpoint; borrows the bytes, converts a tensor only when it is read.
///
/// The state dict is the file's top level, or what is there under `state_dict`, `model`, `state_dict_ema` or `model_ema`
/// (the first of them that is a dict). What training keeps beside it is skipped. Keys are timm's: a `module.` in front of
/// all of them, thop's counters and the authors' names for batch norms are taken care of.
///
/// float32, float16, bfloat16 and float64 are read; tensors of other types have a key and a shape, and reading them is
/// [`WeightsError::Dtype`].
#[derive(Debug)]
pub struct PytorchFile<'a>(BTreeMap<String, Tensor<'a>>);

impl<'a> PytorchFile<'a> {
    /// Reads the directory and the pickle of `bytes`, and checks that every tensor of the state dict lies inside its
    /// storage.
    ///
    /// # Errors
    /// [`WeightsError::Refused`]: the file asks for a function or class that no weights need. [`WeightsError::Format`]:
    /// it is not such a file, an older kind, a TorchScript archive, cut off, or contradicts itself.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        if let Some(reason) = older(bytes) {
            return Err(bad(reason));
        }
        let archive = Archive::parse(bytes)?;
        let root = root(&archive)?;
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
        for (key, view) in state::dict(&values, result)? {
            let storage = entry(&format!("data/{}", view.storage.key));
            tensors.push((key, Tensor::resolve(key, view, storage)?));
        }
        let tensors = authors::normalise(tensors);
        let twice = |key: String| bad(format!("tensor `{}`: expected one of that name, found two", shown(&key)));
        tensors.map(Self).map_err(twice)
    }
}

impl TensorSource for PytorchFile<'_> {
    fn shape(&self, key: &str, _wanted: &[usize]) -> Option<Vec<usize>> {
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

/// The folder that holds `data.pkl`: named after the file, or `archive`.
fn root<'a>(archive: &Archive<'a>) -> Result<&'a str, WeightsError> {
    let mut roots =
        archive.names().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    let root = match (roots.next(), roots.next()) {
        (Some(root), None) => root,
        (None, _) => return Err(bad("expected a checkpoint of torch.save, found a zip file without a `data.pkl`")),
        (Some(_), Some(_)) => return Err(bad("expected one `data.pkl`, found several")),
    };
    let script = |name: &str| {
        let inner = name.strip_prefix(root).and_then(|rest| rest.strip_prefix('/'));
        inner.is_some_and(|inner| inner == "constants.pkl" || inner.starts_with("code/"))
    };
    if archive.names().any(script) {
        return Err(bad("expected a state dict, found a TorchScript archive; to re-save its weights: \
             `torch.save(torch.jit.load(F).state_dict(), F2)`"));
    }
    Ok(root)
}

/// What to do about a file from before PyTorch 1.6: a plain pickle, or a tar archive before that.
fn older(bytes: &[u8]) -> Option<&'static str> {
    let tar = bytes.get(257..262) == Some(b"ustar");
    let pickle = matches!(bytes, [0x80, 1..=5, ..]);
    (tar || pickle).then_some(
        "expected a zip file, as torch.save has written since PyTorch 1.6, found an older kind; \
         to re-save it: `torch.save(torch.load(F, weights_only=True), F2)`",
    )
}

/// Whether `bytes` begin like a checkpoint, one of an older kind included.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK") || older(bytes).is_some()
}

fn bad(reason: impl Into<String>) -> WeightsError {
    WeightsError::Format { kind: "PyTorch", reason: reason.into() }
}

/// A name out of the file, made fit for a message.
fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut text: String = name.escape_debug().take(LONGEST).collect();
    if name.escape_debug().nth(LONGEST).is_some() {
        text.push('…');
    }
    text
}

impl WeightsError {
    fn refused(module: &str, name: &str) -> Self {
        Self::Refused(format!("{}.{}", shown(module), shown(name)))
    }
}
