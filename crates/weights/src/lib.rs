//! Reads the weights of networks strictly by name and shape, from safetensors files and PyTorch checkpoints.
//!
//! A network requests tensors by key and shape through a [`Scope`]; a [`TensorSource`] supplies them. A tensor that
//! is missing or has another shape is an error with its name, the expected and the found shape. A tensor that was
//! never requested is an error too ([`Weights::finish`]), because a checkpoint with unused tensors belongs to another
//! network. This crate does not know graphs or architectures.
//!
//! ```
//! use ghostserve_weights::{Weights, WeightsError, open};
//!
//! // A safetensors file: the header's length in eight bytes, the header, the elements.
//! let header = br#"{"fc.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
//! bytes.extend(header);
//! bytes.extend([1.5_f32, -0.25].map(f32::to_le_bytes).concat());
//!
//! let file = open(&bytes)?;
//! let weights = Weights::new(&*file);
//! let fc = weights.root().sub("fc");
//! assert_eq!(fc.get("bias", &[2])?, [1.5, -0.25]);
//!
//! let error = fc.get("bias", &[3]).unwrap_err();
//! assert_eq!(error.to_string(), "tensor `fc.bias`: expected shape [3], found [2]");
//! weights.finish()?;
//! # Ok::<(), WeightsError>(())
//! ```

mod authors;
mod open;
mod pytorch;
mod safetensors;
mod synthetic;

pub use self::open::open;
pub use self::pytorch::PytorchFile;
pub use self::safetensors::SafetensorsFile;
pub use synthetic::{Seeded, Synthetic, synthetic_tensor};

use std::cell::RefCell;
use std::collections::BTreeSet;

/// A source of tensors by name.
pub trait TensorSource {
    /// The shape of the tensor `key`; `None` if there is no such tensor. A source that generates tensors returns
    /// `expected`.
    fn shape(&self, key: &str, expected: &[usize]) -> Option<Vec<usize>>;

    /// The elements of the tensor `key`, row-major, as f32. `shape` is the shape that [`TensorSource::shape`] returned.
    ///
    /// # Errors
    /// The stored type cannot be read as f32.
    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError>;

    /// All keys, for finding the unused ones.
    fn keys(&self) -> Vec<String>;
}

/// The reason why weights do not fit a network, or cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WeightsError {
    /// A tensor that the network needs is missing.
    #[error("tensor `{key}` is missing: expected shape {expected:?}, found none{}", hint(similar))]
    Missing {
        /// Its name.
        key: String,
        /// The shape the network needs.
        expected: Vec<usize>,
        /// A similar name in the file.
        similar: Option<String>,
    },
    /// A tensor has another shape than the network needs.
    #[error("tensor `{key}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Its name.
        key: String,
        /// The shape the network needs.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// Tensors that no part of the network requested.
    #[error("{} tensors are not part of this network: expected none, found {}", .0.len(), listed(.0))]
    Unused(Vec<String>),
    /// A tensor has elements of an unsupported type.
    #[error("tensor `{key}`: expected F32, F16 or BF16 elements, found {found}")]
    Dtype {
        /// Its name.
        key: String,
        /// The type it has.
        found: String,
    },
    /// A tensor holds a NaN or an infinity, with which no network computes.
    #[error("tensor `{key}`: expected finite values, found {found} at element {index}")]
    NotFinite {
        /// Its name.
        key: String,
        /// Row-major position of the value.
        index: usize,
        /// The value, as text.
        found: String,
    },
    /// The file does not follow its format, or exceeds a limit.
    #[error("not a readable {kind} file: {reason}")]
    Format {
        /// The format that the file was read as.
        kind: &'static str,
        /// The violation.
        reason: String,
    },
    /// The file has none of the supported formats.
    #[error("expected a safetensors file or a PyTorch checkpoint, found {0}")]
    Unknown(String),
    /// A PyTorch checkpoint requests a call of a function or class that weights do not need.
    #[error(
        "the checkpoint asks to call `{0}`, which no weights need: not loaded; it may be malicious \
         (if it is your own, save `model.state_dict()` alone)"
    )]
    Refused(String),
}

fn hint(similar: &Option<String>) -> String {
    similar.as_ref().map(|key| format!(" (the file has `{key}`)")).unwrap_or_default()
}

fn listed(keys: &[String]) -> String {
    const MAX_LISTED: usize = 5;
    let mut text = keys.iter().take(MAX_LISTED).map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    if keys.len() > MAX_LISTED {
        text.push_str(&format!(" and {} more", keys.len() - MAX_LISTED));
    }
    text
}

