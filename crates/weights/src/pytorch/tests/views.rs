//! Views checked against their storages, and the choice of the state dict.

use super::*;
use crate::TensorSource;

#[test]
fn views_inside_the_storage_are_read_by_their_strides() {
    for (offset, shape, strides, expected) in [
        (0, &[2, 3][..], &[3, 1][..], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0][..]),
        (0, &[3, 2], &[1, 3], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
        (1, &[2, 2], &[3, 1], &[1.0, 2.0, 4.0, 5.0]),
        (5, &[], &[], &[5.0]),
        (5, &[1], &[1000], &[5.0]),
        (2, &[2, 2], &[0, 1], &[2.0, 3.0, 2.0, 3.0]),
        (6, &[0], &[1], &[]),
        (0, &[2, 0, 3], &[3, 3, 1], &[]),
    ] {
        let bytes = checkpoint(&one_tensor(6, offset, shape, strides), &floats(6));
        let file = PytorchFile::parse(&bytes).unwrap();
        let shape: Vec<usize> = shape.iter().map(|size| usize::try_from(*size).unwrap()).collect();
        assert_eq!(file.shape("w", &[]), Some(shape.clone()));
        assert_eq!(file.read("w", &shape).unwrap(), expected, "{offset} {shape:?} {strides:?}");
    }
}

#[test]
fn views_outside_the_storage_are_refused() {
    for (offset, shape, strides) in [
        (1, &[2, 3][..], &[3, 1][..]),
        (6, &[], &[]),
        (0, &[7], &[1]),
        (0, &[2], &[6]),
        (i64::MAX, &[1], &[1]),
        (0, &[2], &[i64::MAX]),
        (i64::MAX, &[2], &[i64::MAX]),
        (0, &[3, 3, 3], &[i64::MAX, i64::MAX, i64::MAX]),
        (0, &[i64::MAX, i64::MAX], &[0, 0]),
        // 16 Mi repetitions are accepted, more are a decompression bomb.
        (0, &[(1 << 24) + 1], &[0]),
    ] {
        let error = error_of(&one_tensor(6, offset, shape, strides));
        assert_says(&error, "tensor `w`: expected its elements among the 6 of its storage");
    }
    for (shape, strides) in [(&[-1][..], &[1][..]), (&[1], &[-1])] {
        assert_says(&error_of(&one_tensor(6, 0, shape, strides)), "of at least 0, found -1");
    }
    assert_says(&error_of(&one_tensor(6, 0, &[2, 3], &[1])), "expected a stride for each dimension");
}

#[test]
fn the_storage_has_the_length_in_the_pickle() {
    for len in [0, 5, 7, 1 << 40, i64::MAX] {
        assert_says(&error_of(&one_tensor(len, 0, &[1], &[1])), "in the zip entry `data/0`, found 24");
    }
    let missing = zip(&[plain_entry("a/data.pkl", &one_tensor(6, 0, &[1], &[1]))]);
    let error = PytorchFile::parse(&missing).unwrap_err();
    assert_says(&error, "tensor `w`: expected a zip entry `data/0`, found none");
}

#[test]
fn a_state_dict_holds_only_names_and_tensors_and_each_name_once() {
    let dict = || PickleBuilder::new().raw(b"}");
    let tensor = |pickle: PickleBuilder| pickle.tensor(6, 0, &[1], &[1]);
    for (pickle, part) in [
        (PickleBuilder::new().int(1), "expected a dict of tensors, found an integer"),
        (tensor(PickleBuilder::new()), "expected a dict of tensors, found a tensor"),
        (dict(), "found it empty"),
        (dict().text("epoch").int(1).raw(b"s"), "`epoch`: expected a tensor, or a state dict under one of"),
        (tensor(dict().int(1)).raw(b"s"), "expected names as the keys of a state dict, found an integer"),
        (tensor(tensor(dict().text("w")).raw(b"s").text("w")).raw(b"s"), "tensor `w`: expected one of that name"),
    ] {
        assert_says(&error_of(&pickle.stop()), part);
    }
}

#[test]
fn wrappers_are_tried_in_order_and_only_dicts_count() {
    let keys = |pickle: PickleBuilder| {
        let bytes = checkpoint(&pickle.stop(), &floats(6));
        PytorchFile::parse(&bytes).unwrap().keys()
    };
    let dict = |pickle: PickleBuilder, wrapper: &str, key: &str| {
        pickle.text(wrapper).raw(b"}").text(key).tensor(6, 0, &[1], &[1]).raw(b"ss")
    };
    let averaged = dict(PickleBuilder::new().raw(b"}"), "model_ema", "averaged");
    assert_eq!(keys(averaged.clone()), ["averaged"]);
    let both = dict(averaged, "model", "plain");
    assert_eq!(keys(both.clone()), ["plain"]);
    assert_eq!(keys(dict(both, "state_dict", "first")), ["first"]);
    // A parameter that happens to be called `model`.
    assert_eq!(keys(PickleBuilder::new().raw(b"}").text("model").tensor(6, 0, &[1], &[1]).raw(b"s")), ["model"]);
}
