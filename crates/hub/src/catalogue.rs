//! The networks with short names, and the labels of their classes.

use strsim::levenshtein;

/// Networks that can be pulled by name alone: repositories of these names under `timm/`.
pub const CATALOGUE: [&str; 6] = [
    "ghostnet_100.in1k",
    "ghostnetv2_100.in1k",
    "ghostnetv2_130.in1k",
    "ghostnetv2_160.in1k",
    "ghostnetv3_100.in1k",
    "mobilenetv2_100.ra_in1k",
];

/// Owner of the catalogue's repositories.
pub(super) const CATALOGUE_OWNER: &str = "timm";

/// A labels file for ImageNet-1k in its standard order: `wnid<TAB>label`, 1000 lines.
pub const IMAGENET_LABELS: &str = include_str!("../../../models/imagenet-1k/labels.txt");

/// Number of lines of [`IMAGENET_LABELS`].
pub(super) const IMAGENET_CLASSES: usize = 1000;

/// The catalogue's name that is most like `text`, for messages about names that do not exist; `None` if none is.
///
/// A name without its tag, such as `ghostnetv2_100`, counts as the name.
#[must_use]
pub fn nearest_name(text: &str) -> Option<&'static str> {
    let text = text.strip_prefix("timm/").unwrap_or(text).to_lowercase();
    let distance = |name: &str| {
        let short = name.split('.').next().unwrap_or(name);
        levenshtein(&text, name).min(levenshtein(&text, short))
    };
    let nearest = CATALOGUE.into_iter().map(|name| (distance(name), name)).min()?;
    // More than a quarter of the letters wrong is another name.
    (nearest.0 * 4 <= text.len()).then_some(nearest.1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use ghostserve_manifest::parse_labels;

    #[test]
    fn every_class_has_a_unique_label_and_an_id() {
        let labels = parse_labels(IMAGENET_LABELS).unwrap();
        assert_eq!(labels.len(), IMAGENET_CLASSES);
        assert_eq!(labels.iter().map(|l| &l.name).collect::<HashSet<_>>().len(), IMAGENET_CLASSES);
        let ids: Vec<&String> = labels.iter().filter_map(|l| l.wnid.as_ref()).collect();
        // The standard order is that of the ids.
        assert!(ids.len() == IMAGENET_CLASSES && ids.is_sorted());
        assert_eq!((&labels[0].name[..], &labels[999].name[..]), ("tench", "toilet tissue"));
        assert_eq!(labels[134].name, "crane (bird)");
    }

    #[test]
    fn misspelt_names_have_a_nearest_one_and_others_have_none() {
        for (text, name) in [
            ("ghostnetv2_100", "ghostnetv2_100.in1k"),
            ("ghostnetv2_160.in1", "ghostnetv2_160.in1k"),
            ("timm/GhostNetV3_100.in1k", "ghostnetv3_100.in1k"),
            ("ghostnet-v2_130", "ghostnetv2_130.in1k"),
            ("mobilenetv2_100", "mobilenetv2_100.ra_in1k"),
        ] {
            assert_eq!(nearest_name(text), Some(name), "{text}");
        }
        for text in ["", "x", "resnet50", "models/mine", "yolov8n.onnx"] {
            assert_eq!(nearest_name(text), None, "{text}");
        }
    }
}
