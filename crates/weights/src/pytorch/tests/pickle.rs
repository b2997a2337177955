//! What the machine refuses, and that it holds little while doing so.

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
        let call = Pickle::new().global(module, name).raw(b"(").text("true").raw(b"tR").stop();
        assert_eq!(error_of(&call), refused(&format!("{module}.{name}")));
        // By texts on the stack, named and never called, beside the weights.
        let named = Pickle::new().raw(b"}").text("extra").text(module).text(name).raw(b"\x93s").stop();
        assert_eq!(error_of(&named), refused(&format!("{module}.{name}")));
    }
}

#[test]
fn a_refused_name_is_fit_for_a_log() {
    let long = "x".repeat(100_000);
    let text = error_of(&Pickle::new().global("a\u{1b}[2J", &long).stop()).to_string();
    assert!(text.contains(r"a\u{1b}[2J") && text.len() < 600, "{text}");
}

#[test]
fn opcodes_that_name_classes_in_other_ways_are_refused() {
    for code in [&b"(ios\nsystem\n"[..], b"(os", b"\x82\x01", b"\x92", b"Pname\n", b"S'text'\n", b"2", b"\xff"] {
        assert_says(&error_of(&Pickle::new().raw(code).stop()), "expected an opcode of pickle protocol 2 to 5");
    }
}

#[test]
fn only_what_stands_for_a_call_can_be_called() {
    let cases = [
        Pickle::new().text("print").raw(b")R"),
        Pickle::new().global("torch", "FloatStorage").raw(b")R"),
        Pickle::new().global("collections", "OrderedDict").raw(b"]R"),
        Pickle::new().global("collections", "OrderedDict").int(1).raw(b"\x85R"),
        Pickle::new().global("torch._utils", "_rebuild_tensor_v2").raw(b")R"),
        Pickle::new().global("torch._utils", "_rebuild_parameter").raw(b"}}}\x87R"),
        Pickle::new().global("torch", "Size").raw(b"]\x85R"),
    ];
    for case in cases {
        assert!(matches!(error_of(&case.clone().stop()), WeightsError::Format { .. }), "{:?}", case.0);
    }
    // A tensor with state whose function is the same again, with itself as arguments: no recursion.
    let rebuild = Pickle::new().global("torch._tensor", "_rebuild_from_type_v2").raw(b"q\0(h\0h\0)}tR");
    assert!(matches!(error_of(&rebuild.stop()), WeightsError::Format { .. }));
}

#[test]
fn lengths_past_the_end_allocate_nothing() {
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
        assert_says(&error_of(&Pickle::new().raw(code).stop()), "more bytes in the pickle, found");
    }
}

#[test]
fn the_limits_hold() {
    let deep = |count: usize, code: &[u8]| Pickle::new().raw(&code.repeat(count)).stop();
    for (pickle, what) in [
        (deep(limits::DEPTH + 1, b"("), "open marks"),
        (deep(limits::STACK + 1, b"N"), "values on the stack"),
        (deep(limits::VALUES + 1, b"N0"), "values in the pickle"),
        (deep(limits::OPCODES, b"\x80\x02"), "opcodes"),
    ] {
        assert_says(&pickle_error(&pickle), what);
    }
    let text = Pickle::new().text(&"x".repeat(limits::TEXT + 1)).stop();
    assert_says(&pickle_error(&text), "bytes of one text");
    assert_says(&pickle_error(&vec![0; limits::BYTES + 1]), "expected a pickle of at most");

    let storage = Pickle::new().storage("FloatStorage", "0", 6).raw(b"q\0").ints(&[1]).raw(b"q\x01");
    let rebuild = storage.global("torch._utils", "_rebuild_tensor_v2").raw(b"q\x02(h\0K\0h\x01h\x01NNtq\x03");
    let tensors = rebuild.raw(&b"h\x02h\x03R0".repeat(limits::TENSORS + 1)).stop();
    assert_says(&pickle_error(&tensors), "tensors in the pickle");
    let rank = one_tensor(6, 0, &[1; 17], &[1; 17]);
    assert_says(&pickle_error(&rank), "expected at most 16 dimensions, found 17");
}

fn pickle_error(bytes: &[u8]) -> WeightsError {
    pickle::read(bytes).unwrap_err()
}

#[test]
fn deep_and_cyclic_values_neither_recurse_nor_fail() {
    // Lists in lists, as deep as the values go: dropped without recursion.
    let depth = limits::STACK - 10;
    let nested = Pickle::new().raw(&b"]".repeat(depth)).raw(&b"a".repeat(depth - 1)).stop();
    assert_says(&error_of(&nested), "expected a dict of tensors, found a list");
    // A dict that contains itself, under a name and as its own attributes.
    let cyclic = Pickle::new().raw(b"}q\0").text("self").raw(b"h\0sh\0b").stop();
    assert_says(&error_of(&cyclic), "`self`: expected a tensor");
    let wrapped = Pickle::new().raw(b"}q\0").text("state_dict").raw(b"h\0s").stop();
    assert_says(&error_of(&wrapped), "`state_dict`: expected a tensor");
}

#[test]
fn the_stack_does_not_run_under_a_mark() {
    for code in
        [&b"0"[..], b"}(0", b"(1t", b"t", b"N(a", b"Ns", b"}(Nu", b"R", b"b", b"Q", b"q\0", b"h\0", b"\x87", b"("]
    {
        assert!(matches!(error_of(&Pickle::new().raw(code).stop()), WeightsError::Format { .. }), "{code:?}");
    }
}

#[test]
fn integers_are_read_in_twos_complement() {
    let w = |number: &[u8]| {
        let tensor = Pickle::new().raw(b"}").text("w").global("torch._utils", "_rebuild_tensor_v2").raw(b"(");
        let offset = tensor.storage("FloatStorage", "0", 6).raw(number);
        offset.ints(&[1]).ints(&[1]).raw(b"\x89}tRs").stop()
    };
    for five in [&b"K\x05"[..], b"M\x05\0", b"J\x05\0\0\0", b"\x8a\x01\x05", b"\x8b\x02\0\0\0\x05\0"] {
        let bytes = checkpoint(&w(five), &floats(6));
        let file = PytorchFile::parse(&bytes).unwrap();
        assert_eq!(crate::TensorSource::read(&file, "w", &[1]), Ok(vec![5.0]));
    }
    for minus_one in [&b"J\xff\xff\xff\xff"[..], b"\x8a\x01\xff"] {
        assert_eq!(error_of(&w(minus_one)), bad("expected a size or an offset of at least 0, found -1"));
    }
    assert_says(&error_of(&w(b"\x8a\x09\0\0\0\0\0\0\0\0\x01")), "expected a size or an offset, found something else");
}
