//! Finds the published network that a file of weights belongs to, by the names and shapes of its tensors.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use super::{Config, Form, Network, Output, PRESETS, Size, Target, preset};
use ghostserve_weights::{TensorSource, WeightsError};

/// The tensor whose first dimension is the number of classes, in every network of the family.
const CLASSIFIER: &str = "classifier.weight";

/// The networks that a file of weights was compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identification {
    /// Number of classes: the rows of the classifier's matrix. `None` if the file has no classifier.
    pub classes: Option<usize>,
    /// The presets of which every tensor is in the file with its shape, and nothing else is.
    pub architectures: Vec<&'static str>,
    /// The preset with the fewest differences; `None` if no tensor of any preset is in the file.
    pub nearest: Option<Difference>,
}

/// How a file of weights differs from a network. Counters of batch norms (`num_batches_tracked`) do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The network's name.
    pub architecture: String,
    /// Number of tensors that the file has as the network needs them.
    pub matching: usize,
    /// Number of tensors that the network needs.
    pub needed: usize,
    /// Tensors that the network needs and the file lacks.
    pub missing: Vec<String>,
    /// Tensors with another shape: the name, the shape that the network needs, the shape in the file.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Tensors of the file that the network does not use.
    pub unused: Vec<String>,
}

impl Difference {
    /// Whether the file fits the network exactly.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.count() == 0
    }

    fn count(&self) -> usize {
        self.missing.len() + self.reshaped.len() + self.unused.len()
    }
}

impl fmt::Display for Difference {
    /// The network's name and the first of the differences of each kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} of {} tensors fit", self.architecture, self.matching, self.needed)?;
        if let Some(first) = self.missing.first() {
            write!(f, ", {} missing, such as `{first}`", self.missing.len())?;
        }
        if let Some((key, needed, found)) = self.reshaped.first() {
            let others = self.reshaped.len();
            write!(f, ", {others} of another shape, such as `{key}`: expected {needed:?}, found {found:?}")?;
        }
        if let Some(first) = self.unused.first() {
            write!(f, ", {} unused, such as `{first}`", self.unused.len())?;
        }
        f.write_str(")")
    }
}

/// Supplies zeros for every tensor and records which a network requests.
#[derive(Default)]
struct Recorder(RefCell<BTreeMap<String, Vec<usize>>>);

impl TensorSource for Recorder {
    fn shape(&self, key: &str, expected: &[usize]) -> Option<Vec<usize>> {
        self.0.borrow_mut().insert(key.to_owned(), expected.to_vec());
        Some(expected.to_vec())
    }

    fn read(&self, _key: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        Ok(vec![0.0; shape.iter().product()])
    }

    fn keys(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Network {
    /// Names and shapes of all tensors that the network needs.
    #[must_use]
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let recorder = Recorder::default();
        // Tensors do not depend on the size; this one is large enough for every network.
        let target =
            Target { size: Size { height: 224, width: 224 }, outputs: &[Output::Embedding], form: Form::Plain };
        // A network that cannot be lowered at this size has still requested its tensors up to that layer.
        let _ = self.lower(&recorder, &target);
        recorder.0.into_inner()
    }

    /// Compares the tensors of a file with those that the network needs, without reading their elements.
    #[must_use]
    pub fn difference(&self, source: &dyn TensorSource) -> Difference {
        let needed = self.tensors();
        let (mut missing, mut reshaped) = (Vec::new(), Vec::new());
        for (key, shape) in &needed {
            match source.shape(key, shape) {
                None => missing.push(key.clone()),
                Some(found) if found != *shape => reshaped.push((key.clone(), shape.clone(), found)),
                Some(_) => {}
            }
        }
        let counter = |key: &String| key.rsplit('.').next() == Some("num_batches_tracked");
        let mut unused: Vec<_> = source.keys();
        unused.retain(|key| !needed.contains_key(key) && !counter(key));
        unused.sort();
        Difference {
            architecture: self.config().name.clone(),
            matching: needed.len() - missing.len() - reshaped.len(),
            needed: needed.len(),
            missing,
            reshaped,
            unused,
        }
    }
}

/// Compares a file of weights with every preset, for the number of classes of the file's classifier.
#[must_use]
pub fn identify(source: &dyn TensorSource) -> Identification {
    let classes = classes_of(source);
    let with_classes = |config: Config| Network::new(Config { classes: classes.unwrap_or(config.classes), ..config });
    let mut architectures = Vec::new();
    let mut nearest: Option<Difference> = None;
    for name in PRESETS {
        let Some(Ok(network)) = preset(name).map(with_classes) else { continue };
        let difference = network.difference(source);
        if difference.is_none() {
            architectures.push(name);
        }
        let shares = difference.missing.len() < difference.needed;
        if shares && nearest.as_ref().is_none_or(|best| difference.count() < best.count()) {
            nearest = Some(difference);
        }
    }
    Identification { classes, architectures, nearest }
}

/// Number of classes of the classifier in a file of weights; `None` if it has none.
#[must_use]
pub fn classes_of(source: &dyn TensorSource) -> Option<usize> {
    source.keys().iter().any(|key| key == CLASSIFIER).then(|| source.shape(CLASSIFIER, &[]))??.first().copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file with the shapes of a network.
    struct Shapes(BTreeMap<String, Vec<usize>>);

    impl Shapes {
        fn of(name: &str, classes: usize) -> Self {
            Self(Network::new(Config { classes, ..preset(name).unwrap() }).unwrap().tensors())
        }
    }

    impl TensorSource for Shapes {
        fn shape(&self, key: &str, _: &[usize]) -> Option<Vec<usize>> {
            self.0.get(key).cloned()
        }

        fn read(&self, _: &str, _: &[usize]) -> Result<Vec<f32>, WeightsError> {
            Ok(Vec::new())
        }

        fn keys(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }
    }

    #[test]
    fn every_preset_is_identified_and_is_the_only_one() {
        for name in PRESETS {
            let found = identify(&Shapes::of(name, 7));
            assert_eq!((found.classes, &found.architectures[..]), (Some(7), &[name][..]));
        }
    }

    #[test]
    fn the_nearest_network_is_named_with_its_differences() {
        let mut file = Shapes::of("ghostnetv2_100", 5);
        file.0.remove("conv_stem.weight");
        file.0.insert("blocks.9.0.conv.weight".into(), vec![1]);
        file.0.insert("extra".into(), vec![1]);
        file.0.insert("bn1.num_batches_tracked".into(), vec![]);
        let found = identify(&file);
        assert!(found.architectures.is_empty());
        let nearest = found.nearest.unwrap();
        assert_eq!(nearest.architecture, "ghostnetv2_100");
        assert_eq!(
            (&nearest.missing[..], &nearest.unused[..]),
            (&["conv_stem.weight".into()][..], &["extra".into()][..])
        );
        assert_eq!(nearest.reshaped, [("blocks.9.0.conv.weight".to_owned(), vec![960, 160, 1, 1], vec![1])]);
        assert_eq!(nearest.matching + 2, nearest.needed);
    }

    #[test]
    fn another_network_has_no_nearest_one() {
        let other = Shapes([("fc.weight".to_owned(), vec![10, 512])].into());
        assert_eq!(identify(&other), Identification { classes: None, architectures: Vec::new(), nearest: None });
    }
}
