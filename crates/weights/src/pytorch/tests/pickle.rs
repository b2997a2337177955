//! The pickles that the machine refuses, and the bounds of its memory.

use super::super::limits;
use super::super::{bad, pickle};
use super::*;

fn refused(name: &str) -> WeightsError {
    WeightsError::Refused(name.into())
}

#[test]
fn names_outside_the_allow_list_are_refused_by_name() {
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch._utils", "_rebuild_tensor"),
        ("collections", "namedtuple"),
    ] {
        let call = PickleBuilder::new().global(module, name).raw(b"(").text("true").raw(b"tR").stop();
        assert_eq!(error_of(&call), refused(&format!("{module}.{name}")));
        // The same name by texts on the stack, not called, beside the weights.
        let named = PickleBuilder::new().raw(b"}").text("extra").text(module).text(name).raw(b"\x93s").stop();
        assert_eq!(error_of(&named), refused(&format!("{module}.{name}")));
    }
}

#[test]
fn a_refused_name_is_escaped_and_cut_off() {
    let long = "x".repeat(100_000);
    let text = error_of(&PickleBuilder::new().global("a\u{1b}[2J", &long).stop()).to_string();
    assert!(text.contains(r"a\u{1b}[2J") && text.len() < 600, "{text}");
}

#[test]
fn opcodes_that_name_classes_in_other_ways_are_refused() {
    for code in [&b"(ios\nsystem\n"[..], b"(os", b"\x82\x01", b"\x92", b"Pname\n", b"S'text'\n", b"2", b"\xff"] {
        assert_says(&error_of(&PickleBuilder::new().raw(code).stop()), "expected an opcode of pickle protocol 2 to 5");
    }
}

#[test]
fn only_known_calls_with_known_arguments_are_accepted() {
    let cases = [
        PickleBuilder::new().text("print").raw(b")R"),
        PickleBuilder::new().global("torch", "FloatStorage").raw(b")R"),
        PickleBuilder::new().global("collections", "OrderedDict").raw(b"]R"),
        PickleBuilder::new().global("collections", "OrderedDict").int(1).raw(b"\x85R"),
        PickleBuilder::new().global("torch._utils", "_rebuild_tensor_v2").raw(b")R"),
        PickleBuilder::new().global("torch._utils", "_rebuild_parameter").raw(b"}}}\x87R"),
        PickleBuilder::new().global("torch", "Size").raw(b"]\x85R"),
    ];
    for case in cases {
        assert!(matches!(error_of(&case.clone().stop()), WeightsError::Format { .. }), "{:?}", case.0);
    }
    // A tensor with state whose function is again a tensor with state, with itself as arguments: no recursion.
    let rebuild = PickleBuilder::new().global("torch._tensor", "_rebuild_from_type_v2").raw(b"q\0(h\0h\0)}tR");
    assert!(matches!(error_of(&rebuild.stop()), WeightsError::Format { .. }));
}

#[test]
fn lengths_past_the_end_are_refused_before_allocating() {
    for code in [
        &b"X\xff\xff\xff\xff"[..],
        b"B\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x96\0\0\0\0\x01\0\0\0",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8c\xff",
        b"C\xff",
        b"\x8a\xff",
    ] {
        assert_says(&error_of(&PickleBuilder::new().raw(code).stop()), "more bytes in the pickle, found");
    }
}

#[test]
fn the_limits_hold() {
    let deep = |count: usize, code: &[u8]| PickleBuilder::new().raw(&code.repeat(count)).stop();
    for (pickle, what) in [
        (deep(limits::DEPTH + 1, b"("), "open marks"),
        (deep(limits::STACK + 1, b"N"), "values on the stack"),
        (deep(limits::VALUES + 1, b"N0"), "values in the pickle"),
        (deep(limits::OPCODES, b"\x80\x02"), "opcodes"),
    ] {
        assert_says(&pickle_error(&pickle), what);
    }
    let text = PickleBuilder::new().text(&"x".repeat(limits::TEXT + 1)).stop();
    assert_says(&pickle_error(&text), "bytes of one text");
    assert_says(&pickle_error(&vec![0; limits::BYTES + 1]), "expected a pickle of at most");

    let storage = PickleBuilder::new().storage("FloatStorage", "0", 6).raw(b"q\0").ints(&[1]).raw(b"q\x01");
    let rebuild = storage.global("torch._utils", "_rebuild_tensor_v2").raw(b"q\x02(h\0K\0h\x01h\x01NNtq\x03");
    let tensors = rebuild.raw(&b"h\x02h\x03R0".repeat(limits::TENSORS + 1)).stop();
    assert_says(&pickle_error(&tensors), "tensors in the pickle");
    let rank = one_tensor(6, 0, &[1; 17], &[1; 17]);
    assert_says(&pickle_error(&rank), "expected at most 16 dimensions, found 17");
}

