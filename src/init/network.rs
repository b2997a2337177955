//! What a file of the user's says about its network: architecture, input size, number of classes, kind of output.

use ghostserve_ghostnet::graph::{Dimension, OnnxSummary, TensorSpec};
use ghostserve_ghostnet::{Config, Difference, Identification, Network, PRESETS, classes_of, identify, preset};
use ghostserve_manifest::{Architecture, OutputKind};
use ghostserve_weights::{TensorSource, WeightsError};

/// Largest number of keys or outputs in a message.
const MAX_LISTED: usize = 4;

/// The facts of a file that a manifest needs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NetworkFacts {
    pub(super) architecture: Architecture,
    /// Height and width of the input, each if the file fixes it.
    pub(super) size: [Option<usize>; 2],
    /// Number of scores of each possible output; `None` for any number. The first that fits the labels is used.
    pub(super) outputs: Vec<OutputFacts>,
    /// Paths of further files, relative to the file's folder.
    pub(super) external_files: Vec<String>,
    /// Remarks for the user.
    pub(super) notes: Vec<String>,
}

/// An output that may be the scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OutputFacts {
    pub(super) classes: Option<usize>,
    /// Operator that makes the values.
    pub(super) operator: Option<String>,
}

/// Describes the file `bytes`. `architecture` is the name of a preset; `config` the configuration file's contents.
///
/// # Errors
/// The file is of another kind, or is no classifier that can be served, with what to do about it.
pub(super) fn describe(
    bytes: &[u8],
    architecture: Option<&str>,
    config: Option<Config>,
) -> Result<NetworkFacts, String> {
    match ghostserve_weights::open(bytes) {
        Ok(file) => describe_weights(&*file, architecture, config),
        Err(WeightsError::Unknown(found)) => match OnnxSummary::parse(bytes) {
            Ok(summary) if !summary.outputs.is_empty() => match architecture {
                None | Some("onnx") => describe_onnx(&summary),
                Some(name) => Err(format!("it is an ONNX file, which needs no --architecture, found `{name}`")),
            },
            Err(error @ ghostserve_ghostnet::graph::ExternalDataError::Outside { .. }) => Err(error.to_string()),
            _ => Err(format!("expected an ONNX model, a safetensors file or a PyTorch checkpoint, found {found}")),
        },
        Err(error) => Err(error.to_string()),
    }
}

fn describe_weights(
    file: &dyn TensorSource,
    architecture: Option<&str>,
    config: Option<Config>,
) -> Result<NetworkFacts, String> {
    let Some(classes) = classes_of(file) else { return Err(no_classifier(file)) };
    let name = match architecture {
        Some(name) => {
            let Some(config) = config.or_else(|| preset(name)) else {
                let known = PRESETS.join(", ");
                return Err(format!("--architecture: expected a .toml file or one of {known}, found `{name}`"));
            };
            let network = Network::new(Config { classes, ..config }).map_err(|error| error.to_string())?;
            let difference = network.difference(file);
            if !difference.is_none() {
                return Err(other_network(name, &difference, &identify(file)));
            }
            name.to_owned()
        }
        None => identified(file)?,
    };
    Ok(NetworkFacts {
        architecture: Architecture::Preset(name),
        size: [None, None],
        outputs: vec![OutputFacts { classes: Some(classes), operator: None }],
        external_files: Vec::new(),
        notes: Vec::new(),
    })
}

/// The one preset that has exactly these tensors.
fn identified(file: &dyn TensorSource) -> Result<String, String> {
    let found = identify(file);
    match (&found.architectures[..], &found.nearest) {
        ([name], _) => Ok((*name).to_owned()),
        ([], Some(nearest)) => Err(format!(
            "no known network has these tensors; the nearest is {nearest}. If the network is a variant, describe it in \
             a file and give --architecture my.toml (docs/networks.md); any other network can be served as ONNX"
        )),
        ([], None) => Err(no_classifier(file)),
        (several, _) => Err(format!("several networks fit: choose one with --architecture: {}", several.join(", "))),
    }
}

fn other_network(name: &str, difference: &Difference, found: &Identification) -> String {
    match found.architectures.first() {
        Some(other) => format!("these are the weights of {other}, not of {name}: give --architecture {other}, or none"),
        None => format!("these are not the weights of {difference}"),
    }
}

fn no_classifier(file: &dyn TensorSource) -> String {
    let mut keys = file.keys();
    keys.sort();
    if keys.iter().any(|key| key == "conv_stem.weight") {
        return "it has no `classifier.weight`: it is a network without its classifier (timm: num_classes=0); save \
                one that was trained on your classes"
            .to_owned();
    }
    let listed: Vec<_> = keys.iter().take(MAX_LISTED).map(|key| format!("`{key}`")).collect();
    format!(
        "it has no tensors of a GhostNet or MobileNetV2 of timm (it has {}, …); any other classifier can be served as \
         ONNX: torch.onnx.export(model.eval(), torch.zeros(1, 3, 224, 224), \"model.onnx\")",
        listed.join(", ")
    )
}

