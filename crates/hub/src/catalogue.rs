//! The networks with short names, and the labels of their classes.

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
}
