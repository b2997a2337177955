//! Weights by name, read strictly.
//!
//! A network asks for tensors by key and shape through a [`Scope`]; a [`TensorSource`] has them. What is missing or has
//! another shape is an error that says name, expected and found; what was never asked for is an error too
//! ([`Weights::finish`]), because a checkpoint with leftovers is a checkpoint of another network. This module knows no
//! graph and no architecture.

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

/// Something that has tensors by name.
pub trait TensorSource {
    /// The shape of the tensor `key`, if there is one. A source that makes tensors up returns the shape wanted.
    fn shape(&self, key: &str, wanted: &[usize]) -> Option<Vec<usize>>;

    /// The elements of the tensor `key`, row-major, as f32. Called with the shape that [`TensorSource::shape`] gave.
    ///
    /// # Errors
    /// The stored type cannot be read as f32.
    fn read(&self, key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError>;

    /// Every key that is there, for finding the unused ones.
    fn keys(&self) -> Vec<String>;
}

/// Why weights do not fit a network, or cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WeightsError {
    /// A tensor the network needs is not there.
    #[error("tensor `{key}` is missing: expected shape {expected:?}, found none{}", hint(similar))]
    Missing {
        /// Its name.
        key: String,
        /// The shape the network needs.
        expected: Vec<usize>,
        /// The name in the file that is closest to it.
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
    /// Tensors that no part of the network asked for.
    #[error("{} tensors are not part of this network: expected none, found {}", .0.len(), listed(.0))]
    Unused(Vec<String>),
    /// A tensor is stored in a type that weights are not kept in.
    #[error("tensor `{key}`: expected F32, F16 or BF16 elements, found {found}")]
    Dtype {
        /// Its name.
        key: String,
        /// The type it has.
        found: String,
    },
    /// A tensor holds a NaN or an infinity: no network computes with that.
    #[error("tensor `{key}`: expected finite values, found {found} at element {index}")]
    NotFinite {
        /// Its name.
        key: String,
        /// Row-major position.
        index: usize,
        /// The value, as text.
        found: String,
    },
    /// The file is not what it should be.
    #[error("not a readable {kind} file: {reason}")]
    Format {
        /// Which kind of file it was read as.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is of no kind that weights come in.
    #[error("expected a safetensors file or a PyTorch checkpoint, found {0}")]
    Unknown(String),
    /// A PyTorch checkpoint names a function or class for its reader to call, and no weights need that one.
    #[error(
        "the checkpoint asks to call `{0}`, which no weights need: not loaded; it may be malicious \
         (if it is your own, save `model.state_dict()` alone)"
    )]
    Refused(String),
}

fn hint(similar: &Option<String>) -> String {
    similar.as_ref().map(|s| format!(" (the file has `{s}`)")).unwrap_or_default()
}

fn listed(keys: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = keys.iter().take(SHOWN).map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
    if keys.len() > SHOWN {
        text.push_str(&format!(" and {} more", keys.len() - SHOWN));
    }
    text
}

/// A source with a memory of what was asked for.
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

    /// Ends reading: everything in the source must have been asked for, except PyTorch's `num_batches_tracked`
    /// counters, which matter only to training.
    ///
    /// # Errors
    /// [`WeightsError::Unused`] with the names.
    pub fn finish(self) -> Result<(), WeightsError> {
        let used = self.used.into_inner();
        let ignored = |key: &String| key == "num_batches_tracked" || key.ends_with(".num_batches_tracked");
        let unused: Vec<_> = self.source.keys().into_iter().filter(|k| !used.contains(k) && !ignored(k)).collect();
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
    /// It is missing, has another shape, is stored in a type that cannot be read, or holds a value that is not finite.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let key = self.key(name);
        let source = self.weights.source;
        let Some(found) = source.shape(&key, shape) else {
            let similar = similar(&key, source.keys());
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

/// The key that shares the longest tail with the one wanted: what a wrapper's prefix (`module.`, `model.`) leaves.
fn similar(wanted: &str, keys: Vec<String>) -> Option<String> {
    keys.into_iter().find(|k| k.ends_with(&format!(".{wanted}")) || wanted.ends_with(&format!(".{k}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Fixed(Vec<(&'static str, Vec<usize>, Vec<f32>)>);

    impl TensorSource for Fixed {
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
        let source = Fixed(vec![("a.b.w", vec![2], vec![1.0, 2.0]), ("a.b.num_batches_tracked", vec![], vec![])]);
        let weights = Weights::new(&source);
        assert_eq!(weights.root().sub("a").sub("b").get("w", &[2]).unwrap(), [1.0, 2.0]);
        weights.finish().unwrap();
    }

    #[test]
    fn missing_says_name_shape_and_a_likely_alternative() {
        let source = Fixed(vec![("module.w", vec![2], vec![1.0, 2.0])]);
        let error = Weights::new(&source).root().get("w", &[2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w` is missing: expected shape [2], found none (the file has `module.w`)");
    }

    #[test]
    fn another_shape_says_expected_and_found() {
        let source = Fixed(vec![("w", vec![2], vec![1.0, 2.0])]);
        let error = Weights::new(&source).root().get("w", &[1, 2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w`: expected shape [1, 2], found [2]");
    }

    #[test]
    fn leftovers_are_an_error_by_name() {
        let source = Fixed(vec![("w", vec![1], vec![1.0]), ("extra.weight", vec![1], vec![1.0])]);
        let weights = Weights::new(&source);
        weights.root().get("w", &[1]).unwrap();
        assert_eq!(weights.finish(), Err(WeightsError::Unused(vec!["extra.weight".into()])));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let source = Fixed(vec![("w", vec![2], vec![1.0, f32::NAN])]);
        let error = Weights::new(&source).root().get("w", &[2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `w`: expected finite values, found NaN at element 1");
    }
}