fn describe_onnx(summary: &OnnxSummary) -> Result<NetworkFacts, String> {
    let [input] = &summary.inputs[..] else {
        let found = listed(&summary.inputs);
        return Err(format!("expected one input, the image, found {found}; export the network alone"));
    };
    let shape = image_shape(input)?;
    let mut notes = Vec::new();
    if let Some(batch) = shape[0].fixed() {
        notes.push(match batch {
            1 => "the graph takes one image a run, so nothing is batched; an export with a dynamic batch dimension \
                  serves more"
                .to_owned(),
            _ => format!(
                "the graph computes {batch} images a run, also for one; an export with a dynamic batch dimension is \
                 faster"
            ),
        });
    }
    let outputs: Vec<_> = summary.outputs.iter().filter_map(scores_of).collect();
    if outputs.is_empty() {
        let found = listed(&summary.outputs);
        return Err(format!("expected an output of one row of float scores an image (N x classes), found {found}"));
    }
    Ok(NetworkFacts {
        architecture: Architecture::Onnx,
        size: [shape[2].fixed(), shape[3].fixed()],
        outputs,
        external_files: summary.external_files.iter().cloned().collect(),
        notes,
    })
}

/// The dimensions of an image input: N x 3 x height x width.
fn image_shape(input: &TensorSpec) -> Result<[Dimension; 4], String> {
    let advice = match (&input.element[..], input.shape.as_deref()) {
        ("float", Some([batch, channels, height, width])) => match (channels.fixed(), width.fixed()) {
            (Some(3) | None, Some(4..) | None) => {
                return Ok([batch.clone(), channels.clone(), height.clone(), width.clone()]);
            }
            (_, Some(1 | 3 | 4)) => {
                "its channels are last, as in TensorFlow: convert it to channels first (tf2onnx: --inputs-as-nchw)"
            }
            _ => "only images of three channels are served: export a network for RGB",
        },
        ("float", _) => "export the network with an image batch as its input",
        ("uint8", _) => {
            "it takes raw pixels, so its pre-processing is in the graph: export it without, the server does that part"
        }
        ("float16" | "double" | "bfloat16", _) => "export it with float inputs and outputs (f32)",
        _ => "export the network with an image batch as its input",
    };
    Err(format!("expected an input of N x 3 x height x width, float, found {input}; {advice}"))
}

/// An output as scores: one row per image, and nothing after it but dimensions of 1.
fn scores_of(output: &TensorSpec) -> Option<OutputFacts> {
    let shape = output.shape.as_ref().filter(|_| output.element == "float")?;
    let [_, classes, rest @ ..] = &shape[..] else { return None };
    let row = rest.iter().all(|dimension| dimension.fixed().is_none_or(|size| size == 1));
    row.then(|| OutputFacts { classes: classes.fixed(), operator: output.operator.clone() })
}

fn listed(specs: &[TensorSpec]) -> String {
    if specs.is_empty() {
        return "none".to_owned();
    }
    specs.iter().take(MAX_LISTED).map(TensorSpec::to_string).collect::<Vec<_>>().join(", ")
}

impl OutputFacts {
    /// The kind of values.
    ///
    /// # Errors
    /// The operator gives values that are neither.
    pub(super) fn kind(&self) -> Result<OutputKind, String> {
        match self.operator.as_deref() {
            Some("Softmax") => Ok(OutputKind::Probabilities),
            Some("Sigmoid" | "HardSigmoid") => {
                Err("the graph ends in a sigmoid, a yes or no for each class, and this \
                server gives the probabilities of classes that exclude each other; export the values before the \
                sigmoid, or give --output logits or probabilities if you know better"
                    .to_owned())
            }
            // The softmax of log-probabilities is the probabilities, so LogSoftmax counts as logits.
            _ => Ok(OutputKind::Logits),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(element: &str, dims: &[usize]) -> TensorSpec {
        let dims = dims.iter().map(|size| match size {
            0 => Dimension::Symbolic("n".into()),
            size => Dimension::Fixed(*size),
        });
        TensorSpec { name: "x".into(), element: element.into(), shape: Some(dims.collect()), operator: None }
    }

    #[test]
    fn inputs_that_are_no_images_are_refused_with_what_to_export() {
        assert!(image_shape(&spec("float", &[0, 3, 224, 224])).is_ok());
        assert!(image_shape(&spec("float", &[0, 0, 0, 0])).is_ok());
        for (input, words) in [
            (spec("float", &[0, 224, 224, 3]), "channels are last"),
            (spec("uint8", &[0, 3, 224, 224]), "raw pixels"),
            (spec("float16", &[0, 3, 224, 224]), "f32"),
            (spec("float", &[0, 1, 28, 28]), "three channels"),
            (spec("float", &[0, 768]), "image batch"),
        ] {
            let error = image_shape(&input).unwrap_err();
            assert!(error.contains(words) && error.contains("`x`"), "{error}");
        }
    }

    #[test]
    fn scores_are_rows_of_floats() {
        assert_eq!(scores_of(&spec("float", &[0, 10, 1, 1])).unwrap().classes, Some(10));
        assert_eq!(scores_of(&spec("float", &[0, 10, 7, 7])), None);
        assert_eq!(scores_of(&spec("int64", &[0, 10])), None);
        assert_eq!(scores_of(&spec("float", &[10])), None);
    }
}