/// A source together with the set of keys that were read from it.
pub struct Weights<'a> {
    source: &'a dyn TensorSource,
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Weights<'a> {
    /// Starts reading `source`.
    #[must_use]
    pub fn new(source: &'a dyn TensorSource) -> Self {
        Self { source, used: RefCell::default() }
    }

    /// The scope of all keys.
    #[must_use]
    pub fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    /// Ends reading. All tensors of the source must have been read, except PyTorch's `num_batches_tracked` counters,
    /// which matter only to training.
    ///
    /// # Errors
    /// [`WeightsError::Unused`] with the names of the others.
    pub fn finish(self) -> Result<(), WeightsError> {
        let used = self.used.into_inner();
        let is_counter = |key: &String| key == "num_batches_tracked" || key.ends_with(".num_batches_tracked");
        let unused: Vec<_> = self.source.keys().into_iter().filter(|k| !used.contains(k) && !is_counter(k)).collect();
        if unused.is_empty() { Ok(()) } else { Err(WeightsError::Unused(unused)) }
    }
}

/// A view of [`Weights`] below a key prefix.
pub struct Scope<'a> {
    weights: &'a Weights<'a>,
    prefix: String,
}

impl Scope<'_> {
    /// The tensor `name` below this scope, row-major.
    ///
    /// # Errors
    /// The tensor is missing, has another shape or an unsupported type, or holds a value that is not finite.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let key = self.key(name);
        let source = self.weights.source;
        let Some(found) = source.shape(&key, shape) else {
            let similar = similar_key(&key, source.keys());
            return Err(WeightsError::Missing { key, expected: shape.to_vec(), similar });
        };
        if found != shape {
            return Err(WeightsError::Shape { key, expected: shape.to_vec(), found });
        }
        let data = source.read(&key, shape)?;
        if let Some(index) = data.iter().position(|v| !v.is_finite()) {
            let found = data[index].to_string();
            return Err(WeightsError::NotFinite { key, index, found });
        }
        self.weights.used.borrow_mut().insert(key);
        Ok(data)
    }

    /// The full key of `name` below this scope.
    #[must_use]
    pub fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

impl<'a> Scope<'a> {
    /// The scope `name` below this one.
    #[must_use]
    pub fn sub(&self, name: &str) -> Scope<'a> {
        Scope { weights: self.weights, prefix: self.key(name) }
    }
}

/// The first of `keys` that differs from `key` only by a prefix, such as `module.` or `model.` of a wrapper.
fn similar_key(key: &str, keys: Vec<String>) -> Option<String> {
    keys.into_iter().find(|k| k.ends_with(&format!(".{key}")) || key.ends_with(&format!(".{k}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct FixedSource(Vec<(&'static str, Vec<usize>, Vec<f32>)>);

    impl TensorSource for FixedSource {
        fn shape(&self, key: &str, _: &[usize]) -> Option<Vec<usize>> {
            self.0.iter().find(|(k, ..)| *k == key).map(|(_, shape, _)| shape.clone())
        }
        fn read(&self, key: &str, _: &[usize]) -> Result<Vec<f32>, WeightsError> {
            Ok(self.0.iter().find(|(k, ..)| *k == key).unwrap().2.clone())
        }
        fn keys(&self) -> Vec<String> {
            self.0.iter().map(|(k, ..)| (*k).to_owned()).collect()
        }
    }

    #[test]
    fn scopes_join_keys_and_finish_accepts_counters() {
        let source = FixedSource(vec![("a.b.w", vec![2], vec![1.0, 2.0]), ("a.b.num_batches_tracked", vec![], vec![])]);
        let weights = Weights::new(&source);
        assert_eq!(weights.root().sub("a").sub("b").get("w", &[2]).unwrap(), [1.0, 2.0]);
        weights.finish().unwrap();
    }

    #[test]
    fn a_missing_tensor_is_reported_with_shape_and_a_similar_name() {
        let source = FixedSource(vec![("module.w", vec![2], vec![1.0, 2.0])]);
        let error = Weights::new(&source).root().get("w", &[2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w` is missing: expected shape [2], found none (the file has `module.w`)");
    }

    #[test]
    fn another_shape_is_reported_with_the_expected_one() {
        let source = FixedSource(vec![("w", vec![2], vec![1.0, 2.0])]);
        let error = Weights::new(&source).root().get("w", &[1, 2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w`: expected shape [1, 2], found [2]");
    }

    #[test]
    fn unused_tensors_are_reported_by_name() {
        let source = FixedSource(vec![("w", vec![1], vec![1.0]), ("extra.weight", vec![1], vec![1.0])]);
        let weights = Weights::new(&source);
        weights.root().get("w", &[1]).unwrap();
        assert_eq!(weights.finish(), Err(WeightsError::Unused(vec!["extra.weight".into()])));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let source = FixedSource(vec![("w", vec![2], vec![1.0, f32::NAN])]);
        let error = Weights::new(&source).root().get("w", &[2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w`: expected finite values, found NaN at element 1");
    }
}