#[test]
fn the_state_dict_has_a_limited_number_of_tensors() {
    // One key and one tensor, put into the dict again and again from the memo.
    let error_with = |pairs: usize| {
        let pickle = PickleBuilder::new().text("w").raw(b"q\0").tensor(6, 0, &[1], &[1]).raw(b"q\x0100}");
        error_of(&pickle.raw(&b"h\0h\x01s".repeat(pairs)).stop())
    };
    assert_says(&error_with(limits::PAIRS), "tensor `w`: expected one of that name, found two");
    assert_says(&error_with(limits::PAIRS + 1), "expected at most 65536 tensors in the state dict, found 65537");
}

fn pickle_error(bytes: &[u8]) -> WeightsError {
    pickle::read(bytes).unwrap_err()
}

#[test]
fn deep_and_cyclic_values_neither_recurse_nor_fail() {
    // Lists in lists, as deep as the limits allow: dropped without recursion.
    let depth = limits::STACK - 10;
    let nested = PickleBuilder::new().raw(&b"]".repeat(depth)).raw(&b"a".repeat(depth - 1)).stop();
    assert_says(&error_of(&nested), "expected a dict of tensors, found a list");
    // A dict that contains itself under a key and is its own attributes.
    let cyclic = PickleBuilder::new().raw(b"}q\0").text("self").raw(b"h\0sh\0b").stop();
    assert_says(&error_of(&cyclic), "`self`: expected a tensor");
    let wrapped = PickleBuilder::new().raw(b"}q\0").text("state_dict").raw(b"h\0s").stop();
    assert_says(&error_of(&wrapped), "`state_dict`: expected a tensor");
}

#[test]
fn the_stack_does_not_underflow_or_pass_a_mark() {
    for code in
        [&b"0"[..], b"}(0", b"(1t", b"t", b"N(a", b"Ns", b"}(Nu", b"R", b"b", b"Q", b"q\0", b"h\0", b"\x87", b"("]
    {
        assert!(matches!(error_of(&PickleBuilder::new().raw(code).stop()), WeightsError::Format { .. }), "{code:?}");
    }
}

#[test]
fn integers_are_read_in_twos_complement() {
    let with_offset = |number: &[u8]| {
        let tensor = PickleBuilder::new().raw(b"}").text("w").global("torch._utils", "_rebuild_tensor_v2").raw(b"(");
        let offset = tensor.storage("FloatStorage", "0", 6).raw(number);
        offset.ints(&[1]).ints(&[1]).raw(b"\x89}tRs").stop()
    };
    for five in [&b"K\x05"[..], b"M\x05\0", b"J\x05\0\0\0", b"\x8a\x01\x05", b"\x8b\x02\0\0\0\x05\0"] {
        let bytes = checkpoint(&with_offset(five), &floats(6));
        let file = PytorchFile::parse(&bytes).unwrap();
        assert_eq!(crate::TensorSource::read(&file, "w", &[1]), Ok(vec![5.0]));
    }
    for minus_one in [&b"J\xff\xff\xff\xff"[..], b"\x8a\x01\xff"] {
        assert_eq!(error_of(&with_offset(minus_one)), bad("expected a size or an offset of at least 0, found -1"));
    }
    assert_says(
        &error_of(&with_offset(b"\x8a\x09\0\0\0\0\0\0\0\0\x01")),
        "expected a size or an offset, found something else",
    );
}
