//! Keys as checkpoints have them, turned into keys as networks ask for them.
//!
//! The networks here go by timm's names. The authors' checkpoints differ from those in a few ways, all of them by rule:
//!
//! - training on several devices prefixes every key with `module.`;
//! - counting operations with thop leaves `total_ops` and `total_params` beside the weights of every module;
//! - in GhostNetV3, the batch norm of a branch is called `bn`, in timm `bn1`.
//!
//! What is left under another name is left for the strict lookup to complain about. This module knows neither files nor
//! tensors.

use std::collections::BTreeMap;

/// What distributed training puts in front of every key.
const WRAPPER: &str = "module.";
/// What thop registers on every module.
const COUNTERS: [&str; 2] = ["total_ops", "total_params"];

/// `entries` under their names in timm, without those that are not weights.
///
/// # Errors
/// The name that two of the entries have.
pub(super) fn normalise<T>(entries: Vec<(&str, T)>) -> Result<BTreeMap<String, T>, String> {
    let wrapped = entries.iter().all(|(key, _)| key.starts_with(WRAPPER));
    let mut normal = BTreeMap::new();
    for (key, value) in entries {
        let key = if wrapped { &key[WRAPPER.len()..] } else { key };
        if COUNTERS.contains(&last(key)) {
            continue;
        }
        let key = renamed(key);
        if normal.contains_key(&key) {
            return Err(key);
        }
        normal.insert(key, value);
    }
    Ok(normal)
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// `bn` is `bn1` inside ghost modules and inside the branches of the depthwise convolution between them. Elsewhere the
/// two agree.
fn renamed(key: &str) -> String {
    let branch = |part: &str| part.starts_with("ghost") || part.starts_with("dw_rpr_");
    let mut inside = false;
    let parts = key.split('.').map(|part| {
        let name = if inside && part == "bn" { "bn1" } else { part };
        inside |= branch(part);
        name
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn keys(entries: &[&str]) -> Vec<String> {
        normalise(entries.iter().map(|key| (*key, ())).collect()).unwrap().into_keys().collect()
    }

    #[test]
    fn batch_norms_of_branches_get_their_names_in_timm() {
        for (authors, timm) in [
            ("blocks.0.0.ghost1.primary_rpr_conv.0.bn.weight", "blocks.0.0.ghost1.primary_rpr_conv.0.bn1.weight"),
            ("blocks.3.1.ghost2.cheap_rpr_scale.bn.running_var", "blocks.3.1.ghost2.cheap_rpr_scale.bn1.running_var"),
            ("blocks.1.0.dw_rpr_conv.2.bn.bias", "blocks.1.0.dw_rpr_conv.2.bn1.bias"),
            ("blocks.1.0.dw_rpr_scale.bn.bias", "blocks.1.0.dw_rpr_scale.bn1.bias"),
        ] {
            assert_eq!(keys(&[authors]), [timm]);
        }
    }

    #[test]
    fn names_that_agree_already_stay() {
        for key in [
            "conv_stem.weight",
            "bn.weight",
            "blocks.0.0.bn.weight",
            "blocks.0.0.ghost1.cheap_rpr_skip.weight",
            "blocks.0.0.ghost1.primary_rpr_conv.0.bn1.weight",
            "blocks.0.0.ghost1.primary_rpr_conv.0.conv.weight",
        ] {
            assert_eq!(keys(&[key]), [key]);
        }
    }

    #[test]
    fn the_wrapper_is_taken_off_only_where_every_key_has_it() {
        assert_eq!(keys(&["module.a", "module.b.weight"]), ["a", "b.weight"]);
        assert_eq!(keys(&["module.a", "b"]), ["b", "module.a"]);
        assert_eq!(keys(&["module.module.a"]), ["module.a"], "once");
    }

    #[test]
    fn counters_are_left_out_and_other_totals_stay() {
        assert_eq!(keys(&["total_ops", "a.total_params", "a.weight"]), ["a.weight"]);
        assert_eq!(keys(&["module.total_ops", "module.a.weight"]), ["a.weight"]);
        assert_eq!(keys(&["totals.weight", "total_ops.weight"]), ["total_ops.weight", "totals.weight"]);
    }

    #[test]
    fn two_entries_under_one_name_are_an_error() {
        let entries = vec![("ghost1.a.bn.weight", 1), ("ghost1.a.bn1.weight", 2)];
        assert_eq!(normalise(entries), Err("ghost1.a.bn1.weight".to_owned()));
    }
}
