//! Translates the keys of the authors' checkpoints into the keys that networks request.
//!
//! The networks use timm's names. The authors' checkpoints differ from them in three regular ways:
//!
//! - training on several devices prefixes every key with `module.`;
//! - counting operations with thop adds `total_ops` and `total_params` beside the weights of every module;
//! - GhostNetV3 calls the batch norm of a branch `bn`, timm calls it `bn1`.
//!
//! The strict lookup reports keys that still have another name. This module does not know files or tensors.

use std::collections::BTreeMap;

/// The prefix that distributed training adds to every key.
const DISTRIBUTED_PREFIX: &str = "module.";
/// The counters that thop registers on every module.
const THOP_COUNTERS: [&str; 2] = ["total_ops", "total_params"];

/// Returns `entries` under their names in timm, without those that are not weights.
///
/// # Errors
/// The name that two of the entries share.
pub(super) fn normalise<T>(entries: Vec<(&str, T)>) -> Result<BTreeMap<String, T>, String> {
    let wrapped = entries.iter().all(|(key, _)| key.starts_with(DISTRIBUTED_PREFIX));
    let mut normalised = BTreeMap::new();
    for (key, value) in entries {
        let key = if wrapped { &key[DISTRIBUTED_PREFIX.len()..] } else { key };
        if THOP_COUNTERS.contains(&last_part(key)) {
            continue;
        }
        let key = renamed(key);
        if normalised.contains_key(&key) {
            return Err(key);
        }
        normalised.insert(key, value);
    }
    Ok(normalised)
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The key in timm. `bn` becomes `bn1` inside ghost modules and inside the branches of the depthwise convolution
/// between them; elsewhere the names agree.
fn renamed(key: &str) -> String {
    let is_branch = |part: &str| part.starts_with("ghost") || part.starts_with("dw_rpr_");
    let mut in_branch = false;
    let parts = key.split('.').map(|part| {
        let name = if in_branch && part == "bn" { "bn1" } else { part };
        in_branch |= is_branch(part);
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
    fn batch_norms_of_branches_get_timms_names() {
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
    fn names_that_already_agree_stay() {
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
    fn the_prefix_is_removed_only_if_every_key_has_it() {
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
